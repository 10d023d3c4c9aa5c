"""The verb that asks runs in SQL: no Ray, no torch, no GPU."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from orchestrator.cli.app import UsageError, app, asked_wrongly, opened
from orchestrator.terminal import OK, say_damaged, show_rows

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["table", "csv", "json", "markdown", "parquet", "arrow"]


@app.command
def query(
    *words: Annotated[str, Parameter(help="One run or several (folder, URI, name under runs/), then SQL or @name.")],
    format: Annotated[Format | None, Parameter(help="By default a table, or what the suffix of --out says.")] = None,
    file: Annotated[Path | None, Parameter("--out", help="A file to write, whole or not at all.")] = None,
    timeout: Annotated[float, Parameter(help="Seconds after which the query is ended.")] = 60.0,
    memory: Annotated[str | None, Parameter(help="What it may hold at once, such as 2GB.")] = None,
    show_named: Annotated[bool, Parameter("--list", negative="", help="Show the queries that have a name.")] = False,
) -> int:
    """Ask runs in SQL, or a question that has a name; the tables are trials, steps, layers, events.

    With several runs every table has a column run.

    Example: altgrad query runs/quickstart "SELECT format, avg(stall_ratio) FROM layers GROUP BY format"

    Example: altgrad query runs/quickstart @stalls
    """
    if not show_named and len(words) < 2:
        raise UsageError('name a run, then ask, as in: altgrad query runs/quickstart "SELECT * FROM trials"')
    form = _format(format, file)
    rows = _named() if show_named else _answer(words[:-1], words[-1], timeout, memory)
    if form == "table":
        show_rows(rows)
        return OK
    from orchestrator.results import export, local

    with asked_wrongly():
        data = export.encode(rows, form)
    if file is not None:
        local.write(file, data)
    elif form in export.BINARY:
        sys.stdout.buffer.write(data)
    else:
        print(data.decode(), end="")
    return OK


def _format(asked: Format | None, file: Path | None) -> str:
    """How the answer is to be written, settled before anybody waits for it."""
    from orchestrator.results import export

    if file is None:
        if asked in export.BINARY and sys.stdout.isatty():
            raise UsageError(f"{asked} is nothing for a terminal: name a file with --out, or pipe it on")
        return asked or "table"
    if file.is_dir():
        raise UsageError(f"{file} is a folder: --out names a file")
    if asked == "table":
        raise UsageError("a table is for the terminal: for a file choose another --format, such as markdown")
    with asked_wrongly():
        return asked or export.format_of(file)


def _named() -> "pa.Table":
    import pyarrow as pa

    from orchestrator.results.named import NAMED

    return pa.table({"name": [f"@{name}" for name in NAMED], "answers": [each.description for each in NAMED.values()]})


def _answer(runs: Sequence[str], question: str, timeout: float, memory: str | None) -> "pa.Table":
    from orchestrator.results.consolidate import consolidate, mended
    from orchestrator.results.named import ask, find
    from orchestrator.results.queries import check_limits
    from orchestrator.results.runs import is_run, run_names

    stores = [opened(run) for run in runs]
    if len(question.split()) == 1 and is_run(question):
        raise UsageError(f"{question} is a run: SQL or the @name of a query is missing after it")
    with asked_wrongly():
        # What can be said at once is said before datasets are brought up to date.
        run_names(stores)
        check_limits(timeout, memory)
        if question.startswith("@"):
            find(question)
    for store in stores:
        say_damaged(consolidate(store))
    asked = stores if len(stores) > 1 else stores[0]
    return mended(stores, lambda: ask(asked, question, timeout, memory))
