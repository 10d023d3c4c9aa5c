"""What can go wrong with a sweep, done on purpose: to its processes while it runs, to its files while it rests."""

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from orchestrator.results.journal import Journal, SweepState, load_plan
from orchestrator.results.store import Store

#: Damages a file of a stopped run; says what it did, None where there is nothing to damage.
AtRest = Callable[[Path, random.Random], "str | None"]


def damage(path: Path, chance: random.Random) -> str:
    """Cut a file off or garble a stretch of it; says how."""
    data = bytearray(path.read_bytes())
    at = chance.randrange(len(data))
    if chance.random() < 0.5:
        path.write_bytes(data[:at])
        return f"cut {path.name} off at byte {at} of {len(data)}"
    for i in range(at, min(at + 64, len(data))):
        data[i] ^= chance.randrange(1, 256)
    path.write_bytes(data)
    return f"garbled 64 bytes of {path.name} from byte {at} of {len(data)}"


def chunk(run: Path, chance: random.Random) -> str | None:
    """Damage a finished chunk of rows."""
    return _damage_one_of(run, sorted(run.glob("packs/*/attempt-*/*.parquet")), chance)


def checkpoint(run: Path, chance: random.Random) -> str | None:
    """Damage the newest checkpoint of a pack that is not finished."""
    store = Store.open(run)
    unfinished = SweepState.from_records(load_plan(store), Journal(store).read()).unfinished
    newest = []
    for pack in unfinished:
        folders = sorted(run.glob(f"packs/{pack}/attempt-*/checkpoint-*"), key=lambda folder: folder.name)
        newest += sorted(folders[-1].iterdir()) if folders else []
    return _damage_one_of(run, newest, chance)


def tune_state(run: Path, chance: random.Random) -> str | None:
    """Damage the newest state that Ray Tune keeps of the experiment, or its pickled tuner."""
    states = sorted(run.glob("ray/experiment_state*"), key=lambda path: path.name)
    return _damage_one_of(run, [*states[-1:], *run.glob("ray/tuner.pkl")], chance)


def _damage_one_of(run: Path, files: list[Path], chance: random.Random) -> str | None:
    files = [path for path in files if path.stat().st_size]
    if not files:
        return None
    path = chance.choice(files)
    return f"{path.parent.relative_to(run)}: {damage(path, chance)}"


#: Faults of files, by name.
AT_REST: dict[str, AtRest] = {"chunk": chunk, "checkpoint": checkpoint, "tune state": tune_state}


def kill_a_worker(ancestor: int, chance: random.Random) -> str | None:
    """SIGKILL one of the processes that train, among the descendants of a process; None where there is none."""
    workers = [pid for pid, name in _descendants(ancestor).items() if "ray::ImplicitFunc" in name]
    if not workers:
        return None
    pid = chance.choice(sorted(workers))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return f"SIGKILL to one of {len(workers)} workers"


def _descendants(ancestor: int) -> dict[int, str]:
    """Command lines of a process's own descendants."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[tuple[int, str]]] = {}
    for line in listed.splitlines():
        pid, parent, *name = line.split(maxsplit=2)
        children.setdefault(int(parent), []).append((int(pid), name[0] if name else ""))
    found: dict[int, str] = {}
    waiting = [ancestor]
    while waiting:
        for pid, name in children.get(waiting.pop(), []):
            found[pid] = name
            waiting.append(pid)
    return found


class Disk:
    """A small disk of its own for a run, which can be filled; only root may mount one."""

    def __init__(self, folder: Path, megabytes: int = 64) -> None:
        """Mount it."""
        self.folder = folder
        folder.mkdir(parents=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True, capture_output=True
        )

    @staticmethod
    def is_possible(folder: Path) -> bool:
        """Whether disks can be mounted here."""
        try:
            Disk(folder).drop()
        except (OSError, subprocess.CalledProcessError):
            return False
        return True

    def fill(self) -> None:
        """Leave no room for another byte."""
        with contextlib.suppress(OSError), (self.folder / "ballast").open("wb", buffering=0) as ballast:
            while ballast.write(b"\0" * 65536):
                pass

    def free(self) -> None:
        """Give the room back."""
        (self.folder / "ballast").unlink(missing_ok=True)

    def drop(self) -> None:
        """Unmount it, with all that is on it."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True, capture_output=True)
