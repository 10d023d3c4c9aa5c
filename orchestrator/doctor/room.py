"""Where runs would be kept: can it be written, and is there room?"""

import os
import shutil
import uuid
from pathlib import Path

from orchestrator.doctor.finding import Finding
from orchestrator.preflight import nearest_folder
from orchestrator.results.store import Store

_GIB = 2**30


def writable(storage: str) -> Finding:
    """A small file can be written, read back and deleted where runs are to be kept."""
    advice = "choose another place: --storage FOLDER"
    if "://" in storage:
        advice = "check the address, this machine's rights there and its way to it; or --storage FOLDER"
    try:
        # A folder that is not there yet is not made for this.
        where = storage if "://" in storage else str(nearest_folder(Path(storage).expanduser()))
        store, name, content = Store.open(where), f"altgrad-doctor-{uuid.uuid4().hex}.txt", os.urandom(64)
        store.write_bytes(name, content)
        try:
            found = store.read_bytes(name)
        finally:
            store.delete(name)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
        return Finding("storage", "fail", f"{storage}: {why}", advice)
    if found != content:
        return Finding("storage", "fail", f"{storage} gives back something else than was written", advice)
    return Finding("storage", "ok", f"{storage}: written, read back, deleted")


def disk(storage: str) -> Finding:
    """There is room for what sweeps write."""
    if "://" in storage:
        return Finding("disk", "ok", f"{storage} is no disk of this machine")
    free = shutil.disk_usage(nearest_folder(Path(storage).expanduser())).free / _GIB
    found = f"{free:.1f} GiB free"
    if free < 0.25:
        return Finding(
            "disk", "fail", found, "make room: a small sweep writes about 100 MB; altgrad plan says how much"
        )
    if free < 5:
        return Finding("disk", "warn", found, "large sweeps write gigabytes: altgrad plan says how much")
    return Finding("disk", "ok", found)
