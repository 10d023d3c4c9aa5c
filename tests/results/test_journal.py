"""Every record survives its neighbours' damage, and the state follows from the records alone."""

import json
import math
import os
import socket
import subprocess
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.results import local
from orchestrator.results.journal import Journal, SweepState, load_plan
from orchestrator.results.store import Store

STARTED = {"event": "pack_started", "pack": "p000", "attempt": 1}


def test_records_come_back_in_order_with_their_time(store: Store) -> None:
    journal = Journal(store)
    assert journal.read() == []
    journal.append(STARTED)
    journal.append({"event": "sweep_ended", "reason": "finished"})
    first, second = journal.read()
    assert datetime.fromisoformat(first.pop("time")).tzinfo is None
    assert first == STARTED
    assert second["reason"] == "finished"
    assert journal.skipped == 0


def test_numbers_that_json_lacks_become_null_and_numpy_becomes_plain(local_store: Store) -> None:
    metrics = {"a": math.nan, "b": [math.inf, np.float32(0.5)], "c": np.int64(3), "d": np.float64("nan")}
    Journal(local_store).append({"event": "reported", "pack": "p", "step": 1, "metrics": metrics})
    line = local_store.read_bytes("journal.jsonl").decode()
    strict = json.loads(line, parse_constant=lambda text: pytest.fail(f"not JSON: {text}"))
    assert strict["metrics"] == {"a": None, "b": [None, 0.5], "c": 3, "d": None}


def test_a_journal_is_read_on_from_where_it_was_read(store: Store) -> None:
    reader, writer = Journal(store), Journal(store)
    assert reader.read_on() == []
    writer.append(STARTED)
    writer.append({"event": "reported", "pack": "p000", "step": 1})
    assert [record["event"] for record in reader.read_on()] == ["pack_started", "reported"]
    assert reader.read_on() == []
    writer.append({"event": "sweep_ended", "reason": "finished"})
    assert reader.read_on() == writer.read()[2:]


def test_a_line_that_is_still_being_written_is_read_once_it_is_whole(local_store: Store) -> None:
    journal, line = Journal(local_store), b'{"time":"2026-01-01T00:00:00.000","event":"sweep_ended"}\n'
    local_store.write_bytes("journal.jsonl", line + line[:20])
    assert len(journal.read_on()) == 1
    local_store.write_bytes("journal.jsonl", line + line)
    assert len(journal.read_on()) == 1
    assert journal.skipped == 0


@pytest.mark.parametrize("record", [{}, {"event": "pack_strated"}])
def test_an_unknown_record_is_refused(local_store: Store, record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="known: sweep_started, resources_settled, plan_changed"):
        Journal(local_store).append(record)
    assert local_store.list() == []


@pytest.mark.parametrize(
    ("garbage", "skipped"),
    [
        (b'{"time":"2026-01-01T00:00:00.000","event":"repor', 1),
        (b"\xff\xfe\x00garbled\n", 1),
        (b"[1, 2]\n7\nnull\n", 3),
        (b'{"event":"reported"}\n', 1),
        (b'{"event":"reported","time":"yesterday"}\n', 1),
        (b'{"event":"of_tomorrow","time":"2026-01-01T00:00:00.000"}\n', 1),
        (b"\n\n", 0),
    ],
)
def test_a_torn_or_garbled_line_costs_only_itself(store: Store, garbage: bytes, skipped: int) -> None:
    journal = Journal(store)
    journal.append(STARTED)
    store.write_bytes("journal.jsonl", store.read_bytes("journal.jsonl") + garbage)
    journal.append({**STARTED, "attempt": 2})
    assert [record["attempt"] for record in journal.read()] == [1, 2]
    assert journal.skipped == skipped


@given(cut=st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_a_journal_cut_anywhere_keeps_its_whole_lines_and_goes_on(cut: int, tmp_path_factory: Any) -> None:
    store = Store.open(tmp_path_factory.mktemp("cut"))
    journal = Journal(store)
    for attempt in (1, 2, 3):
        journal.append({**STARTED, "attempt": attempt})
    whole = store.read_bytes("journal.jsonl")[:cut]
    store.write_bytes("journal.jsonl", whole)
    journal.append({**STARTED, "attempt": 9})
    found = [record["attempt"] for record in journal.read()]
    complete = len([line for line in whole.split(b"\n") if line.endswith(b"}")])
    assert found == [*[1, 2, 3][:complete], 9]


def test_each_record_is_synced(local_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(local_store)
    journal.append(STARTED)
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(local.os, "fsync", lambda fd: (synced.append(fd), fsync(fd))[1])
    journal.append(STARTED)
    assert len(synced) == 1


def test_a_folder_without_a_plan_is_named(local_store: Store) -> None:
    with pytest.raises(FileNotFoundError, match=r"no plan.json in .*: not the folder of a sweep"):
        load_plan(local_store)
    local_store.write_bytes("plan.json", b'{"schema_version": 99}')
    with pytest.raises(ValueError, match="has version 99, understood is 1"):
        load_plan(local_store)


# --- what follows from the records

PLAN = {
    "packs": [
        {"pack": "p000", "lanes": [{"key": "a"}, {"key": "b"}]},
        {"pack": "p001", "lanes": [{"key": "c"}]},
    ]
}


def at(event: str, **more: Any) -> dict[str, Any]:
    return {"time": "2026-01-01T00:00:00.000", "event": event, **more}


def start(pack: str, attempt: int = 1) -> dict[str, Any]:
    return at("pack_started", pack=pack, attempt=attempt)


def end(key: str, reason: str, step: int = 400) -> dict[str, Any]:
    pack = "p001" if key == "c" else "p000"
    return at("lane_ended", pack=pack, key=key, reason=reason, step=step, message=f"{reason}!")


def fail(pack: str) -> dict[str, Any]:
    return at("pack_failed", pack=pack, attempt=1, error="out of memory")


@pytest.mark.parametrize(
    ("records", "statuses", "reasons", "unfinished"),
    [
        ([], "planned planned planned", "- - -", ["p000", "p001"]),
        ([start("p000")], "running running planned", "- - -", ["p000", "p001"]),
        ([start("p000"), end("b", "asha")], "running finished planned", "- asha -", ["p000", "p001"]),
        (
            [start("p000"), end("b", "asha"), end("a", "completed")],
            "finished finished planned",
            "completed asha -",
            ["p001"],
        ),
        ([start("p001"), end("c", "diverged")], "planned planned finished", "- - diverged", ["p000"]),
        ([start("p001"), end("c", "failed")], "planned planned failed", "- - failed", ["p000", "p001"]),
        ([start("p000"), end("a", "asha"), fail("p000")], "finished failed planned", "asha failed -", ["p000", "p001"]),
        ([start("p000"), fail("p000"), start("p000", 2)], "running running planned", "- - -", ["p000", "p001"]),
        (
            [start("p000"), end("a", "asha"), end("a", "failed")],
            "finished running planned",
            "asha - -",
            ["p000", "p001"],
        ),
        ([start("p000"), at("sweep_ended", reason="sigint")], "planned planned planned", "- - -", ["p000", "p001"]),
        ([start("p000"), at("sweep_started", pid=1, host="h")], "planned planned planned", "- - -", ["p000", "p001"]),
        ([start("gone"), end("zzz", "asha"), at("lane_ended")], "planned planned planned", "- - -", ["p000", "p001"]),
    ],
)
def test_status_and_reason_follow_from_the_records(
    records: list[dict[str, Any]], statuses: str, reasons: str, unfinished: list[str]
) -> None:
    state = SweepState.from_records(PLAN, records)
    assert list(state.lanes) == ["a", "b", "c"]
    assert " ".join(lane.status for lane in state.lanes.values()) == statuses
    assert " ".join(lane.reason or "-" for lane in state.lanes.values()) == reasons
    assert state.unfinished == unfinished


def test_a_failed_pack_passes_its_error_to_the_lanes_still_living() -> None:
    state = SweepState.from_records(PLAN, [start("p000"), end("a", "stalled"), fail("p000")])
    assert [state.lanes[key].message for key in "ab"] == ["stalled!", "out of memory"]


def test_steps_seconds_and_attempts_are_those_of_all_attempts() -> None:
    def report(step: int, attempt: int, seconds: float | None) -> dict[str, Any]:
        return at("reported", pack="p000", attempt=attempt, step=step, metrics={}, seconds=seconds)

    records = [start("p000"), report(100, 1, 10.0), end("a", "asha", 100), report(200, 1, 20.0)]
    records += [start("p000", 2), report(150, 2, 5.5), report(250, 2, None)]
    state = SweepState.from_records(PLAN, records)
    assert state.attempts == {"p000": 2}
    assert state.seconds == {"p000": 25.5}
    assert [state.lanes[key].step for key in "abc"] == [100, 250, None]
    assert state.lanes["a"].attempt == 1


def process_of_another() -> int:
    return os.getppid()


def ended_process() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


NOW, LONG_AGO = "9999-01-01T00:00:00.000", "1999-01-01T00:00:00.000"


@pytest.mark.parametrize(
    ("host", "pid", "said", "ended", "alive"),
    [
        (socket.gethostname(), process_of_another(), NOW, False, True),
        (socket.gethostname(), process_of_another(), NOW, True, False),
        (socket.gethostname(), process_of_another(), LONG_AGO, False, False),
        (socket.gethostname(), ended_process(), NOW, False, False),
        (socket.gethostname(), os.getpid(), NOW, False, False),
        (socket.gethostname(), 0, NOW, False, False),
        (socket.gethostname(), -1, NOW, False, False),
        ("another-host", process_of_another(), NOW, False, False),
    ],
    ids=[
        "running",
        "said it ended",
        "another took its number",
        "process gone",
        "this very process",
        "no process",
        "all processes",
        "elsewhere",
    ],
)
def test_a_driver_is_alive_while_its_process_is(host: str, pid: int, said: str, ended: bool, alive: bool) -> None:
    records = [at("sweep_started", host=host, pid=pid, command=[], versions={}) | {"time": said}]
    records += [at("sweep_ended", reason="finished")] * ended
    driver = SweepState.from_records(PLAN, records).driver
    assert (driver is not None and driver.is_alive) is alive


def test_a_sweep_never_started_has_no_driver() -> None:
    assert SweepState.from_records(PLAN, []).driver is None
