"""A run's folder looked at once, or again and again."""

import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.results.journal import Journal, load_plan
from orchestrator.results.store import Store
from orchestrator.status.facts import Disk, Status
from orchestrator.status.journal import status

#: Seconds for which the measured size of a run's folder is good enough: it may hold a hundred thousand files.
_DISK_SECONDS = 30.0


class Watch:
    """A run's folder looked at again and again: of its journal only what is new is read."""

    def __init__(self, store: Store) -> None:
        self._store, self._journal = store, Journal(store)
        self._plan = load_plan(store)
        self._records: list[dict[str, Any]] = []
        self._disk: Disk | None = None
        self._measured = -_DISK_SECONDS

    def look(self) -> tuple[Status, bool]:
        """How things stand, and whether the journal had anything new."""
        new = self._journal.read_on()
        self._records += new
        if time.monotonic() - self._measured >= _DISK_SECONDS:
            self._disk, self._measured = _disk(self._store), time.monotonic()
        now = datetime.now(UTC).replace(tzinfo=None)
        return status(self._plan, self._records, now, self._disk, self._store), bool(new)


def _disk(store: Store) -> Disk | None:
    if "://" in store.uri:
        return None
    return Disk(sum(store.sizes().values()), shutil.disk_usage(Path(store.uri)).free)
