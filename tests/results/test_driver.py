"""When a process began: by /proc and by ps, for one that lives, has ended, or waits to be collected; and who drives."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.results import driver
from orchestrator.results.driver import Driver, folder_of, process_began
from orchestrator.results.store import Store


@pytest.fixture(params=["proc", "ps"])
def began(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """`process_began` on a system with /proc, and on one without."""
    if request.param == "ps":
        monkeypatch.setattr(driver, "_PROC", tmp_path)
    return process_began


@pytest.fixture
def child() -> Iterator[subprocess.Popen]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.communicate()


def test_a_living_process_began_when_it_did(began: Callable, child: subprocess.Popen) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    found = began(child.pid)
    assert timedelta(seconds=-2) < now - found < timedelta(seconds=20)
    assert began(os.getpid()) <= found + timedelta(seconds=2)


def test_a_process_that_has_ended_is_gone_also_before_its_parent_has_collected_it(
    began: Callable, child: subprocess.Popen
) -> None:
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert began(child.pid) is None
    child.wait()
    assert began(child.pid) is None


@pytest.mark.parametrize(
    ("shown", "seconds"),
    [("Ss 00:07", 7), ("R+ 01:02:03", 3723), ("S  2-00:00:01", 172_801), ("", None), ("Z 00:01", None)],
)
def test_what_ps_says_is_understood(
    shown: str, seconds: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_PROC", tmp_path)
    monkeypatch.setattr(driver.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess([], 0, shown + "\n", ""))
    found = process_began(4711)
    if seconds is None:
        assert found is None
    else:
        age = datetime.now(UTC).replace(tzinfo=None) - found
        assert timedelta(0) <= age - timedelta(seconds=seconds) < timedelta(seconds=5)


# --- who drives


@pytest.mark.parametrize(
    ("off", "alive"), [(timedelta(0), True), (timedelta(minutes=2), False), (-timedelta(minutes=2), False)]
)
def test_a_process_is_the_driver_only_if_it_began_when_the_driver_did(
    off: timedelta, alive: bool, child: subprocess.Popen
) -> None:
    since, itself = datetime.now(UTC).replace(tzinfo=None), process_began(child.pid)
    assert Driver(socket.gethostname(), child.pid, since, itself + off).is_alive is alive
    assert Driver(socket.gethostname(), child.pid, since).is_alive, "a record that does not say when it began"


@pytest.mark.parametrize("began", [None, "soon", 7])
def test_a_record_that_cannot_say_when_it_began_says_nothing(began: object) -> None:
    record = {"time": "2026-01-01T12:00:00.000", "host": "here", "pid": 7, "began": began, "folder": None}
    assert Driver.from_record(record) == Driver("here", 7, datetime(2026, 1, 1, 12))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder, one beside it, and a link to it; everything happens beside them."""
    for name in ("run", "copy"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("named", "seen", "same"),
    [
        ("run", "run", True),
        ("run", "copy", False),
        ("run", "link", True),
        ("link", "run", True),
        ("run", "copy/../run/", True),
        ("run", "file://{folder}/run", True),
        ("gone", "run", False),
        ("run", "s3://bucket/run", False),
        ("s3://bucket/run", "run", False),
        ("s3://bucket/run?region=eu", "s3://bucket/run/?scheme=http", True),
        ("s3://bucket/run", "s3://bucket/copy", False),
    ],
)
def test_a_folder_is_the_drivers_by_whatever_path_and_a_copy_is_not(
    named: str, seen: str, same: bool, folder: Path
) -> None:
    def store(where: str) -> Store:
        found = Store.open(folder if "s3:" in where else where.format(folder=folder))
        found.uri = where if "s3:" in where else found.uri
        return found

    began = Driver("here", 7, datetime(2026, 1, 1), folder=folder_of(store(named)))
    assert began.is_of(store(seen)) is same
    assert began._replace(folder=None).is_of(store(seen)), "a record that does not say where"
