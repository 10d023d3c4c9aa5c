"""When a process began: by /proc and by ps, for processes that live, have ended, or wait to be collected."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.results import driver
from orchestrator.results.driver import process_began


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
