"""What a run says, in sentences: the best cell and what cannot be told from it, what each optimizer gains."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from orchestrator.results.cells import Cell
from orchestrator.results.intervals import LEAST_REPLICATES
from orchestrator.results.paired import sentences
from orchestrator.results.report.run import ReportedRun
from orchestrator.results.report.wording import DASH, listed, place_name, spoken
from orchestrator.results.wording import Wording, number

#: Most sentences on optimizers; more of them are counted.
_TOLD = 8
#: How comparisons are counted, by verdict.
_OUTCOMES = {"helps": "helps", "hurts": "hurts", "indistinct": "not distinguishable", "unsure": "no verdict"}
#: Why a cell cannot be held against another one, by the `Comparison`'s word for it.
_WHY = {
    "few": f"fewer than {LEAST_REPLICATES} replicates that both have",
    "undefined": "replicates without a number",
    "steps": "pairs that ended at different steps",
}


def answer(run: ReportedRun) -> list[str]:
    """The sentences that a report begins with, the most important first."""
    said = [_progress(run)] if run.unfinished else []
    best = run.best
    if best is None:
        return [*said, f"No trial has a {run.matrix.metric} yet: there is no answer."]
    gains = _gains(run)
    best_cell = [_best(run, best), *_indistinct(run, best), *_control(run, best)]
    # What an optimizer gains is the question; but that it cannot be said is no answer to begin with.
    is_judged = any(benefit.verdict != "unsure" for benefit in run.benefits)
    said += [*gains, *best_cell] if is_judged else [*best_cell, *gains]
    return [*said, *_faults(run)]


def measured(cell: Cell) -> str:
    """A cell's number and how sure it is, such as ``2.578 ± 0.012 (n = 3)``; ``n = 2 of 3`` where one has no number."""
    if cell.mean is None:
        return DASH
    of = f" of {cell.replicates}" if cell.n < cell.replicates else ""
    sure = "" if cell.interval is None else f" ± {number(cell.interval)}"
    return f"{number(cell.mean)}{sure} (n = {cell.n}{of})"


def _progress(run: ReportedRun) -> str:
    counts = Counter(trial["reason"] or trial["status"] for trial in run.trials)
    standing = ", ".join(f"{n} {what}" for what, n in counts.items())
    return f"The sweep is not finished: of {len(run.trials)} trials {standing}. What follows may change."


def _best(run: ReportedRun, best: Cell) -> str:
    aim = "highest" if run.matrix.goal == "maximize" else "lowest"
    at = f", at {spoken(best.nuisance)}" if best.nuisance else ""
    ends = [cell.last_step for cell in run.matrix.cells.values() if cell.last_step is not None]
    if best.last_step is not None and best.last_step < max(ends):
        at += f", at step {best.last_step:,} where others are at {max(ends):,}"
    means = [cell.mean for cell in run.matrix.cells.values() if cell.mean is not None]
    beaten = best.mean != (max if run.matrix.goal == "maximize" else min)(means)
    of = " of the cells that are complete" if beaten else ""
    name = place_name((best.row, best.column))
    return f"{name} has the {aim} {run.matrix.metric}{of}: {measured(best)}{at}."


def _indistinct(run: ReportedRun, best: Cell) -> list[str]:
    cells = [cell for cell in run.matrix.cells.values() if cell.mean is not None and not cell.best]
    if not cells:
        return ["It is the only cell with a number."]
    if not any(cell.judged for cell in cells):
        return [
            f"Comparing takes {LEAST_REPLICATES} replicates that both cells have, complete: nothing here says which "
            "cells can be told from it."
        ]
    words = Wording(run.matrix)
    alike = [cell for cell in cells if words.judgement(cell) == "indistinct"]
    unjudged = [cell for cell in cells if words.judgement(cell) == "unjudged"]
    if alike:
        said = [f"Not distinguishable from it: {_names(alike)}."]
    else:
        said = ["Every cell that can be held against it is distinguishable from it, at 95 % each."]
    if unjudged:
        compared = [cell.against_best.why for cell in unjudged if cell.against_best]
        whys = dict.fromkeys(_WHY[why] for why in compared if why)
        said.append(f"{_names(unjudged)} cannot be held against it: {', or '.join(whys)}.")
    return said


def _names(cells: Iterable[Cell]) -> str:
    return listed(place_name((cell.row, cell.column)) for cell in cells)


def _control(run: ReportedRun, best: Cell) -> list[str]:
    """The control's own number, where it is not the best; of several controls the best one's."""
    controls = [cell for cell in run.matrix.cells.values() if cell.control and cell.mean is not None]
    if not controls or best.control:
        return []
    sign = -1.0 if run.matrix.goal == "maximize" else 1.0
    control = min(controls, key=lambda cell: sign * (cell.mean or 0.0))
    return [f"The control, {place_name((control.row, control.column))}, has {measured(control)}."]


def _gains(run: ReportedRun) -> list[str]:
    """What each optimizer gains; of very many comparisons how many came out which way."""
    told = sentences(run.matrix, run.benefits)
    if len(told) <= _TOLD:
        return told
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for benefit in run.benefits:
        counts[benefit.optimizer][_OUTCOMES[benefit.verdict]] += 1
    said = [
        f"{optimizer} against adamw, in {found.total()} cells: {', '.join(f'{what} {n}' for what, n in found.items())}."
        for optimizer, found in counts.items()
    ]
    return [*said, "Each comparison stands beside the matrix, at 95 % by itself."]


def _faults(run: ReportedRun) -> list[str]:
    said = []
    if failed := sum(trial["reason"] == "failed" for trial in run.trials):
        said.append(f"{failed} trial{'s' if failed > 1 else ''} failed and count for nothing: see below.")
    if run.damaged:
        files = "files" if run.damaged > 1 else "file"
        said.append(f"{run.damaged} damaged {files} could not be read: the rows in them are missing from all of this.")
    return said
