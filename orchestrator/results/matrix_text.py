"""The matrix for other programs: Markdown for a page, CSV for a table of numbers."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from orchestrator.facts.markdown import escape, table
from orchestrator.results.cells import Cell, Comparison
from orchestrator.results.matrix import Matrix
from orchestrator.results.planned import label
from orchestrator.results.wording import STANDS, Wording


def to_markdown(matrix: Matrix, sentences: Sequence[str] = ()) -> str:
    """A table in GitHub's Markdown, each cell with its mean, interval, marks and ends.

    Below it stand what those mean, and the sentences as a list.
    """
    wording = Wording(matrix)
    heading = [matrix.row_parameter, *(" ".join(column) or matrix.metric for column in wording.columns)]
    rows = [
        [[row], *(wording.lines(matrix.cells.get((row, column))) for column in wording.columns)] for row in matrix.rows
    ]
    cells = [["<br>".join(map(escape, lines)) for lines in row] for row in rows]
    below = [f"{escape(line)}  " for line in wording.caption()]
    listed = ["", *(f"- {escape(sentence)}" for sentence in sentences)] if sentences else []
    return "\n".join([table(list(map(escape, heading)), cells), "", *below, *listed, ""])


def to_csv(matrix: Matrix) -> str:
    """A row a cell, those excluded included, with all that is known of it; undefined is empty.

    Columns: the parameters, then the fields of `Cell`. Fields of several values have a column for each, such as
    ``ended.asha`` or ``values.seed=1``.
    """
    records = [_record(matrix, cell) for cell in matrix.cells.values()]
    columns = dict.fromkeys((name, key) for name in records[0] for record in records for key in record[name])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(f"{name}.{key}" if key else name for name, key in columns)
    writer.writerows([_plain(record[name].get(key)) for name, key in columns] for record in records)
    return text.getvalue()


def _record(matrix: Matrix, cell: Cell) -> dict[str, Mapping[str, Any]]:
    """Each field with its values by name; a field of one value has it under the empty name."""
    place = {matrix.row_parameter: cell.row, **dict(zip(matrix.column_parameters, cell.column, strict=True))}
    known = {name: value for name, value in asdict(cell).items() if name not in ("row", "column")}
    known["nuisance"] = known["nuisance"] or dict.fromkeys(matrix.nuisance_parameters)
    known["against_best"] = known["against_best"] or {each.name: None for each in fields(Comparison)}
    known["stopped_at"] = {name: known["stopped_at"].get(name) for name in known["values"]}
    known["ended_at"] = {end: known["ended_at"].get(end) for end in STANDS}
    for name in ("ended", "ended_all"):
        known[name] = {end: known[name].get(end, 0) for end in STANDS}
    fixed = place | matrix.fixed | known
    return {name: value if isinstance(value, dict) else {"": value} for name, value in fixed.items()}


def _plain(value: Any) -> str:
    return "" if value is None else label(value)
