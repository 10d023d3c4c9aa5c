"""Verbs that read results: no Ray, no torch, no GPU."""

import json

from orchestrator.cli.app import Json, Run, UsageError, app, opened
from orchestrator.terminal import INTEGRITY, OK, out, say_damaged


@app.command
def consolidate(run: Run, /, *, as_json: Json = False) -> int:
    """Gather a run's chunks into its dataset; again and again, also while it runs.

    Example: altgrad consolidate runs/quickstart
    """
    from orchestrator.results.consolidate import consolidate as gather

    report = gather(opened(run))
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
    columns: tuple[str, ...] = ("optimizer", "storage"),
    metric: str = "val_loss",
    as_json: Json = False,
) -> int:
    """Print a run's matrix: the best setting of each cell, averaged over replicates.

    Example: altgrad matrix runs/quickstart --metric stall_ratio
    """
    from orchestrator.results.consolidate import consolidate as gather
    from orchestrator.results.matrix import matrix as build
    from orchestrator.results.render import render

    store = opened(run)
    say_damaged(gather(store))
    try:
        built = build(store, rows, columns, metric)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if as_json:
        print(json.dumps(built.to_dict()))
    else:
        out.print(render(built))
    return OK
