"""What the chunks of a run say that its journal does not: a journal that lost lines, or all of it, is completed.

A worker writes its rows before the driver hears of them, those of steps last: where these are, the report is whole, and
has happened. What the driver alone decided, the stops of whole packs, is found again where the dataset has kept it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any, NamedTuple

import pyarrow as pa

from orchestrator.results.errors import DamagedError
from orchestrator.results.journal import SweepState
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
            known |= {f"{lane.key} audited" for lane in state.lanes.values() if lane.audited is not None}
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
        whole = {(row.key, row.attempt, row.step) for row in self._rows}
        events = self._read("events", _EVENTS)
        #: What the worker decided; the dataset also has what the driver did.
        self._own = [event for event in events if (event["key"], event["attempt"], event["step"]) in whole]
        self._kept = self._read_table(f"dataset/events/{self._pack}.parquet", "events", _EVENTS)
        #: The newest attempt of each lane: what an older one came to holds no more.
        self._newest = {row.key: row.attempt for row in sorted(self._rows, key=lambda row: row.attempt)}

    def missing(self, known: set[str], reported: set[tuple[int, int]], attempts: int) -> list[Record]:
        """Records to add for a journal that knows of these.

        Args:
            known: keys of lanes that ended, and ``<key> audited``.
            reported: attempt and step of each report.
            attempts: how many began.
        """
        if not self._rows:
            return []
        audits, ends = self._audits(), self._ends()
        found = [record for record in self._reports() if (record["attempt"], record["step"]) not in reported]
        found += [audit for key, audit in audits.items() if f"{key} audited" not in known]
        found += [end for key, end in ends.items() if key not in known]
        newest = max(self._newest.values())
        if newest > attempts:
            found.insert(0, {"event": "pack_started", "pack": self._pack, "attempt": newest})
        return found

    def _audits(self) -> dict[str, Record]:
        """What would have ended each lane that an audit spared."""
        audits: dict[str, Record] = {}
        for event in (event for event in (*self._own, *self._kept) if event["kind"] == "audited"):
            if event["key"] not in audits:
                reason, _, message = event["message"].partition(": ")
                audit = self._decided({**event, "kind": reason, "message": message})
                audits[event["key"]] = {**audit, "event": "lane_audited"}
        return audits

    def _ends(self) -> dict[str, Record]:
        """The end of every lane whose newest attempt came to one."""
        measured = {(row["key"], row["attempt"], row["step"]) for row in self._read("layers", _LAYERS)}
        ends = {}
        for row in self._rows:
            at = (row.key, row.attempt, row.step)
            # Its last chunks are all there, and it had not diverged.
            whole = row.step == self._steps[row.key] and None not in (row.loss, row.val_loss) and at in measured
            if whole and row.attempt == self._newest[row.key]:
                event = dict.fromkeys(_EVENTS) | {"kind": "completed", "message": f"all {row.step} steps"}
                end = self._decided(event | {"key": row.key, "attempt": row.attempt, "step": row.step})
                ends[row.key] = {name: value for name, value in end.items() if value is not None}
        for event in (event for event in (*self._own, *self._kept) if event["kind"] in END_REASONS):
            if event["attempt"] >= self._newest.get(event["key"], 1):
                ends[event["key"]] = self._decided(event)
        return ends

    def _decided(self, event: Mapping[str, Any]) -> Record:
        end = {"key": event["key"], "attempt": event["attempt"], "reason": event["kind"], "step": event["step"]}
        numbers = {name: event[name] for name in ("value", "reference", "threshold", "message")}
        return {"event": "lane_ended", "pack": self._pack, **end, **numbers}

    def _reports(self) -> list[Record]:
        """A record for every report, with the mean over the lanes that lived after it and counted."""
        lost = {(e["key"], e["attempt"], e["step"]) for e in self._own if e["kind"] in END_REASONS}
        spared = {key: audit["step"] for key, audit in self._audits().items()}
        values: dict[tuple[int, int], list[float]] = {(attempt, step): [] for _, attempt, step in sorted(lost)}
        living: dict[tuple[int, int], int] = defaultdict(int)
        for row in self._rows:
            value = row.val_loss if self._metric == "val_loss" else row.loss
            if row.val_loss is None or value is None or (row.key, row.attempt, row.step) in lost:
                continue
            counted = values.setdefault((row.attempt, row.step), [])
            living[row.attempt, row.step] += 1
            if row.step < spared.get(row.key, row.step + 1):
                counted.append(value)
        return [
            {
                "event": "reported",
                "pack": self._pack,
                "attempt": at[0],
                "step": at[1],
                "metrics": {"lanes": living[at]} | ({self._metric: fmean(found)} if found else {"lost": True}),
            }
            for at, found in sorted(values.items())
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
