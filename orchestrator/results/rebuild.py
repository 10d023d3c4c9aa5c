"""What the chunks of a run say that its journal does not: a journal that lost lines, or all of it, is completed.

A worker writes its rows before the driver hears of them, so what a chunk says has happened. What the driver alone
decided, the stops of whole packs, is found again where the dataset has kept it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from orchestrator.results.journal import SweepState
from orchestrator.results.parquet import DamagedError
from orchestrator.results.schema import END_REASONS, SCHEMAS
from orchestrator.results.store import Store, chunks

_STEPS = ("key", "attempt", "step", "loss", "val_loss")
_LAYERS = ("key", "attempt", "step")
_EVENTS = ("key", "attempt", "step", "kind", "value", "reference", "threshold", "message")

Record = dict[str, Any]


def missing_records(store: Store, plan: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Records of attempts, reports and ends to add to the journal, pack by pack.

    Args:
        store: the run's folder. Damaged chunks are left out.
        plan: the sweep's plan.
        records: what `Journal.read` gave.
    """
    records = list(records)
    state = SweepState.from_records(plan, records)
    reported: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for record in records:
        if record["event"] == "reported":
            reported[str(record.get("pack"))].add((record.get("attempt", 0), record.get("step", 0)))
    missing: list[Record] = []
    for pack in plan["packs"]:
        if pack["pack"] in state.unfinished:
            known = {lane.key for lane in state.lanes.values() if lane.status == "finished"}
            missing += _Pack(store, plan, pack).missing(
                known, reported[pack["pack"]], state.attempts.get(pack["pack"], 0)
            )
    return missing


class _Row(NamedTuple):
    """A lane's row of the table of steps."""

    key: str
    attempt: int
    step: int
    loss: float | None
    val_loss: float | None


class _Pack:
    """The chunks of one pack."""

    def __init__(self, store: Store, plan: Mapping[str, Any], pack: Mapping[str, Any]) -> None:
        self._store, self._pack, self._metric = store, pack["pack"], plan["metric"]["name"]
        self._steps = {lane["key"]: lane["config"]["steps"] for lane in pack["lanes"]}
        self._rows = [_Row(**row) for row in self._read("steps", _STEPS)]
        events = self._read("events", _EVENTS)
        #: What the worker decided; the dataset also has what the driver did.
        self._own = [event for event in events if event["kind"] in END_REASONS]
        #: The newest attempt of each lane: what an older one came to holds no more.
        self._newest = {row.key: row.attempt for row in sorted(self._rows, key=lambda row: row.attempt)}

    def missing(self, ended: set[str], reported: set[tuple[int, int]], attempts: int) -> list[Record]:
        """Records to add for a journal that knows of these ends, reports (attempt and step) and number of attempts."""
        if not self._rows:
            return []
        ends = self._ends()
        found = [record for record in self._reports() if (record["attempt"], record["step"]) not in reported]
        found += [end for key, end in ends.items() if key not in ended]
        newest = max(self._newest.values())
        if newest > attempts:
            found.insert(0, {"event": "pack_started", "pack": self._pack, "attempt": newest})
        return found

    def _ends(self) -> dict[str, Record]:
        """The end of every lane whose newest attempt came to one."""
        kept = self._read_table(f"dataset/events/{self._pack}.parquet", "events", _EVENTS)
        measured = {(row["key"], row["attempt"], row["step"]) for row in self._read("layers", _LAYERS)}
        ends = {}
        for row in self._rows:
            at = (row.key, row.attempt, row.step)
            # Its last chunks are all there, and it had not diverged.
            whole = row.step == self._steps[row.key] and row.loss is not None and at in measured
            if whole and row.attempt == self._newest[row.key]:
                ends[row.key] = self._end(*at, "completed", message=f"all {row.step} steps")
        for event in (*self._own, *(event for event in kept if event["kind"] in END_REASONS)):
            if event["attempt"] >= self._newest.get(event["key"], 1):
                numbers = {name: event[name] for name in ("value", "reference", "threshold", "message")}
                ends[event["key"]] = self._end(event["key"], event["attempt"], event["step"], event["kind"], **numbers)
        return ends

    def _end(self, key: str, attempt: int, step: int, reason: str, **numbers: Any) -> Record:
        end = {"key": key, "attempt": attempt, "reason": reason, "step": step}
        return {"event": "lane_ended", "pack": self._pack, **end, **numbers}

    def _reports(self) -> list[Record]:
        """A record for every report, with the mean over the lanes that lived after it."""
        lost = {(event["key"], event["attempt"], event["step"]) for event in self._own}
        values: dict[tuple[int, int], list[float]] = defaultdict(list)
        for row in self._rows:
            value = row.val_loss if self._metric == "val_loss" else row.loss
            if row.val_loss is not None and value is not None and (row.key, row.attempt, row.step) not in lost:
                values[row.attempt, row.step].append(value)
        return [
            {
                "event": "reported",
                "pack": self._pack,
                "attempt": attempt,
                "step": step,
                "metrics": {self._metric: float(np.mean(found)), "lanes": len(found)},
            }
            for (attempt, step), found in sorted(values.items())
        ]

    def _read(self, table: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
        paths = chunks(self._store, self._pack, table)
        return [row for path in paths for row in self._read_table(path, table, columns)]

    def _read_table(self, path: str, table: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
        wanted = pa.schema([SCHEMAS[table].field(name) for name in columns])
        try:
            rows: list[dict[str, Any]] = self._store.read_table(path, wanted).to_pylist()
        except (FileNotFoundError, DamagedError):
            return []
        return rows
