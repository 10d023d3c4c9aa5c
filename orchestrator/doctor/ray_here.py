"""Ray on this machine: its version, its token, dashboards that stand open, and its folder. Nothing is started."""

import contextlib
import importlib.metadata
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from orchestrator.doctor.finding import Finding
from orchestrator.doctor.sockets import Listener, asks_for_token, listeners

#: Before it a page in a browser could reach a local Ray (CVE-2026-27482).
_OLDEST = (2, 54)
#: Where Ray's dashboard listens unless it is told otherwise.
_DASHBOARD_PORT = 8265
#: What Ray puts behind its temporary folder for a socket: ``/ray/session_<time>_<process>/sockets/plasma_store``.
_SOCKET = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
#: Longest path of a socket.
_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
#: GiB of logs and sessions that are worth a word.
_MUCH = 10
_GIB = 2**30


def version() -> Finding:
    """Ray is there, and not one with a known hole."""
    found = importlib.metadata.version("ray")
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < _OLDEST:
        return Finding(
            "ray", "fail", f"{found} (CVE-2026-27482)", "install Ray 2.54 or newer: make setup takes the lock's"
        )
    return Finding("ray", "ok", found)


def token() -> Finding:
    """Who is let in to a Ray that is started here: without a token, everybody who reaches its ports."""
    mode, path = os.environ.get("RAY_AUTH_MODE"), token_file()
    if mode is not None and mode.lower() not in ("token", "disabled"):
        return Finding("token", "fail", f"RAY_AUTH_MODE={mode}", "set RAY_AUTH_MODE=token")
    if mode is not None and mode.lower() == "disabled":
        advice = "whoever reaches Ray's ports runs code as you: unset RAY_AUTH_MODE, or set it to token"
        return Finding("token", "warn", "RAY_AUTH_MODE=disabled", advice)
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding("token", "ok", "in RAY_AUTH_TOKEN")
    if not path.is_file():
        if mode is None:
            return Finding("token", "ok", "Ray makes one for the first sweep here")
        return Finding("token", "warn", f"RAY_AUTH_MODE=token, and no {path}", "ray get-auth-token --generate")
    if (rights := stat.S_IMODE(path.stat().st_mode)) & 0o077:
        return Finding("token", "warn", f"{path} can be read by others ({rights:o})", f"chmod 600 {path}")
    return Finding("token", "ok", str(path))


def token_file() -> Path:
    """Where Ray looks for the token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()


def dashboards() -> Finding:
    """No dashboard of a Ray on this machine takes jobs from strangers (CVE-2023-48022)."""
    ports = {_DASHBOARD_PORT, *_dashboard_ports()}
    found = [listener for listener in listeners() if listener.port in ports]
    open_wide = [listener for listener in found if not listener.is_loopback and not asks_for_token(listener)]
    if open_wide:
        advice = "whoever reaches it runs code here (CVE-2023-48022): restart that Ray with RAY_AUTH_MODE=token and "
        advice += "--dashboard-host=127.0.0.1"
        return Finding("dashboard", "fail", f"without a token on {_named(open_wide)}", advice)
    return Finding("dashboard", "ok", f"on {_named(found)}" if found else "none is open")


def _named(found: list[Listener]) -> str:
    return ", ".join(f"{listener.address}:{listener.port}" for listener in found)


def _dashboard_ports() -> Iterator[int]:
    """The ports of dashboards that run here."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.endswith(b"dashboard/dashboard.py") for word in words):
            yield from (int(match[1]) for word in words if (match := re.fullmatch(rb"--port=(\d+)", word)))


def folder() -> Finding:
    """Ray can keep its sockets, logs and objects in its temporary folder."""
    base = Path(os.environ.get("RAY_TMPDIR") or (sys.platform == "linux" and os.environ.get("TMPDIR")) or "/tmp")
    place = base / "ray"
    if len(str(base)) + _SOCKET > _LONGEST_SOCKET:
        found = f"{place} is too long a path for a socket ({_LONGEST_SOCKET} characters with what Ray adds)"
        return Finding("ray's tmp", "fail", found, "set RAY_TMPDIR to a short path, such as /tmp")
    nearest = next(each for each in (place, *place.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        return Finding("ray's tmp", "fail", f"{nearest}: {error.strerror}", "set RAY_TMPDIR to a folder of your own")
    usage, held = shutil.disk_usage(nearest), _size(place) / _GIB
    found = f"{place}: holds {held:.1f} GiB, {usage.free / _GIB:.1f} GiB free"
    if usage.free < 0.05 * usage.total:
        return Finding(
            "ray's tmp", "warn", found, "Ray stops placing work on a disk that is 95 % full: make room there"
        )
    if held > _MUCH:
        return Finding("ray's tmp", "warn", found, f"while no Ray runs, old sessions may go: rm -r {place}/session_*")
    return Finding("ray's tmp", "ok", found)


def _size(place: Path) -> int:
    """Bytes of all files under a folder; what vanishes meanwhile or cannot be seen does not count."""
    total = 0
    for folder, _, names in os.walk(place):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{folder}/{name}").st_size
    return total
