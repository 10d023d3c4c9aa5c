"""One cell of the matrix: which of its settings stands for it, the mean over replicates, and how sure that is."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

from orchestrator.results.intervals import interval, p_value

#: Where a cell stands: its row, and its column as the values of the column parameters.
Place = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Comparison:
    """One cell minus another, replicate by replicate."""

    #: Mean of the differences, in units of the metric; None without a pair, and where `why` is not ``few``.
    difference: float | None
    #: Half the width of its 95 % Student-t interval; None where `why` says why.
    interval: float | None
    #: Two-sided p value of no difference; None with the interval.
    p: float | None
    #: Replicates that both have.
    n: int
    #: Why there is no interval: fewer than three pairs, replicates without a number, or pairs that ended at different
    #: steps. None where there is one.
    why: Literal["few", "undefined", "steps"] | None

    @property
    def excludes_zero(self) -> bool | None:
        """Whether the interval lies on one side of zero; None without one."""
        if self.difference is None or self.interval is None:
            return None
        return abs(self.difference) > self.interval


@dataclass(frozen=True)
class Cell:
    """One combination of scientific parameters; its numbers are those of the setting chosen."""

    row: str
    column: tuple[str, ...]
    #: Why the plan leaves it out; None where it does not.
    excluded: str | None = None
    #: Its pack is a control that others are held against.
    control: bool = False
    #: The nuisance parameters chosen; None where no setting has a number yet.
    nuisance: dict[str, Any] | None = None
    mean: float | None = None
    #: Sample standard deviation; None below two replicates.
    std: float | None = None
    #: Half the width of the 95 % Student-t interval of the mean; None below three replicates, where one ended without
    #: a number, and where they ended at different steps.
    interval: float | None = None
    #: Replicates with a number.
    n: int = 0
    #: Their numbers, by replicate, such as ``seed=1``.
    values: dict[str, float] = field(default_factory=dict)
    #: The last step of those that did not complete, likewise.
    stopped_at: dict[str, int] = field(default_factory=dict)
    #: Replicates that ended without one, as a diverged run does.
    undefined: int = 0
    #: Settings there were to choose from.
    settings: int = 0
    #: Trials of the chosen setting (of all, where none is chosen).
    replicates: int = 0
    #: The same trials by reason, or by status where they have not ended.
    ended: dict[str, int] = field(default_factory=dict)
    #: The smallest last step of those, by the same key.
    ended_at: dict[str, int] = field(default_factory=dict)
    #: The same counts over all settings of the cell.
    ended_all: dict[str, int] = field(default_factory=dict)
    #: The smallest last step of the replicates behind the mean: where it is short, the mean is of an earlier step.
    last_step: int | None = None
    best: bool = False
    #: Cannot be distinguished from the best (`mark_best`).
    indistinct: bool = False
    #: This cell minus the best; None for the best itself, and without a mean.
    against_best: Comparison | None = None

    @property
    def lacks(self) -> tuple[bool, bool, bool]:
        """Whether a replicate of the setting chosen diverged, is missing, was stopped early."""
        return self.undefined > 0, self.n + self.undefined < self.replicates, bool(self.stopped_at)

    @property
    def judged(self) -> bool:
        """Whether it could be held against the best: what is not is neither told from it nor not."""
        return self.best or (self.against_best is not None and self.against_best.excludes_zero is not None)


class Trial(NamedTuple):
    """What the dataset holds of one lane."""

    #: Its reason, or its status where it has not ended.
    end: str
    #: Last step with a row.
    step: int | None
    #: The metric, finite; None where it is undefined.
    value: float | None
    #: Which replicate of its setting it is, such as ``seed=1``.
    replicate: str = ""

    @property
    def counts(self) -> bool:
        """Whether it enters the mean. A failed one stopped anywhere, for a reason of its machine's."""
        return self.value is not None and self.end != "failed"

    @property
    def undefined(self) -> bool:
        """Whether it ended without a number, as a result and not by a fault."""
        return self.value is None and self.end not in ("planned", "running", "failed")

    @property
    def stopped_at(self) -> int | None:
        """Its last step where it did not complete; None where it did."""
        return None if self.end == "completed" else self.step


class Setting(NamedTuple):
    """The replicates of one choice of the nuisance parameters."""

    nuisance: dict[str, Any]
    trials: list[Trial]

    @property
    def lacks(self) -> tuple[bool, bool, bool]:
        """Whether a replicate diverged, is missing, was stopped early."""
        return (
            any(trial.undefined for trial in self.trials),
            any(not trial.counts and not trial.undefined for trial in self.trials),
            any(trial.counts and trial.stopped_at is not None for trial in self.trials),
        )

    @property
    def values(self) -> list[float]:
        """The numbers that enter the mean."""
        return [trial.value for trial in self.trials if trial.counts and trial.value is not None]


def best_setting(settings: Iterable[Setting], goal: str) -> Setting | None:
    """The setting that stands for a cell; None where none has a number.

    Whole settings come before those in which a replicate diverged (the mean of the survivors alone is no estimate),
    is missing, or was stopped early, in this order.
    """
    sign = -1.0 if goal == "maximize" else 1.0
    able = [setting for setting in settings if setting.values]
    return min(able, key=lambda setting: (*setting.lacks, sign * fmean(setting.values)), default=None)


def build_cell(place: Place, settings: Sequence[Setting], chosen: Setting | None, control: bool) -> Cell:
    """The cell of all settings at one place, with the numbers of the one chosen."""
    every = [trial for setting in settings for trial in setting.trials]
    trials = chosen.trials if chosen else every
    counted = [trial for trial in trials if trial.counts] if chosen else []
    values = chosen.values if chosen else []
    undefined = sum(trial.undefined for trial in trials)
    std = stdev(values) if len(values) > 1 else None
    alike = not undefined and len({trial.stopped_at for trial in counted}) == 1
    return Cell(
        *place,
        control=control,
        nuisance=chosen.nuisance if chosen else None,
        mean=fmean(values) if values else None,
        std=std,
        interval=interval(std, len(values)) if alike else None,
        n=len(values),
        values={trial.replicate: trial.value for trial in counted if trial.value is not None},
        stopped_at={trial.replicate: trial.stopped_at for trial in counted if trial.stopped_at is not None},
        undefined=undefined,
        settings=len(settings),
        replicates=len(trials),
        ended=dict(Counter(trial.end for trial in trials)),
        ended_at=_first_steps((trial.end, trial.step) for trial in trials),
        ended_all=dict(Counter(trial.end for trial in every)),
        last_step=_first_steps(("", trial.step) for trial in counted).get(""),
    )


def _first_steps(steps: Iterable[tuple[str, int | None]]) -> dict[str, int]:
    """The smallest step under each name."""
    known = [(name, step) for name, step in steps if step is not None]
    return {name: min(step for other, step in known if other == name) for name, _ in known}


def compare(cell: Cell, other: Cell) -> Comparison:
    """One cell minus another on the replicates they share.

    The same seed is the same initial weights and the same batches, so that the difference is surer than either mean.
    """
    shared = [name for name in cell.values if name in other.values]
    if cell.undefined or other.undefined:
        return Comparison(None, None, None, len(shared), "undefined")
    if any(cell.stopped_at.get(name) != other.stopped_at.get(name) for name in shared):
        return Comparison(None, None, None, len(shared), "steps")
    differences = [cell.values[name] - other.values[name] for name in shared]
    mean = fmean(differences) if differences else None
    std = stdev(differences) if len(differences) > 1 else None
    half = interval(std, len(differences))
    if mean is None or std is None or half is None:
        return Comparison(mean, None, None, len(shared), "few")
    return Comparison(mean, half, p_value(mean, std, len(shared)), len(shared), None)


def mark_best(cells: dict[Place, Cell], goal: str) -> dict[Place, Cell]:
    """The cells with the best marked, and those that cannot be distinguished from it.

    The best has the best mean of the cells whose trials all completed (of those with a number in every replicate, of
    all, where there is none). A cell is `indistinct` where the 95 % interval of its paired difference from the best
    holds zero: each cell by itself, whatever their number.
    """
    sign = -1.0 if goal == "maximize" else 1.0
    able = {place: sign * cell.mean for place, cell in cells.items() if cell.mean is not None}
    if not able:
        return cells
    best = min(able, key=lambda place: (*cells[place].lacks, able[place]))
    marked = {**cells, best: replace(cells[best], best=True)}
    for place in able:
        if place != best:
            compared = compare(cells[place], cells[best])
            marked[place] = replace(cells[place], indistinct=compared.excludes_zero is False, against_best=compared)
    return marked
