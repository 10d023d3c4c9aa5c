"""What an optimizer gains over AdamW in each format, replicate by replicate: the question of the study.

Two cells that differ in nothing but the optimizer are compared on the replicates they share. How, and what the verdicts
mean: docs/statistics.md.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from orchestrator.results.cells import Cell, Comparison, Place, compare
from orchestrator.results.intervals import CONFIDENCE, LEAST_REPLICATES, holm, plus_minus
from orchestrator.results.matrix import LOSSES, Matrix

OPTIMIZER, BASELINE = "optimizer", "adamw"

Verdict = Literal["helps", "hurts", "indistinct", "unsure"]


@dataclass(frozen=True)
class Benefit:
    """One cell minus the cell that differs from it by having the baseline's optimizer."""

    #: Parameters of both cells but the optimizer, such as ``{"format": "E5M2", "storage": "nearest"}``.
    where: dict[str, str]
    optimizer: str
    place: Place
    baseline_place: Place
    #: Mean of the paired differences, optimizer minus baseline, in units of the metric; None without a pair, and where
    #: `why` is ``undefined`` or ``steps``: what is left then is no estimate.
    difference: float | None
    #: Half the width of its 95 % Student-t interval; None where `why` says why.
    interval: float | None
    #: Two-sided p value of no difference, by itself and adjusted for all comparisons of the matrix (Holm).
    p: float | None
    holm: float | None
    #: Pairs of replicates.
    n: int
    #: Replicates of either side that ended without a number.
    undefined: int
    #: Smallest last steps behind the two means, the optimizer's first: unequal where one was stopped early.
    last_steps: tuple[int | None, int | None]
    #: Why there is no interval: see `Comparison`.
    why: Literal["few", "undefined", "steps"] | None
    #: ``helps`` or ``hurts`` where the interval excludes zero (of a metric that the plan has no goal for: lowers or
    #: raises it), ``indistinct`` where it does not, ``unsure`` without an interval.
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
    adjusted = iter(holm([each.p for each in found if each.p is not None]))
    return [each if each.p is None else replace(each, holm=next(adjusted)) for each in found]


def _benefit(where: dict[str, str], optimizer: str, cell: Cell, base: Cell, goal: str) -> Benefit:
    compared = compare(cell, base)
    return Benefit(
        where=where,
        optimizer=optimizer,
        place=(cell.row, cell.column),
        baseline_place=(base.row, base.column),
        difference=compared.difference,
        interval=compared.interval,
        p=compared.p,
        holm=None,
        n=compared.n,
        undefined=cell.undefined + base.undefined,
        last_steps=(cell.last_step, base.last_step),
        why=compared.why,
        verdict=_verdict(compared, goal),
    )


def _verdict(compared: Comparison, goal: str) -> Verdict:
    if compared.difference is None or compared.excludes_zero is None:
        return "unsure"
    if not compared.excludes_zero:
        return "indistinct"
    return "helps" if (compared.difference > 0) == (goal == "maximize") else "hurts"


def sentences(matrix: Matrix, found: Sequence[Benefit], baseline: str = BASELINE) -> list[str]:
    """The same in words, one sentence an optimizer; and what is left of them for there being several.

    Differences without an interval are not said.
    """
    if not found:
        return []
    if (there := max(each.n for each in found)) < LEAST_REPLICATES:
        names = _listed(list(dict.fromkeys(each.optimizer for each in found)))
        return [
            f"Against {baseline} no verdict on {names}: that takes {LEAST_REPLICATES} replicates that both have, "
            f"and there {'is' if there == 1 else 'are'} {there or 'none yet'}."
        ]
    groups: dict[tuple[str, ...], list[Benefit]] = defaultdict(list)
    for each in found:
        rest = [value for name, value in each.where.items() if name != _across(each, matrix)]
        groups[each.optimizer, *rest].append(each)
    said = [_sentence(names, group, matrix, baseline) for names, group in groups.items()]
    return [*said, *_of_several(found, matrix)]


def _sentence(names: tuple[str, ...], group: Sequence[Benefit], matrix: Matrix, baseline: str) -> str:
    subject = " ".join([names[0], *(f"({value})" for value in names[1:])])
    parts = [_told(verdict, group, matrix) for verdict in ("helps", "hurts")]
    indistinct = [_label(each, matrix) for each in group if each.verdict == "indistinct"]
    whys = [(_label(each, matrix), _why(each, matrix, baseline)) for each in group if each.verdict == "unsure"]
    unsure = [f"{label} ({why})".lstrip() for label, why in whys]
    if indistinct:
        parts.append(f"not distinguishable from {baseline}{_for(indistinct)}")
    if unsure:
        parts.append(f"not judged{_for(unsure)}")
    text = "; ".join(part for part in parts if part)
    return f"{subject} {'is ' if text.startswith('not') else ''}{text}."


def _told(verdict: str, group: Sequence[Benefit], matrix: Matrix) -> str:
    """``helps E5M2 by 0.012 ± 0.004 nats, E7M0 by 0.010 ± 0.006 nats, n = 3``, the largest first."""
    told = [
        (each, abs(each.difference), each.interval)
        for each in group
        if each.verdict == verdict and each.difference is not None and each.interval is not None
    ]
    if not told:
        return ""
    alike, nats = len({each.n for each, _, _ in told}) == 1, matrix.metric in LOSSES
    by = []
    for each, size, half in sorted(told, key=lambda one: -one[1]):
        notes = [*([] if alike else [f"n = {each.n}"]), *_stopped(each, matrix)]
        amount = f"{plus_minus(size, half)}{' nats' * nats}{_in_brackets(notes)}"
        by.append(f"{_label(each, matrix)} by {amount}".lstrip())
    n = f", n = {told[0][0].n}" if alike else ""
    if nats:
        return f"{verdict} {_listed(by)}{n}"
    lower = (verdict == "helps") == (matrix.goal == "minimize")
    return f"{'lowers' if lower else 'raises'} {matrix.metric} for {_listed(by)}{n}"


def _of_several(found: Sequence[Benefit], matrix: Matrix) -> list[str]:
    """How many verdicts chance alone would give, and which hold when all together are to be sure."""
    judged = [each for each in found if each.holm is not None]
    if len(judged) < 2:
        return []
    chance = f"Of {len(judged)} comparisons at 95 %, chance alone would tell {len(judged) * (1 - CONFIDENCE):.2g} apart"
    told = [each for each in judged if each.verdict != "indistinct"]
    if not told:
        return [f"{chance}."]
    held = [each for each in told if each.holm is not None and each.holm <= 1 - CONFIDENCE]
    names = _listed([" ".join([each.optimizer, *each.where.values()]) for each in held]) or "none"
    return [f"{chance}; at 95 % for all together (Holm) there hold: {'all' if held == told else names}."]


def _why(each: Benefit, matrix: Matrix, baseline: str) -> str:
    """Why there is no verdict."""
    if each.why == "undefined":
        trials = sum(matrix.cells[place].replicates for place in (each.place, each.baseline_place))
        return f"{each.undefined} of {trials} replicates without a number"
    if each.why == "steps":
        mine, theirs = each.last_steps
        return "ended at different steps" if mine == theirs else f"at step {mine}, {baseline} at {theirs}"
    return f"n = {each.n}"


def _stopped(each: Benefit, matrix: Matrix) -> list[str]:
    """At which step both sides stand, where they did not complete."""
    return [f"at step {each.last_steps[0]}"] if matrix.cells[each.place].stopped_at else []


def _across(each: Benefit, matrix: Matrix) -> str:
    """The parameter whose values a sentence goes through: the rows', or the first, where the optimizer has the rows."""
    return matrix.row_parameter if matrix.row_parameter in each.where else next(iter(each.where), "")


def _label(each: Benefit, matrix: Matrix) -> str:
    return each.where.get(_across(each, matrix), "")


def _for(labels: Sequence[str]) -> str:
    """`` for E3M4, E4M3``; nothing where the optimizer is all that the sweep varied."""
    return f" for {_listed(labels)}" if any(label.strip() for label in labels) else ""


def _in_brackets(notes: Sequence[str]) -> str:
    return f" ({', '.join(notes)})" if notes else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
