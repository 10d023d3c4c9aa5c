"""`altgrad stop`: the process that the journal names is asked to end, once; nobody else is."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from command import Command
from results.synthetic_sweep import Sweep

from orchestrator.results.driver import folder_of, process_began
from orchestrator.results.journal import Journal
from orchestrator.results.store import Store

#: Stands in for a sweep: says that it began, and at SIGTERM that it ended, as often as it is told to hear of it.
DRIVER = """
import json, os, signal, socket, sys, time
from datetime import UTC, datetime
deaf = sys.argv[2] == "deaf"
def note(**record):
    now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
    with open(sys.argv[1], "a") as journal:
        journal.write(json.dumps({"time": now, **record}) + "\\n")
def leave(*_):
    note(event="sweep_ended", reason="SIGTERM")
    if not deaf:
        sys.exit(143)
signal.signal(signal.SIGTERM, leave)
note(event="sweep_started", pid=os.getpid(), host=socket.gethostname(), command=[], versions={})
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one pack that is half way."""
    sweep = Sweep(Store.open(tmp_path / "run"))
    sweep.train(sweep.add_pack(2), [3.0, 3.1], ends=[None, None])
    return tmp_path / "run"


@pytest.fixture
def drive(run: Path) -> Iterator[Callable[[str], subprocess.Popen]]:
    """Starts a process that says it runs the sweep, and sees that it does not outlive the test."""
    started: list[subprocess.Popen] = []

    def start(manner: str) -> subprocess.Popen:
        command = [sys.executable, "-c", DRIVER, str(run / "journal.jsonl"), manner]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "ready\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def events(run: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (run / "journal.jsonl").read_text().splitlines()]


def test_a_sweep_that_runs_is_ended_and_how_to_go_on_is_said(
    run: Path, drive: Callable[[str], subprocess.Popen], command: Command
) -> None:
    driver = drive("heedful")
    done = command("stop", run)
    assert done.code == 0, done.err
    assert driver.wait(0) == 143
    assert events(run)[-1] == "sweep_ended"
    assert f"process {driver.pid} has left" in done.err
    assert f"trials that have not ended: 2; go on with: altgrad resume {run}" in done.err
    again = command("stop", run)
    assert again.code == 0
    assert "is not being run" in again.err


def test_one_that_does_not_leave_in_time_is_told_of(
    run: Path, drive: Callable[[str], subprocess.Popen], command: Command
) -> None:
    driver = drive("deaf")
    # It says that it ended, and goes on: the process counts, as files may still be written.
    done = command("stop", run, "--timeout", "0.3")
    assert done.code == 4
    assert f"process {driver.pid} was told to end and is still there after 0.3 s" in done.err
    assert driver.poll() is None
    assert events(run).count("sweep_ended") == 1, "it was asked once"


def test_a_copy_of_a_folder_that_is_run_is_not_run(
    run: Path, drive: Callable[[str], subprocess.Popen], command: Command, tmp_path: Path
) -> None:
    driver, store = drive("heedful"), Store.open(run)
    began = process_began(driver.pid).isoformat()
    record = {"host": HERE, "pid": driver.pid, "began": began, "folder": folder_of(store)}
    Journal(store).append({"event": "sweep_started", **record})
    copy, link = tmp_path / "copy", tmp_path / "link"
    shutil.copytree(run, copy)
    link.symlink_to(run)
    for other in (copy, f"file://{copy}"):
        done = command("stop", other)
        assert (done.code, driver.poll()) == (0, None)
        assert "is not being run" in done.err
    shown = command("status", copy, "--json")
    assert (json.loads(shown.out)["driver"], json.loads(shown.out)["running"]) == ("another_folder", False)
    told = f"process {driver.pid} runs {run}, not this folder"
    assert "".join(told.split()) in "".join(command("status", copy).out.split()), "folded wherever it had to be"
    assert json.loads(command("status", link, "--json").out)["running"] is True
    assert command("stop", link).code == 0
    assert driver.wait(0) == 143


@pytest.fixture
def bystander() -> Iterator[int]:
    """A process that ends at any signal."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        assert process.poll() is None, "it was sent a signal"
        process.communicate()


HERE, LONG_AGO = socket.gethostname(), timedelta(days=365)


@pytest.mark.parametrize(
    ("host", "pid", "age", "more", "code", "said"),
    [
        (HERE, "bystander", LONG_AGO, {}, 0, "is not being run"),
        (HERE, "bystander", timedelta(0), {"began": "2026-01-01T12:00:00"}, 0, "is not being run"),
        (HERE, "bystander", timedelta(0), {"folder": "/nowhere/run"}, 0, "is not being run"),
        ("node-7", "bystander", timedelta(0), {}, 4, "of node-7 and has not said that it ended"),
        (HERE, "own", timedelta(0), {}, 0, "is not being run"),
        (HERE, 0, timedelta(0), {}, 0, "is not being run"),
        (HERE, -1, timedelta(0), {}, 0, "is not being run"),
        (HERE, None, timedelta(0), {}, 0, "is not being run"),
        (HERE, 2**22 + 1, timedelta(0), {}, 0, "is not being run"),
        (HERE, 2**80, timedelta(0), {}, 0, "is not being run"),
        (HERE, "bystander", timedelta(0), {"folder": "\0"}, 0, "is not being run"),
    ],
    ids=[
        "its number was taken over",
        "it began at another time",
        "it runs another folder",
        "another host",
        "this process",
        "pid 0",
        "pid -1",
        "no pid",
        "it is gone",
        "no process has such a number",
        "no folder",
    ],
)
def test_nobody_else_is_sent_a_signal(
    host: str,
    pid: int | str | None,
    age: timedelta,
    more: dict[str, str],
    code: int,
    said: str,
    run: Path,
    bystander: int,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[tuple[int, int]] = []
    kill = os.kill
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)) if number else kill(pid, number))
    time = (datetime.now(UTC) - age).replace(tzinfo=None).isoformat(timespec="milliseconds")
    pid = {"bystander": bystander, "own": os.getpid()}.get(pid, pid)
    record = {"time": time, "event": "sweep_started", "host": host, "pid": pid, **more}
    with (run / "journal.jsonl").open("a") as journal:
        journal.write(json.dumps(record) + "\n")
    done = command("stop", run)
    assert done.code == code, done.err
    assert said in done.err
    assert sent == []


def test_somebody_elses_process_is_named(
    run: Path, drive: Callable[[str], subprocess.Popen], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, kill = drive("heedful"), os.kill

    def refused(pid: int, number: int) -> None:
        if number == signal.SIGTERM:
            raise PermissionError
        kill(pid, number)

    monkeypatch.setattr(os, "kill", refused)
    done = command("stop", run)
    assert done.code == 4
    assert f"process {driver.pid} belongs to another user" in done.err
