"""What an optimizer gains over AdamW in each format, replicate by replicate: the question of the study.

Two cells that differ in nothing but the optimizer are compared on the replicates they share: the same seed is the same
initial weights and the same batches, so that the difference is surer than either mean.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from orchestrator.results.cells import Cell, Place, interval
from orchestrator.results.matrix import Matrix

OPTIMIZER, BASELINE = "optimizer", "adamw"
#: Metrics in nats a token.
_LOSSES = ("loss", "val_loss", "best_val_loss")

Verdict = Literal["helps", "hurts", "indistinct", "unsure"]


@dataclass(frozen=True)
class Benefit:
    """One cell minus the cell that differs from it by having the baseline's optimizer."""

    #: Parameters of both cells but the optimizer, such as ``{"format": "E5M2", "storage": "nearest"}``.
    where: dict[str, str]
    optimizer: str
    place: Place
    baseline_place: Place
    #: Mean of the paired differences, optimizer minus baseline, in units of the metric; None without a pair.
    difference: float | None
    #: Half the width of its 95 % Student-t interval; None below three pairs, and where a replicate has no number.
    interval: float | None
    #: Pairs of replicates.
    n: int
    #: Replicates of either side that ended without a number: what is left of the others is no estimate.
    undefined: int
    #: Smallest last steps behind the two means, the optimizer's first: unequal where one was stopped early.
    last_steps: tuple[int | None, int | None]
    #: ``helps`` or ``hurts`` where the interval excludes zero, ``indistinct`` where it does not, else ``unsure``.
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def benefits(matrix: Matrix, parameter: str = OPTIMIZER, baseline: str = BASELINE) -> list[Benefit]:
    """Every cell of the matrix against the cell that differs by ``parameter`` being ``baseline``, in rows' order.

    Cells without such a partner are left out, and so are excluded ones; the list is empty where the sweep did not vary
    the parameter.
    """
    axes = (matrix.row_parameter, *matrix.column_parameters)
    if parameter not in axes:
        return []
    at = axes.index(parameter)
    found = []
    for row in matrix.rows:
        for column in matrix.columns:
            values = (row, *column)
            partner = (*values[:at], baseline, *values[at + 1 :])
            cell, base = matrix.cells.get((row, column)), matrix.cells.get((partner[0], partner[1:]))
            if values == partner or cell is None or base is None or cell.excluded or base.excluded:
                continue
            where = {name: value for name, value in zip(axes, values, strict=True) if name != parameter}
            found.append(_benefit(where, values[at], cell, base, matrix.goal))
    return found


def sentences(matrix: Matrix, found: Sequence[Benefit], baseline: str = BASELINE) -> list[str]:
    """The same in words, one sentence an optimizer; and how many verdicts chance alone would give."""
    unit = " nats" if matrix.metric in _LOSSES else f" of {matrix.metric}"
    groups: dict[tuple[str, tuple[str, ...]], list[Benefit]] = defaultdict(list)
    for each in found:
        rest = tuple(value for name, value in each.where.items() if name != matrix.row_parameter)
        groups[each.optimizer, rest].append(each)
    said = []
    for (optimizer, rest), group in groups.items():
        name = " ".join([optimizer, *(f"({value})" for value in rest)])
        parts = [part for verdict in ("helps", "hurts") for part in _clear(verdict, group, matrix, unit)]
        if unclear := [_label(each, matrix) for each in group if each.verdict == "indistinct"]:
            parts.append(f"not distinguishable from {baseline} for {_listed(unclear)}")
        parts.extend(_unsure(group, matrix, unit))
        said.append(f"{name} {'; '.join(parts)}.")
    judged = sum(each.verdict != "unsure" for each in found)
    if judged > 1:
        said.append(f"Of {judged} comparisons at 95 %, chance alone would tell {judged * 0.05:.1f} apart.")
    return said


def _benefit(where: dict[str, str], optimizer: str, cell: Cell, base: Cell, goal: str) -> Benefit:
    differences = [value - base.values[name] for name, value in cell.values.items() if name in base.values]
    mean = fmean(differences) if differences else None
    undefined = cell.undefined + base.undefined
    std = stdev(differences) if len(differences) > 1 else None
    half = None if undefined else interval(std, len(differences))
    return Benefit(
        where=where,
        optimizer=optimizer,
        place=(cell.row, cell.column),
        baseline_place=(base.row, base.column),
        difference=mean,
        interval=half,
        n=len(differences),
        undefined=undefined,
        last_steps=(cell.last_step, base.last_step),
        verdict=_verdict(mean, half, goal),
    )


def _verdict(mean: float | None, half: float | None, goal: str) -> Verdict:
    if mean is None or half is None:
        return "unsure"
    if abs(mean) <= half:
        return "indistinct"
    return "helps" if (mean > 0) == (goal == "maximize") else "hurts"


def _clear(verdict: str, group: Iterable[Benefit], matrix: Matrix, unit: str) -> list[str]:
    """``helps E5M2 by 0.012 ± 0.004 nats (n = 3)``, the largest first."""
    told = sorted((each for each in group if each.verdict == verdict), key=lambda each: -abs(each.difference or 0.0))
    return [
        f"{verdict} {_label(each, matrix)} by {abs(each.difference or 0.0):.3g} ± {each.interval:.2g}{unit} "
        f"(n = {each.n}{_unequal(each)})"
        for each in told
    ]


def _unsure(group: Iterable[Benefit], matrix: Matrix, unit: str) -> list[str]:
    few, lost = [], []
    for each in (each for each in group if each.verdict == "unsure"):
        if each.undefined or each.difference is None:
            lost.append(_label(each, matrix))
        else:
            few.append(f"{_label(each, matrix)} {each.difference:+.3g}{_unequal(each)}")
    said = []
    if few:
        said.append(
            f"with fewer than three pairs, no verdict, only differences in{unit.removeprefix(' of')}: {_listed(few)}"
        )
    if lost:
        said.append(f"undefined where replicates ended without a number: {_listed(lost)}")
    return said


def _label(each: Benefit, matrix: Matrix) -> str:
    return each.where.get(matrix.row_parameter, " ".join(each.where.values()))


def _unequal(each: Benefit) -> str:
    mine, theirs = each.last_steps
    return "" if mine == theirs else f", at step {mine} against {theirs}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
