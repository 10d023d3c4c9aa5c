"""Where a sweep stands, from its plan and its journal alone: running or not, from any shell, without Ray or PyTorch."""

import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from orchestrator.picture import Picture, label, standing, training
from orchestrator.quantities import clock, size
from orchestrator.results.journal import Journal, SweepState, load_plan
from orchestrator.results.schema import END_REASONS
from orchestrator.results.store import Store
from orchestrator.sweep.stopping import rung_steps

#: Seconds for which the measured size of a run's folder is good enough: it may hold a hundred thousand files.
_DISK_SECONDS = 30.0
#: Cells named among the best.
_BEST = 5
#: Ends after which what a pack measured is no result.
_LOST = frozenset({"diverged", "rank_collapse", "stalled", "failed"})

#: ``alive`` on this host; ``elsewhere``: begun on another host, which cannot be seen from here; ``vanished`` without a
#: word; ``ended`` in order; ``none``: nobody has begun.
DriverState = Literal["alive", "elsewhere", "vanished", "ended", "none"]


@dataclass(frozen=True)
class PackStatus:
    """One pack, as its last report has it."""

    pack: str
    cell: str
    nuisance: dict[str, Any]
    #: Steps done, and planned.
    step: int
    steps: int
    #: The last mean of the metric over its lanes, and the step it was measured at; None where it has none.
    value: float | None
    value_step: int | None
    #: Rank warnings in that report.
    warnings: int

    @property
    def label(self) -> str:
        """Its cell and setting."""
        return label(self.cell, self.nuisance)


@dataclass(frozen=True)
class Failure:
    """The last failure of a pack that has not got over it."""

    pack: str
    cell: str
    nuisance: dict[str, Any]
    kind: str | None
    error: str
    #: Whether it is tried again by itself.
    again: bool

    def __str__(self) -> str:
        return f"{label(self.cell, self.nuisance)}{', to be tried again' * self.again}: {self.error}"


@dataclass(frozen=True)
class Disk:
    """Bytes that the run's folder takes, and that are free where it is."""

    used: int
    free: int


@dataclass(frozen=True)
class Status:
    """A sweep at one moment. Times are UTC without zone."""

    name: str
    #: The moment.
    at: datetime
    metric: str
    driver: DriverState
    #: Host and process of the driver that did not say it ended.
    host: str | None
    pid: int | None
    #: When the last driver began and ended, and when anything was heard last.
    began: datetime | None
    ended: datetime | None
    #: Why it ended: ``finished``, a signal's name, ``failures`` or ``disk_full``.
    ended_by: str | None
    heard: datetime | None
    #: Seconds that what is planned takes at the pace of this driver; None where there is no pace. Stopping shortens it.
    seconds_left: float | None
    #: Trials by state, in the order of their life; those at zero left out.
    trials: dict[str, int]
    #: Packs that reached each rung, by its step; empty without halving.
    rungs: dict[int, list[str]]
    #: The best pack of every cell by its last report, the best cell first.
    best: list[PackStatus]
    #: Packs that train now.
    at_work: list[PackStatus]
    #: Packs not yet ended whose last report had rank warnings.
    warned: list[PackStatus]
    failures: list[Failure]
    #: None where the run is not on a disk of this machine.
    disk: Disk | None
    #: What the journal says of every trial.
    state: SweepState
    #: The cell of each pack.
    cells: dict[str, str]

    @property
    def running(self) -> bool:
        """Whether it is being run, as far as can be seen from here."""
        return self.driver in ("alive", "elsewhere")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; times are ISO 8601, UTC."""
        plain = {name: _plain(value) for name, value in vars(self).items() if name not in ("state", "cells")}
        lanes = [{"cell": self.cells[lane.pack], **_plain(lane)} for lane in self.state.lanes.values()]
        return plain | {"running": self.running, "lanes": lanes}

    def picture(self) -> Picture:
        """The same in a dozen lines."""
        total = len(self.state.lanes)
        ended = sum(n for state, n in self.trials.items() if state in END_REASONS)
        lines = {
            "best": [
                standing(each.value, each.value_step, each.label)
                for each in self.best[:_BEST]
                if each.value is not None and each.value_step is not None
            ],
            "warned": [f"{each.warnings} at step {each.step}  {each.label}" for each in self.warned],
            "failed": [str(each) for each in self.failures],
            "now": [
                training(each.step, each.steps, self.metric, each.value, each.warnings, each.label)
                for each in self.at_work
            ],
            "disk": [f"{size(self.disk.used)} used, {size(self.disk.free)} free"] if self.disk else [],
        }
        rungs = {step: len(packs) for step, packs in self.rungs.items()}
        return Picture(self.name, self._note(), self.trials, ended, total, rungs, lines)

    def _note(self) -> str:
        heard = f"last heard {clock((self.at - self.heard).total_seconds())} ago" if self.heard else ""
        left = "" if self.seconds_left is None else f", about {clock(self.seconds_left)} left"
        match self.driver:
            case "alive":
                return f"being run{left} (process {self.pid}, {heard})"
            case "elsewhere":
                return f"begun on {self.host} (process {self.pid}, not to be seen from here){left}, {heard}"
            case "vanished":
                return f"not being run: process {self.pid} is gone without a word, {heard}"
            case "ended":
                assert self.ended is not None
                return f"not being run: ended {self.ended:%Y-%m-%d %H:%M} UTC ({self.ended_by})"
        return "not being run: not begun yet"


class Watch:
    """A run's folder looked at again and again: of its journal only what is new is read."""

    def __init__(self, store: Store) -> None:
        self._store, self._journal = store, Journal(store)
        self._plan = load_plan(store)
        self._records: list[dict[str, Any]] = []
        self._disk: Disk | None = None
        self._measured = -_DISK_SECONDS

    def look(self) -> tuple[Status, bool]:
        """How things stand, and whether the journal had anything new."""
        new = self._journal.read_on()
        self._records += new
        if time.monotonic() - self._measured >= _DISK_SECONDS:
            self._disk, self._measured = _disk(self._store), time.monotonic()
        now = datetime.now(UTC).replace(tzinfo=None)
        return status(self._plan, self._records, now, self._disk), bool(new)


def status(
    plan: Mapping[str, Any], records: Sequence[Mapping[str, Any]], now: datetime, disk: Disk | None = None
) -> Status:
    """Work out where a sweep stands.

    Args:
        plan: what ``plan.json`` holds.
        records: its journal.
        now: the time, UTC without zone.
        disk: what is known of its folder.
    """
    state = SweepState.from_records(plan, records)
    session = _Session(plan, records)
    driver = _driver_state(state, session)
    if driver == "vanished":  # what it ran was cut off with it
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
        disk=disk,
        state=state,
        cells={pack["pack"]: pack["cell"] for pack in plan["packs"]},
    )


class _Session:
    """What the records say beyond the state of every trial."""

    def __init__(self, plan: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        self._metric = plan["metric"]["name"]
        self.began: datetime | None = None
        self.ended: datetime | None = None
        self.ended_by: str | None = None
        #: When this driver placed its first pack, and the steps of single trials that it has brought since.
        self._first: datetime | None = None
        self._steps = 0
        #: The last report of every pack, the metric and step of the last that had it, and the furthest step.
        self._last: dict[str, Mapping[str, Any]] = {}
        self._value: dict[str, tuple[float, int]] = {}
        self.furthest: Counter[str] = Counter()
        #: The last ``pack_failed`` of packs that have not been placed again.
        self.failed: dict[str, Mapping[str, Any]] = {}
        for record in records:
            self._take(record)
        self.heard = _time(records[-1]) if records else None

    def _take(self, record: Mapping[str, Any]) -> None:
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

    def _reported(self, pack: str, record: Mapping[str, Any]) -> None:
        metrics, step = record.get("metrics") or {}, int(record["step"])
        self._last[pack] = record
        if (value := metrics.get(self._metric)) is not None:
            self._value[pack] = float(value), step
        # What an attempt measures again after a failure or a resume brings the sweep no further.
        self._steps += max(0, step - self.furthest[pack]) * int(metrics.get("lanes") or 1)
        self.furthest[pack] = max(step, self.furthest[pack])

    def pack_status(self, pack: Mapping[str, Any]) -> PackStatus:
        name, last = pack["pack"], self._last.get(pack["pack"], {})
        warnings = int((last.get("metrics") or {}).get("warnings") or 0)
        steps = pack["lanes"][0]["config"]["steps"]
        step, (value, at) = int(last.get("step", 0)), self._value.get(name, (None, None))
        return PackStatus(name, pack["cell"], pack["nuisance"], step, steps, value, at, warnings)

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


def _driver_state(state: SweepState, session: _Session) -> DriverState:
    if state.driver is not None:
        if not state.driver.is_here:
            return "elsewhere"
        return "alive" if state.driver.is_alive else "vanished"
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
    # Sorting keeps the plan's order among equals, as E0M7 and E1M6 are.
    for pack in sorted((pack for pack in packs if pack.value is not None), key=lambda pack: sign * (pack.value or 0.0)):
        of_cell.setdefault(pack.cell, pack)
    return [*of_cell.values()]


def _disk(store: Store) -> Disk | None:
    if "://" in store.uri:
        return None
    return Disk(sum(store.sizes().values()), shutil.disk_usage(Path(store.uri)).free)


def _plain(value: Any) -> Any:
    """``value`` as JSON can say it."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(vars(value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [*map(_plain, value)]
    return value.isoformat() if isinstance(value, datetime) else value
