"""Which lanes and which packs of a sweep go on: pure decisions from what they have reported.

Nothing here knows Ray, clocks or random numbers: the same reports in the same order give the same decisions. A lane is
judged by its own history (`LaneWatch`), a pack against the others (`Asha`), the settings of one pack among themselves
(`halve`). Some of what is to be stopped runs on all the same, to measure what stopping costs (`is_audited`).
"""

import dataclasses
import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

Reason = Literal["asha", "rank_collapse", "stalled", "diverged"]
Scope = Literal["cell", "sweep"]


@dataclass(frozen=True)
class Decision:
    """The end of a lane or a pack, with the numbers it was decided on."""

    reason: Reason
    #: The step of the report it was decided at.
    step: int
    #: The number that was judged; None where it is not finite (the message says what it was).
    value: float | None
    #: What it was held against: the rung's cutoff, the control's rank, the limit; None where there is nothing to hold.
    reference: float | None
    #: The share of the reference that may be lost; None where the value may just not pass the reference.
    threshold: float | None
    #: The same as a plain sentence.
    message: str
    #: It is not carried out: what it was made on runs on, and counts as stopped everywhere else.
    audited: bool = False


@dataclass(frozen=True)
class RankWarning:
    """One matrix whose rank fell too far below its reference."""

    matrix: str
    value: float
    #: The rank it is held against: the control's at the same step, or the run's own at its start.
    reference: float
    #: The share of the reference that may be lost, in (0, 1].
    threshold: float
    message: str


@dataclass(frozen=True)
class RankCheck:
    """One check of all matrices of a lane."""

    #: The step whose ranks were checked.
    step: int
    #: Empty where every matrix is healthy.
    warnings: tuple[RankWarning, ...] = ()


@dataclass(frozen=True)
class LaneReport:
    """What a lane says of itself at a report."""

    step: int
    #: The last training loss, or one since the last report that was NaN or infinite.
    loss: float
    #: None where no validation was due.
    val_loss: float | None
    #: Mean since the last report, in [0, 1]; None for formats without codes.
    stall_ratio: float | None
    #: Checks decided since the last report, oldest first; none while the control has not reached their step.
    rank_checks: tuple[RankCheck, ...] = ()
    #: The last step before the first loss that was no number, 0 where there was none; None where nobody has looked.
    last_good_step: int | None = None


@dataclass(frozen=True)
class LanePolicy:
    """How much a lane is allowed.

    Raises:
        ValueError: a patience under 1, or a limit outside (0, 1].
    """

    #: Consecutive rank checks with a warning that end a lane.
    rank_collapse_patience: int = 2
    #: A stall ratio from here on counts as standing still.
    stall_limit: float = 0.9999
    #: Consecutive reports at the stall limit that end a lane.
    stall_patience: int = 3

    def __post_init__(self) -> None:
        for name in ("rank_collapse_patience", "stall_patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.stall_limit <= 1:
            raise ValueError(f"stall_limit must lie in (0, 1], got {self.stall_limit}")


class LaneWatch:
    """Judges one lane by its own history: diverged before rank_collapse before stalled.

    >>> watch = LaneWatch(LanePolicy(stall_patience=2))
    >>> watch.observe(LaneReport(step=100, loss=3.0, val_loss=3.1, stall_ratio=1.0))
    >>> watch.observe(LaneReport(step=200, loss=3.0, val_loss=3.1, stall_ratio=1.0)).reason
    'stalled'
    """

    def __init__(self, policy: LanePolicy) -> None:
        self.policy = policy
        self._warned_checks = 0
        self._stalled_reports = 0

    def observe(self, report: LaneReport) -> Decision | None:
        """Take in the next report; a decision where the lane must end."""
        return _diverged(report) or self._collapsed(report) or self._stalled(report)

    def state(self) -> dict[str, int]:
        """Plain data that `from_state` takes back."""
        return {"warned_checks": self._warned_checks, "stalled_reports": self._stalled_reports}

    @classmethod
    def from_state(cls, policy: LanePolicy, state: Mapping[str, int]) -> "LaneWatch":
        """A watch that goes on where `state` was taken."""
        watch = cls(policy)
        watch._warned_checks = state["warned_checks"]
        watch._stalled_reports = state["stalled_reports"]
        return watch

    def _collapsed(self, report: LaneReport) -> Decision | None:
        for check in report.rank_checks:
            self._warned_checks = self._warned_checks + 1 if check.warnings else 0
            if self._warned_checks >= self.policy.rank_collapse_patience:
                worst = min(check.warnings, key=_share_left)
                row = f"rank warnings in {self._warned_checks} checks in a row, the last at step {check.step}"
                message = f"{row}: {worst.message}"
                return Decision("rank_collapse", report.step, worst.value, worst.reference, worst.threshold, message)
        return None

    def _stalled(self, report: LaneReport) -> Decision | None:
        ratio, limit = report.stall_ratio, self.policy.stall_limit
        if ratio is None or not ratio >= limit:
            self._stalled_reports = 0
            return None
        self._stalled_reports += 1
        if self._stalled_reports < self.policy.stall_patience:
            return None
        message = f"stall ratio {ratio:.6g} is at the limit {limit:.6g} for {self._stalled_reports} reports in a row"
        return Decision("stalled", report.step, ratio, limit, None, message)


def _diverged(report: LaneReport) -> Decision | None:
    for name, value in (("training loss", report.loss), ("validation loss", report.val_loss)):
        if value is not None and not math.isfinite(value):
            good = "" if report.last_good_step is None else f"; the last good step was {report.last_good_step}"
            message = f"{name} is {value} at step {report.step}{good}"
            return Decision("diverged", report.step, None, None, None, message)
    return None


def _share_left(warning: RankWarning) -> float:
    return warning.value / warning.reference if warning.reference else math.inf


def rung_steps(min_step: int, eta: float, max_step: int) -> tuple[int, ...]:
    """The rungs ``min_step * eta**k`` below ``max_step``, rounded to whole steps, each once.

    >>> rung_steps(100, 2, 1000), rung_steps(1, 1.5, 10)
    ((100, 200, 400, 800), (1, 2, 3, 5, 8))

    Raises:
        ValueError: ``min_step`` under 1, or ``eta`` not a finite number above 1.
    """
    if min_step < 1:
        raise ValueError(f"min_step must be at least 1, got {min_step}")
    _check_eta(eta)
    rungs: list[int] = []
    power = 0
    while (step := round(min_step * eta**power)) < max_step:
        if not rungs or step > rungs[-1]:
            rungs.append(step)
        power += 1
    return tuple(rungs)


def rung_cutoff(values: Iterable[float | None], eta: float) -> float | None:
    """The value up to which a trial belongs to the best ``1/eta`` of a rung (lower is better).

    It is the ``100 / eta`` percentile of the finite values, interpolated linearly between the two nearest as
    `numpy.percentile` does; None with fewer than two finite values.

    >>> rung_cutoff([5.0, 1.0, float("nan"), 3.0, None], eta=2)
    3.0
    """
    finite = sorted(value for value in values if value is not None and math.isfinite(value))
    if len(finite) < 2:
        return None
    share, below = math.modf((len(finite) - 1) / eta)
    lower, upper = finite[int(below)], finite[int(below) + 1]
    # This form cannot overflow; clamped, rounding cannot put the cutoff under the best value.
    return min(max(lower * (1 - share) + upper * share, lower), upper)


class _Entry(NamedTuple):
    """A trial's value on a rung."""

    #: The step it was reported at: the rung's own, or the first report beyond it.
    step: int
    #: None where it is not finite.
    value: float | None


class Asha:
    """Asynchronous successive halving that only stops (Li et al. 2018, arXiv 1810.05934). Lower is better.

    The first report at or beyond a rung puts the trial on it, and on every rung it skipped. At that report and at
    every later one the trial is judged on the highest rung it stands on: it is stopped where its value there is above
    `rung_cutoff` of all values there, its own and those of stopped trials included. So who came first is held against
    those who came after, up to its next rung, and the order decides less. A value that is not finite
    (or None) counts for no cutoff; it is stopped as soon as one trial of the rung is finite. Trials compete only
    within their group.

    What a trial measures after it was stopped enters no rung, and from the moment it is lost nothing that it ever
    measured counts: neither can put the cutoff out of reach of those that go on.

    A report repeated by a retry or a resume replaces the value on its rung; nothing is decided on it again, and a trial
    that was stopped stays stopped. At ``max_step`` and beyond a trial has completed and is stopped no more.

    Raises:
        ValueError: see `rung_steps`.
    """

    def __init__(
        self, min_step: int, eta: float, max_step: int, exempt: Collection[str] = (), audit: float = 0.0
    ) -> None:
        self.rungs = rung_steps(min_step, eta, max_step)
        self.min_step, self.eta, self.max_step = min_step, eta, max_step
        #: Trials that are recorded but never stopped: the control.
        self.exempt = frozenset(exempt)
        #: The share of stops that are not carried out; see `is_audited`.
        self.audit = audit
        #: What each trial measured, by group and rung.
        self._entries: dict[tuple[str, int], dict[str, _Entry]] = {}
        self._stopped: dict[str, Decision] = {}
        self._lost: set[str] = set()
        #: The last step at which each trial was heard.
        self._reached: dict[str, int] = {}

    @property
    def stopped(self) -> Mapping[str, Decision]:
        """The trials stopped so far, the audited among them."""
        return MappingProxyType(self._stopped)

    def lose(self, trial: str) -> None:
        """A trial has ended as lost (it diverged, collapsed or stalled): its values count for no cutoff any more."""
        self._lost.add(trial)

    def decide(self, group: str, trial: str, step: int, value: float | None) -> Decision | None:
        """Take in a report; a decision where the trial must end, or would but for the audit.

        Args:
            group: Trials compete within it; see `group_of`.
            trial: The trial's name, the same over all its attempts.
            step: Steps done.
            value: Lower is better; negate what is to be maximized.
        """
        stopped = self._stopped.get(trial)
        if stopped is not None and step > stopped.step:
            return stopped
        rungs = [rung for rung in self.rungs if rung <= step]
        for rung in rungs:
            entries = self._entries.setdefault((group, rung), {})
            # A later step belongs to a later rung; the same or an earlier one is a retry that measured again.
            if trial not in entries or step <= entries[trial].step:
                entries[trial] = _Entry(step, _finite(value))
        if stopped is not None:
            # A retry measures again what came before; it ends where it ended.
            return stopped if step == stopped.step else None
        repeated = step <= self._reached.get(trial, 0)
        self._reached[trial] = max(step, self._reached.get(trial, 0))
        if repeated or not rungs or step >= self.max_step or trial in self.exempt:
            return None
        decision = self._judged(group, trial, rungs[-1], step)
        if decision is not None:
            decision = dataclasses.replace(decision, audited=is_audited(trial, self.audit))
            self._stopped[trial] = decision
        return decision

    def _judged(self, group: str, trial: str, rung: int, step: int) -> Decision | None:
        entries = self._entries[group, rung]
        at, judged = entries[trial]
        counted = (entry.value for other, entry in entries.items() if other not in self._lost)
        finite = [value for value in counted if value is not None]
        cutoff = rung_cutoff(finite, self.eta)
        if judged is None and finite:
            others = f"{len(finite)} of {len(entries)} trials on the rung of step {rung} have one"
            return Decision("asha", step, None, cutoff, None, f"no finite value at step {at}; {others}")
        if judged is None or cutoff is None or judged <= cutoff:
            return None
        best = f"the cutoff of the best 1 in {self.eta:g} of {len(finite)} values on the rung of step {rung}"
        message = f"{judged:.6g} at step {at} is above {cutoff:.6g}, {best}"
        return Decision("asha", step, judged, cutoff, None, message)

    def state(self) -> dict[str, Any]:
        """Plain data, fit for JSON, that `from_state` takes back."""
        return {
            "min_step": self.min_step,
            "eta": self.eta,
            "max_step": self.max_step,
            "exempt": sorted(self.exempt),
            "audit": self.audit,
            "entries": [
                [group, rung, trial, entry.step, entry.value]
                for (group, rung), entries in self._entries.items()
                for trial, entry in entries.items()
            ],
            "stopped": {trial: dataclasses.asdict(decision) for trial, decision in self._stopped.items()},
            "lost": sorted(self._lost),
            "reached": dict(self._reached),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Asha":
        """An `Asha` that goes on where `state` was taken."""
        asha = cls(state["min_step"], state["eta"], state["max_step"], state["exempt"], state["audit"])
        for group, rung, trial, step, value in state["entries"]:
            asha._entries.setdefault((group, rung), {})[trial] = _Entry(step, value)
        asha._stopped = {trial: Decision(**decision) for trial, decision in state["stopped"].items()}
        asha._lost, asha._reached = set(state["lost"]), dict(state["reached"])
        return asha


def halve(values: Mapping[str, float | None], eta: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Synchronous successive halving among settings that stand at the same step. Lower is better.

    Returns:
        The ``ceil(n / eta)`` best, and the others; each best first, what is not finite last, ties by name.

    >>> halve({"lr=1e-3": 2.1, "lr=1e-2": float("nan"), "lr=1e-4": 2.6}, eta=3)
    (('lr=1e-3',), ('lr=1e-4', 'lr=1e-2'))

    Raises:
        ValueError: ``eta`` is not a finite number above 1.
    """
    _check_eta(eta)

    def order(name: str) -> tuple[float, str]:
        value = _finite(values[name])
        return (math.inf if value is None else value, name)

    ranked = sorted(values, key=order)
    keep = math.ceil(len(ranked) / eta)
    return tuple(ranked[:keep]), tuple(ranked[keep:])


def group_of(scope: str, cell: str) -> str:
    """The group a trial competes in: its own cell, or the one group of the whole sweep.

    Raises:
        ValueError: an unknown scope.
    """
    if scope not in get_args(Scope):
        raise ValueError(f"scope must be one of {', '.join(get_args(Scope))}, got {scope!r}")
    return cell if scope == "cell" else "sweep"


def is_audited(name: str, share: float) -> bool:
    """Whether what is to be stopped runs on as an audit: true of a ``share`` of all names, and for ever.

    >>> [is_audited(name, 0.5) for name in ("p001", "p002", "p003")]
    [True, False, True]
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < share * 2**64


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _check_eta(eta: float) -> None:
    if not (math.isfinite(eta) and eta > 1):
        raise ValueError(f"eta must be a finite number above 1, got {eta}")
