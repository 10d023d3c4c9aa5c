"""An answer as bytes of a file: CSV, JSON, Markdown, Parquet or Arrow."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import PurePath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.facts.markdown import escape, table
from orchestrator.results.parquet import encode_table

#: Suffixes of files, and the format that each asks for.
SUFFIXES: dict[str, str] = {
    ".csv": "csv",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".md": "markdown",
}
#: Rows that become Python objects at once.
_AT_ONCE = 10_000
#: Formats in which a value is found by the name of its column.
_BY_NAME = frozenset({"json", "parquet", "arrow"})
#: Formats that are no text.
BINARY: tuple[str, ...] = ("parquet", "arrow")


def encode(rows: pa.Table, format: str) -> bytes:
    """A table in one of `FORMATS`. Undefined is null, an empty field in CSV, a dash in Markdown; never a number.

    Raises:
        ValueError: two columns share a name, and the format finds values by it.
    """
    twice = [name for name, n in Counter(rows.column_names).items() if n > 1]
    if twice and format in _BY_NAME:
        names = ", ".join(twice)
        raise ValueError(f"{format} tells columns by their names, and several are called {names}: name them with AS")
    return FORMATS[format](rows)


def format_of(path: PurePath) -> str:
    """The format that a file's name asks for.

    Raises:
        ValueError: its suffix is none of `SUFFIXES`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path.name!r} does not say which format: end it in {', '.join(SUFFIXES)}, or give --format")
    return SUFFIXES[path.suffix.lower()]


def _csv(rows: pa.Table) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows.column_names)
    for batch in rows.to_batches(_AT_ONCE):
        writer.writerows(zip(*map(_fields, batch.columns), strict=True))
    return text.getvalue().encode()


def _fields(column: pa.Array) -> list[Any]:
    if pa.types.is_float32(column.type):  # in as many digits as tell it from its neighbours
        return pc.if_else(pc.is_finite(column), column, None).cast(pa.string()).to_pylist()
    return [json.dumps(value) if isinstance(value, (list, dict)) else value for value in _values(column)]


def _json(rows: pa.Table) -> bytes:
    names: list[str] = rows.column_names
    lines: list[str] = []
    for batch in rows.to_batches(_AT_ONCE):
        objects = (dict(zip(names, row, strict=True)) for row in zip(*map(_values, batch.columns), strict=True))
        lines += (json.dumps(each, allow_nan=False) for each in objects)
    return f"[{', '.join(lines)}]\n".encode()


def _markdown(rows: pa.Table) -> bytes:
    columns = [[_cell(value) for value in column.to_pylist()] for column in rows.columns]
    lines = [[*row] for row in zip(*columns, strict=True)]
    return table([escape(name) for name in rows.column_names], lines).encode() + b"\n"


def _cell(value: Any) -> str:
    value = _plain(value)
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else escape(str(value))


def _parquet(rows: pa.Table) -> bytes:
    return encode_table(rows)


def _arrow(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def _values(column: pa.Array) -> list[Any]:
    return [_plain(value) for value in column.to_pylist()]


def _plain(value: Any) -> Any:
    """A value as JSON can say it."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case bytes():
            return value.hex()
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case None | bool() | int() | str():
            return value
    return str(value)


#: By name.
FORMATS: dict[str, Callable[[pa.Table], bytes]] = {
    "csv": _csv,
    "json": _json,
    "markdown": _markdown,
    "parquet": _parquet,
    "arrow": _arrow,
}
