"""The matrix as a table for a terminal; it says the same without colour."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from orchestrator.results.cells import Cell
from orchestrator.results.matrix import Matrix
from orchestrator.results.wording import Wording

#: Headings are broken beyond this width where the numbers below them need no more.
_HEADING = 14
#: The labels of rows are broken beyond one part in so many of the terminal's width.
_ROW_PART = 3
#: Spaces that the table puts between two columns.
_GAP = 2


@dataclass(frozen=True)
class Drawn:
    """A matrix that rich draws into whatever width there is.

    Rows down, columns across. Columns that do not fit beside each other come below each other: no number is broken.
    """

    matrix: Matrix

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wording = Wording(self.matrix)
        most = max(options.max_width // _ROW_PART, min(_HEADING, options.max_width // 2))
        labels = min(_widest([self.matrix.row_parameter, *self.matrix.rows]), most)
        for columns in _parts(wording, options.max_width - labels):
            yield _table(wording, columns, labels)
            yield Text()
        yield Text("\n".join(wording.caption()))


def render(matrix: Matrix) -> Drawn:
    """The matrix to print on a terminal: each cell the mean, its interval, and how trials ended where not completed."""
    return Drawn(matrix)


def _table(wording: Wording, columns: dict[tuple[str, ...], int], labels: int) -> Table:
    """Some columns of the matrix with their widths, beside labels of this width."""
    matrix = wording.matrix
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(Text(matrix.row_parameter), overflow="fold", width=labels)
    for column, width in columns.items():
        table.add_column(Text("\n".join(column) or matrix.metric), overflow="fold", width=width)
    for row in matrix.rows:
        table.add_row(Text(row), *(_text(wording, matrix.cells.get((row, column))) for column in columns))
    return table


def _parts(wording: Wording, room: int) -> Iterator[dict[tuple[str, ...], int]]:
    """The columns with their widths, in parts that fit into so many characters; at least one in each."""
    part: dict[tuple[str, ...], int] = {}
    matrix = wording.matrix
    for column in wording.columns:
        lines = (line for row in matrix.rows for line in wording.lines(matrix.cells.get((row, column))))
        heading = min(_widest(column or (matrix.metric,)), _HEADING)
        width = min(max(_widest(lines), heading), room - _GAP)
        if part and sum(part.values()) + width + _GAP * (len(part) + 1) > room:
            yield part
            part = {}
        part[column] = width
    yield part


def _widest(lines: Iterable[str]) -> int:
    return max((Text(line).cell_len for line in lines), default=0)


def _text(wording: Wording, cell: Cell | None) -> Text:
    style = "" if cell is None else "bold" if cell.best else "dim" if cell.excluded is not None else ""
    number, *more = wording.lines(cell) or [""]
    return Text("\n").join([Text(number, style=style), *map(Text, more)])
