"""What the matrix and its cells say in words and marks, wherever they are shown."""

from collections import Counter
from functools import cached_property
from typing import Literal

from orchestrator.results.cells import Cell
from orchestrator.results.intervals import LEAST_REPLICATES
from orchestrator.results.matrix import LOSSES, Matrix
from orchestrator.results.schema import END_REASONS

#: What takes the place of a number that is undefined.
DASH = "-"
#: How a trial may stand: its reason, or its status where it has not ended.
STANDS = (*END_REASONS, "running", "planned")
#: What a cell is beside the best one; empty where it is told from it, or where there is nothing to tell.
Judgement = Literal["best", "indistinct", "unjudged", ""]
_MARKS: dict[Judgement, str] = {"best": "*", "indistinct": "~", "unjudged": "?", "": ""}
_SHORT = {"rank_collapse": "collapsed"}


class Wording:
    """The words for one matrix. What is alike in most cells is said once, below."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix

    @cached_property
    def columns(self) -> list[tuple[str, ...]]:
        """The columns with a cell that was planned; those excluded for every row are named below instead."""
        return [column for column in self.matrix.columns if not self._left_out(column)]

    @cached_property
    def _usual_n(self) -> int:
        """The number of replicates behind most means; 0 without any."""
        counts = Counter(cell.n for cell in self.matrix.cells.values() if cell.mean is not None)
        return max(counts, key=lambda n: (counts[n], n), default=0)

    @cached_property
    def _any_judged(self) -> bool:
        return any(cell.judged and not cell.best for cell in self.matrix.cells.values())

    def lines(self, cell: Cell | None) -> list[str]:
        """What stands in a cell: the number with its marks, then how its trials ended where not all completed."""
        if cell is None:
            return []
        if cell.excluded is not None:
            return ["excluded"]
        ends = self.ends(cell)
        if cell.mean is None:
            return [DASH, *ends]
        interval = "" if cell.interval is None else f" ±{number(cell.interval)}"
        few = [] if cell.n == self._usual_n else [f"n = {cell.n}"]
        return [f"{number(cell.mean)}{interval}{self.mark(cell)}", *few, *ends]

    def ends(self, cell: Cell, at: str = "@") -> list[str]:
        """How its trials ended where not all completed, such as ``2 asha @120``: how many, and the smallest last step.

        Args:
            cell: a cell that is not excluded.
            at: what stands before the step.
        """
        return [_end(cell, end, at) for end in cell.ended if end != "completed" or cell.mean is None]

    def judgement(self, cell: Cell) -> Judgement:
        """What a cell is beside the best: ``unjudged`` cannot be held against it, where others can be."""
        if cell.best:
            return "best"
        if cell.indistinct:
            return "indistinct"
        return "unjudged" if self._any_judged and cell.mean is not None and not cell.judged else ""

    def mark(self, cell: Cell) -> str:
        """Its judgement as a sign: ``*`` best, ``~`` not distinguishable from it, ``?`` not to be held against it."""
        return _MARKS[self.judgement(cell)]

    def meanings(self) -> dict[Judgement, str]:
        """What the judgements that occur mean, the best cell's first; none where no cell has a number."""
        shown = [cell for cell in self.matrix.cells.values() if cell.mean is not None]
        means = [cell.mean for cell in shown if cell.mean is not None]
        aim, better = ("highest", max) if self.matrix.goal == "maximize" else ("lowest", min)
        beaten = any(cell.best and cell.mean != better(means) for cell in shown)
        every: dict[Judgement, str] = {
            "best": f"{aim}{' of what is complete' if beaten else ''}",
            "indistinct": "not distinguishable from it (95 % each)",
            "unjudged": "cannot be held against it",
        }
        occur = set(map(self.judgement, shown))
        return {judgement: meaning for judgement, meaning in every.items() if judgement in occur}

    def caption(self) -> list[str]:
        """What the numbers and marks mean, and what is the same in all cells."""
        matrix = self.matrix
        shown = [cell for cell in matrix.cells.values() if cell.mean is not None]
        sure = " ± 95 % interval" if any(cell.interval is not None for cell in shown) else ""
        said = [f"{matrix.metric}, mean over replicates{sure}; {self._alike()}."]
        if shown:
            said.append(f"{'; '.join(self._marks(shown))}.")
        if matrix.nuisance_parameters:
            names = ", ".join(matrix.nuisance_parameters)
            choice = matrix.metric in LOSSES and any(cell.settings > 1 for cell in shown)
            optimistic = "; chosen on the replicates shown, so a little flattered" if choice else ""
            said.append(f"In each cell the best by {matrix.objective}: {names}{optimistic}.")
        if left_out := [" ".join(column) for column in matrix.columns if self._left_out(column)]:
            said.append(f"Excluded for every {matrix.row_parameter}: {', '.join(left_out)}.")
        if matrix.fixed:
            said.append(f"Everywhere: {', '.join(f'{name} {value}' for name, value in matrix.fixed.items())}.")
        ended = Counter[str]()
        for cell in matrix.cells.values():
            ended.update(cell.ended_all)
        return [*said, f"Trials: {', '.join(f'{ended[end]} {end}' for end in STANDS if ended[end])}."]

    def _alike(self) -> str:
        n = self._usual_n
        return f"n = {n}, all completed, unless a cell says otherwise" if n else "no cell has a number yet"

    def _marks(self, shown: list[Cell]) -> list[str]:
        """The marks that occur, explained."""
        said = [f"{_MARKS[judgement]} {meaning}" for judgement, meaning in self.meanings().items()]
        if not self._any_judged and len(shown) > 1:
            said.append(f"comparing takes {LEAST_REPLICATES} replicates that both have")
        if any("@" in line for cell in shown for line in self.lines(cell)):
            said.append("@ smallest last step")
        return said

    def _left_out(self, column: tuple[str, ...]) -> bool:
        cells = [self.matrix.cells.get((row, column)) for row in self.matrix.rows]
        return all(cell is None or cell.excluded is not None for cell in cells)


def _end(cell: Cell, end: str, at: str) -> str:
    count = "" if cell.ended[end] == cell.replicates else f"{cell.ended[end]} "
    step = f" {at}{cell.ended_at[end]}" if end in cell.ended_at else ""
    return f"{count}{_SHORT.get(end, end)}{step}"


def number(value: float) -> str:
    """A measurement to as many digits as a reader needs."""
    return f"{value:.3f}" if value == 0 or 0.0005 <= abs(value) < 1000 else f"{value:.2g}"
