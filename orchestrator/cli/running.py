"""Verbs that run a sweep or a single run, and that look at one running."""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich import box
from rich.live import Live
from rich.table import Column, Table

from orchestrator.cli.app import Json, Override, Run, Space, UnfitError, app, folder_trouble, opened, planned
from orchestrator.terminal import FAILED_TRIALS, OK, command, err, out, plain, say

if TYPE_CHECKING:
    from orchestrator.plan import Plan
    from orchestrator.results.journal import SweepState
    from orchestrator.results.store import Store
    from orchestrator.run_folder import Check
    from orchestrator.status import Status, Watch

Address = Annotated[
    str | None,
    Parameter(
        env_var="RAY_ADDRESS",
        help="A running Ray cluster (auto on its head node); without one, Ray is started here.",
    ),
]

#: Ends that `status` tells at most.
_MOST_ENDS = 8


@app.command
def sweep(
    space: Space,
    /,
    *overrides: Override,
    name: str | None = None,
    storage: str = "runs",
    address: Address = None,
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
def resume(run: Run, /, *, address: Address = None) -> int:
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
def stop(run: Run, /, *, timeout: Annotated[float, Parameter(validator=Number(gte=0))] = 120.0) -> int:
    """End a sweep that runs, from any shell of its machine: its packs save, and `altgrad resume` goes on with it.

    The same as Ctrl-C where it runs. Stopped a second time, it leaves without waiting for checkpoints.

    Example: altgrad stop runs/quickstart

    Parameters
    ----------
    timeout
        Seconds to wait until it has left.
    """
    from orchestrator.stop import CannotStopError, end, running_driver, unfinished

    store = opened(run)
    try:
        driver = running_driver(store)
        if driver is None:
            say(f"{store.uri} is not being run; there is nothing to stop")
        else:
            with err.status(f"process {driver.pid} saves checkpoints and leaves"):
                end(driver, timeout)
            say(f"process {driver.pid} has left")
    except CannotStopError as error:
        raise UnfitError(str(error)) from error
    if left := unfinished(store):
        say(f"trials that have not ended: {left}; go on with: {command('resume', store)}")
    return OK


@app.command
def status(
    run: Run,
    /,
    *,
    watch: bool = False,
    every: Annotated[float, Parameter(validator=Number(gt=0, lte=86_400))] = 2.0,
    as_json: Json = False,
) -> int:
    """Where a sweep stands, running or not: trials, rungs, best so far, warnings, failures, time left at most, disk.

    Watched, it is drawn again until the sweep has ended; Ctrl-C leaves (exit code 0), and the sweep goes on. Where
    stdout is no terminal, it is printed again whenever the journal has something new.

    Example: altgrad status runs/quickstart --watch

    Parameters
    ----------
    watch
        Stay, until the sweep has ended.
    every
        Seconds between two looks.
    """
    from orchestrator.status import Watch

    store = opened(run)
    watched = Watch(store)
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(watched, every, as_json)
    if not (watch and as_json):
        found, _ = watched.look()
        if as_json:
            print(json.dumps(found.to_dict()))
        else:
            _tell(found, store)
    return OK


def _watch(watched: "Watch", every: float, as_json: bool) -> None:
    """Show a sweep until it is not run any more; how it stands then is left to be shown, except as JSON."""
    live = Live(console=out, auto_refresh=False, transient=True) if out.is_terminal and not as_json else None
    with live or contextlib.nullcontext():
        while True:
            found, is_new = watched.look()
            if as_json and (is_new or not found.running):
                print(json.dumps(found.to_dict()), flush=True)
            if not found.running:
                return
            if live:
                live.update(found.picture(), refresh=True)
            elif is_new and not as_json:
                out.print(found.picture())
                out.print()
                sys.stdout.flush()
            time.sleep(every)


def _tell(found: "Status", store: "Store") -> None:
    """The picture, why trials ended early or failed, and what to type next."""
    out.print(found.picture())
    if found.ends:
        table = Table("end", Column("trials and why", overflow="fold"), box=box.SIMPLE_HEAD, pad_edge=False)
        for end in found.ends[:_MOST_ENDS]:
            table.add_row(end.reason if end.step is None else f"{end.reason} @{end.step}", plain(str(end)))
        out.print(table)
        if len(found.ends) > _MOST_ENDS:
            out.print(f"and {len(found.ends) - _MOST_ENDS} more: {command('query', store)} @ends", soft_wrap=True)
    if found.state.unfinished and not found.running:
        say(f"go on with: {command('resume', store)}")


@app.command
def train(config: Path, /, *overrides: Override, rows: Path | None = None) -> int:
    """Train one run, without Ray.

    Example: altgrad train run.yaml steps=200 --rows run.parquet

    Parameters
    ----------
    config
        A YAML file with the fields of a run.
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
