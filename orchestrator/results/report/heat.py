"""The matrix as a heat map: every cell with its colour's level, its number, and everything else it has to say."""

from typing import NamedTuple

from orchestrator.results.cells import Cell
from orchestrator.results.matrix import Matrix
from orchestrator.results.report.wording import DASH, SIGNS, spoken
from orchestrator.results.wording import Judgement, Wording, number

#: Colours of the heat map, from the best to the worst.
LEVELS = 9
#: Means beyond this share of all have the last colour, so that one lost cell does not make the others look alike.
_CLIPPED = 0.9


class Tile(NamedTuple):
    """One cell as it is shown."""

    #: The number with its interval; empty where there is none.
    text: str
    #: What else there is to say, one line each.
    notes: list[str]
    #: 0 for the best colour to `LEVELS` - 1; None without a number.
    level: int | None
    #: What it is beside the best cell.
    judgement: Judgement = ""


class Heat(NamedTuple):
    """A whole matrix as it is shown."""

    matrix: Matrix
    #: Columns that have a cell that is not excluded.
    columns: list[tuple[str, ...]]
    #: By row, a tile for each of `columns`.
    rows: list[tuple[str, list[Tile]]]
    #: What the judgements of its tiles mean; empty where the metric is not what cells are judged by.
    meanings: dict[Judgement, str]
    #: The means that the first and the last colour stand for; None without any.
    scale: tuple[float, float] | None
    #: Reasons for exclusions, each once.
    excluded: list[str]

    @property
    def key(self) -> str:
        """The signs on the tiles, explained."""
        return "; ".join(f"{SIGNS[judgement]} {meaning}" for judgement, meaning in self.meanings.items())


def heat(matrix: Matrix, judged: bool = True) -> Heat:
    """The heat map of a matrix; without marks where the metric is not what cells are judged by."""
    words = Wording(matrix)
    means = sorted(cell.mean for cell in matrix.cells.values() if cell.mean is not None)
    scale = _scale(means, matrix.goal)
    cells = [(row, [matrix.cells.get((row, column)) for column in words.columns]) for row in matrix.rows]
    rows = [(row, [_tile(words, cell, scale, judged) for cell in across]) for row, across in cells]
    why = dict.fromkeys(cell.excluded for cell in matrix.cells.values() if cell.excluded)
    meanings = words.meanings() if judged else {}
    return Heat(matrix, words.columns, rows, meanings, scale, [reason for reason in why if reason])


def _scale(means: list[float], goal: str) -> tuple[float, float] | None:
    if not means:
        return None
    ordered = means if goal == "minimize" else means[::-1]
    return ordered[0], ordered[min(len(ordered) - 1, int(_CLIPPED * len(ordered)))]


def _tile(words: Wording, cell: Cell | None, scale: tuple[float, float] | None, judged: bool) -> Tile:
    if cell is None:
        return Tile("", [], None)
    if cell.excluded:
        return Tile("", ["excluded"], None)
    notes = [f"n = {cell.n}"] if cell.n else []
    if cell.nuisance:
        notes.append(spoken(cell.nuisance))
    notes += words.ends(cell, "at step ")
    if cell.mean is None:
        return Tile(DASH, notes, None)
    assert scale is not None, "a mean gives the scale"
    sure = "" if cell.interval is None else f" ± {number(cell.interval)}"
    text, level = number(cell.mean) + sure, _level(cell.mean, *scale)
    return Tile(text, notes, level, words.judgement(cell) if judged else "")


def _level(mean: float, first: float, last: float) -> int:
    share = (mean - first) / (last - first) if last != first else 0.0
    return round(min(1.0, max(0.0, share)) * (LEVELS - 1))
