"""The matrix as a table for a terminal; it says the same without colour."""

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.results.cells import Cell
from orchestrator.results.matrix import Matrix

_SHORT = {"rank_collapse": "collapsed"}


def render(matrix: Matrix) -> Group:
    """Rows down, columns across; each cell the mean, its interval, and how its trials ended where not completed."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(Text(matrix.row_parameter), overflow="fold")
    columns = [column for column in matrix.columns if not _left_out(matrix, column)]
    for column in columns:
        table.add_column(Text("\n".join(column) or matrix.metric), overflow="fold")
    for row in matrix.rows:
        cells = [matrix.cells.get((row, column)) for column in columns]
        table.add_row(Text(row), *map(_text, cells))
    return Group(table, Text(_caption(matrix)))


def _left_out(matrix: Matrix, column: tuple[str, ...]) -> bool:
    """Whether every cell of a column was excluded: it is named below the table instead."""
    cells = [matrix.cells.get((row, column)) for row in matrix.rows]
    return all(cell is None or cell.excluded is not None for cell in cells)


def _text(cell: Cell | None) -> Text:
    if cell is None:
        return Text("")
    if cell.excluded is not None:
        return Text("excluded", style="dim")
    text = Text("\n").join(Text(_mark(cell, end)) for end in cell.ended if end != "completed" or cell.mean is None)
    if cell.mean is None:
        return text
    number = _number(cell.mean) + ("" if cell.interval is None else f" ±{_number(cell.interval)}")
    number += "*" if cell.best else "~" if cell.indistinct else ""
    value = Text(number, style="bold" if cell.best else "")
    return Text("\n").join([value, text]) if text else value


def _mark(cell: Cell, end: str) -> str:
    """How trials ended, such as ``asha @120``, with how many where it was not all."""
    count = "" if cell.ended[end] == cell.replicates else f"{cell.ended[end]} "
    step = f" @{cell.ended_at[end]}" if end in cell.ended_at else ""
    return f"{count}{_SHORT.get(end, end)}{step}"


def _number(value: float) -> str:
    return f"{value:.3f}" if value == 0 or 0.0005 <= abs(value) < 1000 else f"{value:.2g}"


def _caption(matrix: Matrix) -> str:
    aim = "highest" if matrix.goal == "maximize" else "lowest"
    lines = [
        f"{matrix.metric}, mean over replicates, ± 95 % interval (from three on).",
        f"* {aim}; ~ not told apart from it; @ smallest last step.",
    ]
    if matrix.nuisance_parameters:
        lines.append(f"Chosen in each cell: {', '.join(matrix.nuisance_parameters)}.")
    if left_out := [" ".join(column) for column in matrix.columns if _left_out(matrix, column)]:
        lines.append(f"Excluded for every {matrix.row_parameter}: {', '.join(left_out)}.")
    if matrix.fixed:
        lines.append(f"Everywhere: {', '.join(f'{name} {value}' for name, value in matrix.fixed.items())}.")
    return "\n".join(lines)
