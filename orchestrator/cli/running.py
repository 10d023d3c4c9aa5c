"""Verbs that run a sweep or a single run, and that look at one running."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table

from orchestrator.cli.app import Json, Override, Run, UnfitError, app, folder_trouble, opened, planned
from orchestrator.terminal import FAILED_TRIALS, OK, err, out, say

if TYPE_CHECKING:
    from orchestrator.plan import Plan
    from orchestrator.results.journal import SweepState
    from orchestrator.results.store import Store
    from orchestrator.run_folder import Check


@app.command
def sweep(
    space: Path,
    /,
    *overrides: Override,
    name: str | None = None,
    storage: str = "runs",
    address: Annotated[str | None, Parameter(env_var="RAY_ADDRESS")] = None,
) -> int:
    """Run a search space: plan it, train every trial under Ray Tune, print the matrix.

    A sweep that was interrupted goes on where it was; one that is finished is not run again; a wider search space on
    the same folder runs what is new in it.

    Example: altgrad sweep search_spaces/quickstart.yaml

    Parameters
    ----------
    name
        Name of the run's folder; the file's own name by default.
    storage
        Folder or URI (s3://bucket/runs) under which runs are kept; every worker must reach it.
    address
        A running Ray cluster (auto on its head node); without one, Ray is started here.
    """
    with err.status("reading the search space and the corpus"):
        plan = planned(space, overrides)
        from orchestrator.run_folder import claim, run_store

        with folder_trouble():
            store = run_store(name or plan.spec.name, storage)
            claimed = claim(plan, store, _preflight(store, address))
    for note in plan.spec.notes:
        say(note)
    if claimed.widened is not None:
        say(str(claimed.widened))
    from orchestrator.attended import run_attended

    return run_attended(claimed.plan, store, claimed.state, address)


@app.command
def resume(run: Run, /, *, address: Annotated[str | None, Parameter(env_var="RAY_ADDRESS")] = None) -> int:
    """Go on with a sweep that was interrupted: unfinished trials only, each from its last checkpoint.

    Checkpoints are data and are never executed; the folder's plan decides what runs, so resume folders that you trust.

    Example: altgrad resume runs/quickstart
    """
    from orchestrator.run_folder import claim, read_plan

    store = opened(run)
    with folder_trouble():
        claimed = claim(read_plan(store), store, _preflight(store, address))
    from orchestrator.attended import run_attended

    return run_attended(claimed.plan, store, claimed.state, address)


@app.command
def status(run: Run, /, *, as_json: Json = False) -> int:
    """Where a sweep stands, running or not.

    Example: altgrad status runs/quickstart
    """
    from orchestrator.results.journal import Journal, SweepState, load_plan

    store = opened(run)
    held = load_plan(store)
    state = SweepState.from_records(held, Journal(store).read())
    lanes = [vars(lane) for lane in state.lanes.values()]
    if as_json:
        print(json.dumps({"name": held["name"], "running": state.driver_alive, "lanes": lanes}, default=str))
        return OK
    cells = {pack["pack"]: pack["cell"] for pack in held["packs"]}
    counts: dict[str, int] = {}
    for lane in state.lanes.values():
        counts[lane.reason or lane.status] = counts.get(lane.reason or lane.status, 0) + 1
    driver = "being run" if state.driver_alive else "not being run"
    out.print(f"{held['name']}: {driver}; " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    table = Table("cell", "trial", "state", "step", "why")
    for lane in state.lanes.values():
        if lane.status not in ("planned", "finished") or lane.reason not in (None, "completed"):
            step = "" if lane.step is None else str(lane.step)
            table.add_row(cells[lane.pack], lane.key[:8], lane.reason or lane.status, step, lane.message or "")
    if table.row_count:
        out.print(table)
    if state.unfinished and not state.driver_alive:
        from orchestrator.attended import command

        say(f"go on with: {command('resume', store)}")
    return OK


@app.command
def train(config: Path, /, *overrides: Override, rows: Path | None = None) -> int:
    """Train one run, without Ray.

    Example: altgrad train run.yaml steps=200 --rows run.parquet

    Parameters
    ----------
    rows
        Parquet file for the rows of every step; those of every matrix go beside it.
    """
    from orchestrator.single import load_run, train_one

    run = load_run(config, overrides)
    return OK if train_one(run, rows, out, err) else FAILED_TRIALS


def _preflight(store: "Store", address: str | None) -> "Check":
    """Holds what is about to be run against the room there is."""
    from orchestrator.preflight import PreflightError, check_disk, packs_at_once

    def check(planned: "Plan", state: "SweepState") -> None:
        try:
            # How many packs a cluster runs at once is not known yet: one, at least.
            warning = check_disk(planned, state, store, 1 if address else packs_at_once(planned))
        except PreflightError as error:
            raise UnfitError(str(error)) from error
        if warning:
            say(warning)

    return check
