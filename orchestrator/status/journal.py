"""Where a sweep stands, worked out from its plan and the records of its journal."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from orchestrator.results.journal import SweepState
from orchestrator.results.planned import parameter, with_role
from orchestrator.results.schema import END_REASONS, TOLD_FIRST
from orchestrator.results.store import Store
from orchestrator.status.facts import Disk, DriverState, End, Failure, PackStatus, Status
from orchestrator.sweep.stopping import rung_steps

#: Ends after which what a pack measured is no result.
_LOST = frozenset({"diverged", "rank_collapse", "stalled", "failed"})


def status(
    plan: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    now: datetime,
    disk: Disk | None = None,
    store: Store | None = None,
) -> Status:
    """Work out where a sweep stands.

    Args:
        plan: what ``plan.json`` holds.
        records: its journal.
        now: the time, UTC without zone.
        disk: what is known of its folder.
        store: its folder; None is the one that the journal names.
    """
    state = SweepState.from_records(plan, records)
    session = _Session(plan, records)
    driver = _driver_state(state, session, store)
    if driver in ("vanished", "another_folder"):  # what it ran was cut off with it, or is not run here
        for lane in (lane for lane in state.lanes.values() if lane.status == "running"):
            lane.status = "planned"
    packs = {pack["pack"]: session.pack_status(pack) for pack in plan["packs"]}
    lanes = defaultdict(list)
    for lane in state.lanes.values():
        lanes[lane.pack].append(lane)
    open_packs = [name for name in packs if any(lane.status in ("planned", "running") for lane in lanes[name])]
    lost = {name for name in packs if all(lane.reason in _LOST for lane in lanes[name])}
    return Status(
        name=plan["name"],
        at=now,
        metric=plan["metric"]["name"],
        driver=driver,
        host=state.driver and state.driver.host,
        pid=state.driver and state.driver.pid,
        began=session.began,
        ended=session.ended,
        ended_by=session.ended_by,
        heard=session.heard,
        seconds_left=session.seconds_left(state, packs, now) if driver in ("alive", "elsewhere") else None,
        trials=_counts(state),
        rungs=_rungs(plan, session.furthest),
        best=_best(plan, [pack for name, pack in packs.items() if name not in lost]),
        at_work=[packs[name] for name in packs if any(lane.status == "running" for lane in lanes[name])],
        warned=[packs[name] for name in open_packs if packs[name].warnings],
        failures=[session.failure(pack) for pack in plan["packs"] if pack["pack"] in session.failed],
        ends=_ends(state, packs),
        disk=disk,
        state=state,
        cells={pack["pack"]: pack["cell"] for pack in plan["packs"]},
    )


class _Session:
    """What the records say beyond the state of every trial."""

    def __init__(self, plan: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        self._metric, self._nuisance = plan["metric"]["name"], with_role(plan, "nuisance")
        self.began: datetime | None = None
        self.ended: datetime | None = None
        self.ended_by: str | None = None
        #: When this driver placed its first pack, and the steps of single trials that it has brought since.
        self._first: datetime | None = None
        self._steps = 0
        #: The last report of every pack; of the last that had the metric, its value, step and living lanes; and the
        #: furthest step.
        self._last: dict[str, Mapping[str, Any]] = {}
        self._value: dict[str, tuple[float, int, int]] = {}
        self.furthest: Counter[str] = Counter()
        #: The place in the journal of every lane's end, and the step from which an audit spared it.
        self._ended: dict[str, int] = {}
        self._audited: dict[str, int] = {}
        #: The last ``pack_failed`` of packs that have not been placed again.
        self.failed: dict[str, Mapping[str, Any]] = {}
        for place, record in enumerate(records):
            self._take(place, record)
        self.heard = _time(records[-1]) if records else None

    def _take(self, place: int, record: Mapping[str, Any]) -> None:
        pack = str(record.get("pack"))
        match record["event"]:
            case "sweep_started":
                self.began, self.ended, self.ended_by = _time(record), None, None
                self._first, self._steps = None, 0
            case "sweep_ended":
                self.ended, self.ended_by = _time(record), record.get("reason")
            case "pack_started":
                self._first = self._first or _time(record)
                self.failed.pop(pack, None)
            case "pack_failed":
                self.failed[pack] = record
            case "reported":
                self._reported(pack, record)
            case "lane_ended":
                self._ended[str(record.get("key"))] = place
            case "lane_audited":
                self._audited[str(record.get("key"))] = int(record["step"])

    def _reported(self, pack: str, record: Mapping[str, Any]) -> None:
        metrics, step = record.get("metrics") or {}, int(record["step"])
        self._last[pack] = record
        if (value := metrics.get(self._metric)) is not None:
            self._value[pack] = float(value), step, int(metrics.get("lanes") or 0)
        # What an attempt measures again after a failure or a resume brings the sweep no further.
        self._steps += max(0, step - self.furthest[pack]) * int(metrics.get("lanes") or 1)
        self.furthest[pack] = max(step, self.furthest[pack])

    def pack_status(self, pack: Mapping[str, Any]) -> PackStatus:
        name, last = pack["pack"], self._last.get(pack["pack"], {})
        warnings = int((last.get("metrics") or {}).get("warnings") or 0)
        steps = pack["lanes"][0]["config"]["steps"]
        step, (value, at, lanes) = int(last.get("step", 0)), self._value.get(name, (None, None, 0))
        settings = 1 if at is None else self._settings(pack, at, lanes)
        return PackStatus(name, pack["cell"], pack["nuisance"], step, steps, value, at, settings, warnings)

    def _settings(self, pack: Mapping[str, Any], step: int, living: int) -> int:
        """How many settings a report's mean is over; ``living`` lanes were left then, 0 where it does not say."""
        # The journal has ends in their order, so those that lived at a report are the last to end.
        lanes = sorted(pack["lanes"], key=lambda lane: self._ended.get(lane["key"], math.inf))[-living:]
        counted = [lane for lane in lanes if self._audited.get(lane["key"], step + 1) > step]
        return len({json.dumps([parameter(name, pack, lane) for name in self._nuisance]) for lane in counted})

    def failure(self, pack: Mapping[str, Any]) -> Failure:
        record = self.failed[pack["pack"]]
        error = str(record.get("error") or "no reason given")
        return Failure(
            pack["pack"], pack["cell"], pack["nuisance"], record.get("kind"), error, bool(record.get("again"))
        )

    def seconds_left(self, state: SweepState, packs: Mapping[str, PackStatus], now: datetime) -> float | None:
        if self._first is None or not self._steps:
            return None
        given_up = {pack for pack, record in self.failed.items() if not record.get("again")}
        open_lanes = [lane for lane in state.lanes.values() if lane.status != "finished" and lane.pack not in given_up]
        left = sum(packs[lane.pack].steps - packs[lane.pack].step for lane in open_lanes)
        return left * (now - self._first).total_seconds() / self._steps


def _time(record: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(record["time"])


def _driver_state(state: SweepState, session: _Session, store: Store | None) -> DriverState:
    if state.driver is not None:
        if not state.driver.is_here:
            return "elsewhere"
        if not state.driver.is_alive:
            return "vanished"
        return "alive" if store is None or state.driver.is_of(store) else "another_folder"
    return "none" if session.ended is None else "ended"


def _counts(state: SweepState) -> dict[str, int]:
    found = Counter(lane.reason or lane.status for lane in state.lanes.values())
    return {name: found[name] for name in ("planned", "running", *END_REASONS) if found[name]}


def _rungs(plan: Mapping[str, Any], furthest: Mapping[str, int]) -> dict[int, list[str]]:
    rules = plan["space"].get("early_terminate", {})
    if rules.get("type") != "asha" or not plan["packs"]:
        return {}
    steps = plan["packs"][0]["lanes"][0]["config"]["steps"]
    rungs = rung_steps(rules["min_iter"], rules["eta"], steps)
    return {rung: [pack["pack"] for pack in plan["packs"] if furthest.get(pack["pack"], 0) >= rung] for rung in rungs}


def _best(plan: Mapping[str, Any], packs: Iterable[PackStatus]) -> list[PackStatus]:
    sign = 1 if plan["metric"]["goal"] == "minimize" else -1
    of_cell: dict[str, PackStatus] = {}
    measured = [pack for pack in packs if pack.value is not None]
    # Sorting keeps the plan's order among equals, as E0M7 and E1M6 are.
    for pack in sorted(measured, key=lambda pack: (pack.settings > 1, sign * (pack.value or 0.0))):
        of_cell.setdefault(pack.cell, pack)
    return [*of_cell.values()]


def _ends(state: SweepState, packs: Mapping[str, PackStatus]) -> list[End]:
    found: dict[tuple[Any, ...], End] = {}
    for lane in (lane for lane in state.lanes.values() if lane.reason not in (None, "completed")):
        end = End(str(lane.reason), lane.step, packs[lane.pack].label, [], lane.message or "")
        found.setdefault((lane.pack, end.reason, end.step, end.message), end).keys.append(lane.key)
    return sorted(found.values(), key=lambda end: TOLD_FIRST.index(end.reason))
