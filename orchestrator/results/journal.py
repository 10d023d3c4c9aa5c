"""The append-only record of what a sweep started, reported and ended, and what follows from it.

The journal is the authority on what is finished; Ray's own experiment state is not.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from orchestrator.results.driver import Driver
from orchestrator.results.store import Store

#: What makes a folder that of a sweep.
PLAN_PATH = "plan.json"
#: Version of ``plan.json`` that is understood here.
PLAN_VERSION = 1
#: What a record may be about; its key ``event``.
RECORD_KINDS: tuple[str, ...] = (
    "sweep_started",
    "resources_settled",
    "plan_changed",
    "pack_started",
    "reported",
    "lane_audited",
    "lane_ended",
    "pack_failed",
    "checkpoint_damaged",
    "sweep_ended",
)


def load_plan(store: Store) -> dict[str, Any]:
    """The plan of the sweep kept in this folder.

    Raises:
        FileNotFoundError: there is none, so this is no sweep's folder.
        ValueError: it is of a version that is not understood.
    """
    if not store.exists(PLAN_PATH):
        raise FileNotFoundError(f"no {PLAN_PATH} in {store.uri}: not the folder of a sweep")
    plan: dict[str, Any] = json.loads(store.read_bytes(PLAN_PATH))
    if plan.get("schema_version") != PLAN_VERSION:
        raise ValueError(f"{PLAN_PATH} has version {plan.get('schema_version')!r}, understood is {PLAN_VERSION}")
    return plan


class Journal:
    """JSON lines in one file with one writer at a time; each is on disk before `append` returns.

    On a filesystem that cannot append, every record writes the whole file again: keep reports minutes apart there.
    """

    def __init__(self, store: Store, name: str = "journal.jsonl") -> None:
        self._store, self._name = store, name
        #: Lines that the last `read` could not understand.
        self.skipped = 0
        #: Bytes that `read_on` has been through.
        self._through = 0

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record, with the ``time`` (UTC, milliseconds). Numbers that JSON lacks (NaN, infinities) become null.

        Raises:
            ValueError: the record's ``event`` is not one of `RECORD_KINDS`.
        """
        if record.get("event") not in RECORD_KINDS:
            raise ValueError(f"unknown event {record.get('event')!r}; known: {', '.join(RECORD_KINDS)}")
        now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
        line = json.dumps(_plain({"time": now, **record}), separators=(",", ":"), allow_nan=False)
        self._store.append_line(self._name, line.encode())

    def read(self) -> list[dict[str, Any]]:
        """All records in order; lines that are torn or garbled are left out and counted in `skipped`."""
        self.skipped = 0
        return self._records(self._content(0))

    def read_on(self) -> list[dict[str, Any]]:
        """The records since the last call, all of them at first; a line that is still being written waits."""
        content = self._content(self._through)
        whole = content[: content.rfind(b"\n") + 1]
        self._through += len(whole)
        return self._records(whole)

    def _content(self, start: int) -> bytes:
        return self._store.read_bytes(self._name, start) if self._store.exists(self._name) else b""

    def _records(self, content: bytes) -> list[dict[str, Any]]:
        found = [_record(line) for line in content.split(b"\n") if line]
        records = [record for record in found if record is not None]
        self.skipped += len(found) - len(records)
        return records


@dataclass
class LaneState:
    """What the journal says of one lane."""

    key: str
    pack: str
    #: A lane counts as running only while its sweep does: one that was cut off is planned again.
    status: Literal["planned", "running", "finished", "failed"] = "planned"
    #: Step of its last report, or of its end.
    step: int | None = None
    #: Why it ended, see ``END_REASONS``; None while it has not.
    reason: str | None = None
    #: The decision that ended it as a sentence, or the error.
    message: str | None = None
    #: The number it was decided on.
    value: float | None = None
    #: What that was held against.
    reference: float | None = None
    #: How far apart the two may be.
    threshold: float | None = None
    #: When its own end was recorded; None where it never was, though its pack may have failed.
    ended: datetime | None = None
    #: Attempt of its pack that was under way when it ended.
    attempt: int | None = None
    #: The first decision that would have ended it, had the audit not spared it: ``reason, step, message, value,
    #: reference, threshold, ended, attempt`` as above.
    audited: dict[str, Any] | None = None


@dataclass
class SweepState:
    """Where a sweep stands, from its plan and its journal alone."""

    #: By key, in the plan's order.
    lanes: dict[str, LaneState]
    #: Attempts made, by pack.
    attempts: dict[str, int] = field(default_factory=dict)
    #: Seconds trained by pack, all attempts together. A record's ``seconds`` count from the start of its attempt.
    seconds: dict[str, float] = field(default_factory=dict)
    #: The last driver that did not say it ended; None where there is none.
    driver: Driver | None = None

    @classmethod
    def from_records(cls, plan: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> "SweepState":
        """Replay the records of `Journal.read` over the plan; what they say of packs not in the plan is ignored."""
        keys = [(lane["key"], pack["pack"]) for pack in plan["packs"] for lane in pack["lanes"]]
        state = cls({key: LaneState(key, pack) for key, pack in keys})
        by_pack: dict[str, list[LaneState]] = {pack["pack"]: [] for pack in plan["packs"]}
        for lane in state.lanes.values():
            by_pack[lane.pack].append(lane)
        seconds: dict[str, dict[int, float]] = {}
        for record in records:
            pack = str(record.get("pack"))
            if record["event"] in ("sweep_started", "sweep_ended"):
                state._driver_changed(record)
            elif pack in by_pack:
                state._pack_changed(record, pack, by_pack[pack])
                if record["event"] == "reported" and record.get("seconds") is not None:
                    attempt, spent = record.get("attempt", 1), seconds.setdefault(pack, {})
                    spent[attempt] = max(spent.get(attempt, 0.0), record["seconds"])
        state.seconds = {pack: sum(spent.values()) for pack, spent in seconds.items()}
        return state

    @property
    def unfinished(self) -> list[str]:
        """Packs with a lane that has not ended or has failed, in the plan's order."""
        return list(dict.fromkeys(lane.pack for lane in self.lanes.values() if lane.status != "finished"))

    def _driver_changed(self, record: Mapping[str, Any]) -> None:
        self.driver = None
        if record["event"] == "sweep_started":
            self.driver = Driver.from_record(record)
        for lane in self.lanes.values():
            if lane.status == "running":
                lane.status = "planned"

    def _pack_changed(self, record: Mapping[str, Any], pack: str, lanes: list[LaneState]) -> None:
        match record["event"]:
            case "pack_started":
                self.attempts[pack] = max(self.attempts.get(pack, 0) + 1, record.get("attempt") or 0)
                for lane in (lane for lane in lanes if lane.status != "finished"):
                    lane.status, lane.reason, lane.message, lane.ended = "running", None, None, None
            case "reported":
                for lane in (lane for lane in lanes if lane.status == "running"):
                    lane.step = record.get("step")
            case "pack_failed":
                for lane in (lane for lane in lanes if lane.status in ("planned", "running")):
                    lane.status, lane.reason, lane.message = "failed", "failed", record.get("error")
            case "lane_ended":
                for lane in (lane for lane in lanes if lane.key == record.get("key")):
                    _end(lane, record, record.get("attempt", self.attempts.get(pack)))
            case "lane_audited":
                for lane in (lane for lane in lanes if lane.key == record.get("key")):
                    if lane.audited is None or record["step"] < lane.audited["step"]:
                        lane.audited = _decided(record, record.get("attempt", self.attempts.get(pack)))


def _record(line: bytes) -> dict[str, Any] | None:
    """The record on a line of a journal; None where there is no whole one."""
    try:
        record = json.loads(line)
        datetime.fromisoformat(record["time"])
    except (ValueError, TypeError, KeyError):
        return None
    return record if record.get("event") in RECORD_KINDS else None


def _decided(record: Mapping[str, Any], attempt: int | None) -> dict[str, Any]:
    """What was decided on a lane, as its state names it."""
    names = ("reason", "step", "message", "value", "reference", "threshold")
    decided = {name: record.get(name) for name in names}
    return {**decided, "ended": datetime.fromisoformat(record["time"]), "attempt": attempt}


def _end(lane: LaneState, record: Mapping[str, Any], attempt: int | None) -> None:
    failed = record.get("reason") == "failed"
    if failed and lane.status == "finished":
        return
    lane.status = "failed" if failed else "finished"
    for name, value in _decided(record, attempt).items():
        setattr(lane, name, value)


def _plain(value: Any) -> Any:
    """``value`` as JSON can say it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
