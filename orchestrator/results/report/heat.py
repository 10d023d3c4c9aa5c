"""The matrix as a heat map: every cell with its colour's level, its number, and everything else it has to say."""

from typing import NamedTuple

from orchestrator.results.cells import Cell
from orchestrator.results.matrix import Matrix
from orchestrator.results.report.wording import DASH, spoken
from orchestrator.results.wording import number

#: Colours of the heat map, from the best to the worst.
LEVELS = 9
#: Means beyond this share of all have the last colour, so that one lost cell does not make the others look alike.
_CLIPPED = 0.9


class Tile(NamedTuple):
    """One cell as it is shown."""

    #: The number with its mark and interval; empty where there is none.
    text: str
    #: What else there is to say, one line each.
    notes: list[str]
    #: 0 for the best colour to `LEVELS` - 1; None without a number.
    level: int | None
    best: bool = False
    indistinct: bool = False


class Heat(NamedTuple):
    """A whole matrix as it is shown."""

    matrix: Matrix
    #: Columns that have a cell that is not excluded.
    columns: list[tuple[str, ...]]
    #: By row, a tile for each of `columns`.
    rows: list[tuple[str, list[Tile]]]
    #: Less, or more, of the metric is better; what is not judged has no best cell.
    judged: bool
    #: The means that the first and the last colour stand for; None without any.
    scale: tuple[float, float] | None
    #: Reasons for exclusions, each once.
    excluded: list[str]


def heat(matrix: Matrix, judged: bool = True) -> Heat:
    """The heat map of a matrix; without marks where the metric is not what cells are judged by."""
    columns = [column for column in matrix.columns if not _left_out(matrix, column)]
    means = sorted(cell.mean for cell in matrix.cells.values() if cell.mean is not None)
    scale = _scale(means, matrix.goal)
    rows = [(row, [_tile(matrix.cells.get((row, column)), scale, judged) for column in columns]) for row in matrix.rows]
    why = dict.fromkeys(cell.excluded for cell in matrix.cells.values() if cell.excluded)
    return Heat(matrix, columns, rows, judged, scale, [reason for reason in why if reason])


def _left_out(matrix: Matrix, column: tuple[str, ...]) -> bool:
    """Whether nothing was planned in a column."""
    return all((cell := matrix.cells.get((row, column))) is None or cell.excluded for row in matrix.rows)


def _scale(means: list[float], goal: str) -> tuple[float, float] | None:
    if not means:
        return None
    ordered = means if goal == "minimize" else means[::-1]
    return ordered[0], ordered[min(len(ordered) - 1, int(_CLIPPED * len(ordered)))]


def _tile(cell: Cell | None, scale: tuple[float, float] | None, judged: bool) -> Tile:
    if cell is None:
        return Tile("", [], None)
    if cell.excluded:
        return Tile("", ["excluded"], None)
    notes = [f"n = {cell.n}"] if cell.n else []
    if cell.nuisance:
        notes.append(spoken(cell.nuisance))
    notes += [_end(cell, end) for end in cell.ended if end != "completed"]
    if cell.mean is None:
        return Tile(DASH, notes, None)
    assert scale is not None, "a mean gives the scale"
    sure = "" if cell.interval is None else f" ± {number(cell.interval)}"
    text, level = number(cell.mean) + sure, _level(cell.mean, *scale)
    return Tile(text, notes, level, judged and cell.best, judged and cell.indistinct)


def _level(mean: float, first: float, last: float) -> int:
    share = (mean - first) / (last - first) if last != first else 0.0
    return round(min(1.0, max(0.0, share)) * (LEVELS - 1))


def _end(cell: Cell, end: str) -> str:
    count = "" if cell.ended[end] == cell.replicates else f"{cell.ended[end]} "
    step = f" at step {cell.ended_at[end]:,}" if end in cell.ended_at else ""
    return f"{count}{end.replace('_', ' ')}{step}"
