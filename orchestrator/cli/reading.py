"""Verbs that read results: no Ray, no torch, no GPU."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from orchestrator.cli.app import Json, Run, UsageError, app, asked_wrongly, opened
from orchestrator.terminal import INTEGRITY, OK, err, out, say_damaged, show_sentences

Columns = Annotated[tuple[str, ...], Parameter("--cols", consume_multiple=True, negative="")]


@app.command
def consolidate(run: Run, /, *, verify: bool = False, as_json: Json = False) -> int:
    """Gather a run's chunks into its dataset; again and again, also while it runs.

    Example: altgrad consolidate runs/quickstart

    Parameters
    ----------
    verify
        Read every file of the dataset through, and build those that are damaged again.
    """
    from orchestrator.results.consolidate import consolidate as gather

    report = gather(opened(run), verify)
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        rows = ", ".join(f"{n:,} {table}" for table, n in report.rows.items())
        out.print(f"{len(report.written)} files written, {len(report.unchanged)} unchanged: {rows}")
    say_damaged(report)
    return INTEGRITY if report.damaged else OK


@app.command
def matrix(
    run: Run,
    /,
    *,
    rows: str = "format",
    columns: Columns = ("optimizer", "storage"),
    metric: str = "val_loss",
    as_json: Json = False,
    as_markdown: Annotated[bool, Parameter("--markdown", negative="")] = False,
    as_csv: Annotated[bool, Parameter("--csv", negative="")] = False,
) -> int:
    """Print a run's matrix, the best setting of each cell averaged over replicates, and optimizers against adamw.

    Example: altgrad matrix runs/quickstart --metric stall_ratio

    Parameters
    ----------
    rows
        The parameter down the side.
    columns
        The parameters across the top; what else the sweep varied is added.
    metric
        A column of the table of steps, at its last value, or best_val_loss.
    as_markdown
        Print Markdown, for a page.
    as_csv
        Print a row a cell with all that is known of it.
    """
    from orchestrator.results.consolidate import consolidate as gather
    from orchestrator.results.consolidate import mended
    from orchestrator.results.matrix import matrix as build
    from orchestrator.results.matrix_text import to_csv, to_markdown
    from orchestrator.results.paired import benefits, sentences
    from orchestrator.results.render import render

    if as_json + as_markdown + as_csv > 1:
        raise UsageError("--json, --markdown and --csv are three ways to print the same: give one")
    store = opened(run)
    say_damaged(gather(store))
    with asked_wrongly():
        built = mended([store], lambda: build(store, rows, columns, metric))
    found = benefits(built)
    said = sentences(built, found)
    if as_json:
        print(json.dumps({**built.to_dict(), "benefits": [each.to_dict() for each in found]}))
    elif as_csv:
        print(to_csv(built), end="")
    elif as_markdown:
        print(to_markdown(built, said), end="")
    else:
        out.print(render(built))
        show_sentences(["", *said] if said else [])
    return OK


@app.command
def report(*runs: Run, out: Path | None = None) -> int:
    """Write a run's report: one HTML file that needs nothing else, and a Markdown card; of several, side by side.

    Example: altgrad report runs/quickstart

    Parameters
    ----------
    out
        The HTML file, the card goes beside it; report.html and report.md in the run's own folder by default. What is
        there already is written over only if it is a report.
    """
    from orchestrator.results.consolidate import consolidate as gather
    from orchestrator.results.consolidate import mended
    from orchestrator.results.report.writing import HTML_PATH, MARKDOWN_PATH, check_place
    from orchestrator.results.report.writing import report as write
    from orchestrator.results.runs import run_names
    from orchestrator.results.store import Store

    if not runs:
        raise UsageError("no run named; for example: altgrad report runs/quickstart")
    if out is None and len(runs) > 1:
        raise UsageError(
            "a report of several runs belongs to none of them: say where it goes, such as --out report.html"
        )
    if out is not None and (out.suffix != ".html" or not out.parent.is_dir()):
        raise UsageError(f"--out {out}: it names an .html file in a folder that exists")
    stores = [opened(run) for run in runs]
    folder, names = stores[0], (HTML_PATH, MARKDOWN_PATH)
    if out is not None:
        folder, names = Store.open(out.parent), (out.name, out.with_suffix(".md").name)
    with asked_wrongly():
        # What can be said at once is said before datasets are brought up to date.
        run_names(stores)
        check_place(folder, names)
    with err.status("reading and drawing"):
        for store in stores:
            say_damaged(gather(store))
        with asked_wrongly():
            made = mended(stores, lambda: write(stores))
    for name, text in zip(names, made, strict=True):
        folder.write_bytes(name, text.encode())
        print(f"{folder.uri}/{name}")
    return OK
