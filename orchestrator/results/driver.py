"""The process that drives a sweep: whether it lives, whether it is still that one, and which folder it runs."""

import os
import socket
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from orchestrator.results.store import Store

_PROC = Path("/proc")
#: A clock may be set back a little between a process's start and a look at it.
_SLACK = timedelta(seconds=5)
#: Two looks at one process's start agree to this much: it is counted from a clock that may be set in between.
_SAME = timedelta(seconds=60)


class Driver(NamedTuple):
    """Who said in the journal that it began to run the sweep."""

    host: str
    #: Its process number; 0 where the record has none.
    pid: int
    #: When it said so, UTC without zone.
    since: datetime
    #: When the process itself began, UTC without zone; None where the record does not say.
    began: datetime | None = None
    #: The run's folder, see `folder_of`; None where the record does not say.
    folder: str | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Driver":
        """The driver of a record ``sweep_started``."""
        pid, folder = record.get("pid"), record.get("folder")
        return cls(
            host=str(record.get("host")),
            pid=pid if type(pid) is int else 0,
            since=datetime.fromisoformat(record["time"]),
            began=_moment(record.get("began")),
            folder=folder if isinstance(folder, str) else None,
        )

    @property
    def is_here(self) -> bool:
        """Whether it said so on this host."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether another process on this host is the one that said so.

        A process that took over the number of one that is gone began at another time: after the record was written,
        where that does not say when its own process began.
        """
        if not self.is_here or self.pid == os.getpid() or not _exists(self.pid):
            return False
        try:
            began = process_began(self.pid)
        except PermissionError:  # somebody else's, and hidden from us
            return True
        if began is None or self.began is None:
            return began is not None and began <= self.since + _SLACK
        return abs(began - self.began) <= _SAME

    def is_of(self, store: Store) -> bool:
        """Whether the folder that it said it runs is this one, by whatever path; True where it did not say.

        A copy of a run's folder has a copy of its journal.
        """
        here = folder_of(store)
        if self.folder is None or self.folder == here:
            return True
        try:
            return "://" not in here and os.path.samefile(self.folder, here)
        except (OSError, ValueError):  # it is not there, or is no path
            return False

    def drives(self, store: Store) -> bool:
        """Whether it lives, and runs the sweep in this folder."""
        return self.is_of(store) and self.is_alive


def folder_of(store: Store) -> str:
    """A run's folder as the journal names it: without links, without options of its filesystem."""
    if "://" not in store.uri:
        return os.path.realpath(store.uri)
    return urlsplit(store.uri)._replace(query="", fragment="").geturl().rstrip("/")


def process_began(pid: int) -> datetime | None:
    """When a process of this host began, UTC without zone, to a second; None where it is gone or a zombie.

    Raises:
        PermissionError: it exists, but this system does not show it.
    """
    return _from_proc(pid) if (_PROC / "stat").exists() else _from_ps(pid)


def _from_proc(pid: int) -> datetime | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        if _exists(pid):
            raise PermissionError(f"process {pid} is hidden") from error
        return None
    # The program's name comes before, in parentheses, and may hold anything.
    fields = stat.rpartition(b")")[2].split()
    if fields[0] in (b"Z", b"X"):
        return None
    lines = (_PROC / "stat").read_text().splitlines()
    booted = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
    seconds = booted + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _from_ps(pid: int) -> datetime | None:
    """The same where there is no /proc, such as on macOS."""
    shown = subprocess.run(
        ["ps", "-o", "stat=", "-o", "etime=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, elapsed = shown.stdout.strip().partition(" ")
    if not elapsed or state.startswith("Z"):
        return None
    days, _, clock = elapsed.strip().rpartition("-")
    seconds = int(days or 0) * 86_400
    for power, part in enumerate(reversed(clock.split(":"))):
        seconds += int(part) * 60**power
    return datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=seconds)


def _moment(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text)).replace(tzinfo=None)
    except ValueError:
        return None


def _exists(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
