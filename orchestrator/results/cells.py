"""One cell of the matrix: which of its settings stands for it, the mean over replicates, and how sure that is."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any, NamedTuple

from scipy.special import stdtrit

CONFIDENCE = 0.95
#: Fewer replicates than this get no interval: with two, the t quantile is 12.7 and says nothing.
LEAST_REPLICATES = 3
#: Where a cell stands: its row, and its column as the values of the column parameters.
Place = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Cell:
    """One combination of scientific parameters; its numbers are those of its `best_setting`."""

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
    #: Half the width of the 95 % Student-t interval of the mean; None below three replicates.
    interval: float | None = None
    #: Replicates with a number.
    n: int = 0
    #: Their numbers, by replicate, such as ``seed=1``.
    values: dict[str, float] = field(default_factory=dict)
    #: Replicates that ended without one, as a diverged run does.
    undefined: int = 0
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
    #: Not the best, but its interval overlaps the best's.
    indistinct: bool = False


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


class Setting(NamedTuple):
    """The replicates of one choice of the nuisance parameters."""

    nuisance: dict[str, Any]
    trials: list[Trial]

    @property
    def values(self) -> list[float]:
        """The numbers that enter the mean."""
        return [trial.value for trial in self.trials if trial.counts and trial.value is not None]


def best_setting(settings: Iterable[Setting], goal: str) -> Setting | None:
    """The setting that stands for a cell; None where none has a number.

    Settings in which every replicate is defined come before settings in which one diverged: the mean of the survivors
    alone is no estimate.
    """
    sign = -1.0 if goal == "maximize" else 1.0
    able = [setting for setting in settings if setting.values]
    return min(able, key=lambda s: (any(t.undefined for t in s.trials), sign * fmean(s.values)), default=None)


def build_cell(place: Place, settings: Sequence[Setting], goal: str, control: bool) -> Cell:
    """The cell of all settings at one place."""
    every = [trial for setting in settings for trial in setting.trials]
    best = best_setting(settings, goal)
    trials = best.trials if best else every
    values = best.values if best else []
    std = stdev(values) if len(values) > 1 else None
    return Cell(
        *place,
        control=control,
        nuisance=best.nuisance if best else None,
        mean=fmean(values) if values else None,
        std=std,
        interval=interval(std, len(values)),
        n=len(values),
        values={t.replicate: t.value for t in trials if t.counts and t.value is not None} if best else {},
        undefined=sum(trial.undefined for trial in trials),
        replicates=len(trials),
        ended=dict(Counter(trial.end for trial in trials)),
        ended_at=_first_steps((trial.end, trial.step) for trial in trials),
        ended_all=dict(Counter(trial.end for trial in every)),
        last_step=_first_steps(("", trial.step) for trial in trials if trial.counts).get(""),
    )


def interval(std: float | None, n: int) -> float | None:
    """Half the width of the two-sided 95 % Student-t interval of a mean; None below `LEAST_REPLICATES`."""
    if std is None or n < LEAST_REPLICATES:
        return None
    return float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * std / math.sqrt(n)


def _first_steps(steps: Iterable[tuple[str, int | None]]) -> dict[str, int]:
    """The smallest step under each name."""
    known = [(name, step) for name, step in steps if step is not None]
    return {name: min(step for other, step in known if other == name) for name, _ in known}


def mark_best(cells: dict[Place, Cell], goal: str) -> dict[Place, Cell]:
    """The cells with the best marked, and those that cannot be told from it."""
    means = {place: cell.mean for place, cell in cells.items() if cell.mean is not None}
    if not means:
        return cells
    best = (max if goal == "maximize" else min)(means, key=means.__getitem__)
    marked = {**cells, best: replace(cells[best], best=True)}
    for place, cell in cells.items():
        if place != best and _overlap(cell, cells[best]):
            marked[place] = replace(cell, indistinct=True)
    return marked


def _overlap(a: Cell, b: Cell) -> bool:
    if a.mean is None or b.mean is None or a.interval is None or b.interval is None:
        return False
    return abs(a.mean - b.mean) <= a.interval + b.interval
