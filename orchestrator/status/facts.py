"""What is known of a sweep at one moment, as data and as a picture."""

from dataclasses import dataclass, is_dataclass
from datetime import datetime
from typing import Any, Literal

from orchestrator.picture import Picture, label, standing, training
from orchestrator.quantities import clock, size
from orchestrator.results.journal import SweepState
from orchestrator.results.schema import END_REASONS

#: Cells named among the best.
_BEST = 5

#: ``alive`` on this host; ``elsewhere``: begun on another host, which cannot be seen from here; ``another_folder``:
#: alive, but what it runs is the folder of which this is a copy; ``vanished`` without a word; ``ended`` in order;
#: ``none``: nobody has begun.
DriverState = Literal["alive", "elsewhere", "another_folder", "vanished", "ended", "none"]


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
    #: Settings of the nuisance parameters that it is the mean of; what is above 1 is no setting's own value.
    settings: int
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
class End:
    """Trials of a pack that ended early or failed, at the same step and for the same reason."""

    reason: str
    step: int | None
    #: Cell and setting of their pack.
    label: str
    keys: list[str]
    message: str

    def __str__(self) -> str:
        return f"{self.label} ({' '.join(key[:8] for key in self.keys)})\n{self.message}".rstrip()


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
    #: Seconds that what is planned takes at most: at this driver's pace, with nothing stopped. None without a pace.
    seconds_left: float | None
    #: Trials by state, in the order of their life; those at zero left out.
    trials: dict[str, int]
    #: Packs that reached each rung, by its step; empty without halving.
    rungs: dict[int, list[str]]
    #: The best pack of every cell by its last report, the best cell first; those that are means over several settings
    #: come after those that are not.
    best: list[PackStatus]
    #: Packs that train now.
    at_work: list[PackStatus]
    #: Packs not yet ended whose last report had rank warnings.
    warned: list[PackStatus]
    failures: list[Failure]
    #: Trials that ended before their last step, or failed; what needs somebody first.
    ends: list[End]
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
                standing(each.value, each.value_step, each.settings, each.label)
                for each in self.best[:_BEST]
                if each.value is not None and each.value_step is not None
            ],
            "warned": [f"{each.warnings} at step {each.step}  {each.label}" for each in self.warned],
            "failed": [str(each) for each in self.failures],
            "now": [
                training(each.step, each.steps, self.metric, each.value, each.settings, each.warnings, each.label)
                for each in self.at_work
            ],
            "disk": [f"{size(self.disk.used)} used, {size(self.disk.free)} free"] if self.disk else [],
        }
        rungs = {step: len(packs) for step, packs in self.rungs.items()}
        return Picture(self.name, self._note(), self.trials, ended, total, rungs, lines)

    def _note(self) -> str:
        heard = f"last heard {clock((self.at - self.heard).total_seconds())} ago" if self.heard else ""
        left = "" if self.seconds_left is None else f", at most {clock(self.seconds_left)} left"
        match self.driver:
            case "alive":
                return f"being run{left} (process {self.pid}, {heard})"
            case "elsewhere":
                return f"begun on {self.host} (process {self.pid}, not to be seen from here){left}, {heard}"
            case "another_folder":
                assert self.state.driver is not None
                return f"not being run: process {self.pid} runs {self.state.driver.folder}, not this folder"
            case "vanished":
                return f"not being run: process {self.pid} is gone without a word, {heard}"
            case "ended":
                assert self.ended is not None
                return f"not being run: ended {self.ended:%Y-%m-%d %H:%M} UTC ({self.ended_by})"
        return "not being run: not begun yet"


def _plain(value: Any) -> Any:
    """``value`` as JSON can say it."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(vars(value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [*map(_plain, value)]
    return value.isoformat() if isinstance(value, datetime) else value
