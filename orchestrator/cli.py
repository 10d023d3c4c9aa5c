"""The `altgrad` command: parses, delegates, prints.

Results go to stdout, everything said on the way to stderr. Heavy libraries are imported by the commands that need them,
so that help is there at once.
"""

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.table import Table

import altgrad
from altgrad.training.config import ConfigError, CorpusError, nearest_name
from orchestrator.space import SpaceError
from orchestrator.terminal import (
    ENVIRONMENT,
    FAILED_TRIALS,
    INTEGRITY,
    OK,
    USAGE,
    complain,
    discard,
    err,
    out,
    say,
    say_damaged,
    show_rows,
)

if TYPE_CHECKING:
    from orchestrator.plan import Plan
    from orchestrator.results.journal import SweepState
    from orchestrator.results.store import Store
    from orchestrator.run_folder import Check

app = App(
    name="altgrad",
    help="Which 8-bit number format trains a GPT best, and where and why do the others fail?",
    version=altgrad.__version__,
    version_flags=["--version"],
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


Override = Annotated[str, Parameter(help="key=value: a parameter, a key of the file, or a field of a run.")]
Json = Annotated[bool, Parameter("--json", help="Print JSON, for scripts.")]
Run = Annotated[str, Parameter(help="The run's folder or URI, or its name under runs/.")]


class UsageError(Exception):
    """Something the person who typed the command can put right."""


class UnfitError(Exception):
    """What this machine lacks for what was asked."""


class IntegrityError(Exception):
    """Kept data that is not what was written."""


def main() -> None:
    """Entry point of the command; exit codes are those of the README."""
    try:
        code = app()
        sys.stdout.flush()
    except (SpaceError, ConfigError, CorpusError, UsageError) as error:
        complain(error)
        code = USAGE
    except UnfitError as error:
        complain(error)
        code = ENVIRONMENT
    except IntegrityError as error:
        complain(error)
        code = INTEGRITY
    except BrokenPipeError:
        discard(sys.stdout)
        code = 128 + signal.SIGPIPE
    except OSError as error:
        complain(error)
        code = ENVIRONMENT
    except KeyboardInterrupt:
        say("interrupted")
        code = 128 + signal.SIGINT
    sys.exit(code)


@app.command
def plan(space: Path, /, *overrides: Override, as_json: Json = False) -> int:
    """Show what a sweep would run, and run nothing.

    Example: altgrad plan search_spaces/quickstart.yaml format=[E4M3,E5M2]
    """
    planned = _planned(space, overrides)
    if as_json:
        print(json.dumps(planned.to_dict()))
        return OK
    table = Table("cell", "trials", "settings", "steps each", title=planned.spec.name, title_justify="left")
    cells: dict[str, list[Any]] = {}
    for pack in planned.packs:
        cells.setdefault(pack.cell + (" (control)" if pack.control else ""), []).append(pack)
    for cell, packs in cells.items():
        trials = sum(len(pack.lanes) for pack in packs)
        table.add_row(cell, str(trials), str(len(packs)), str(packs[0].lanes[0].config.steps))
    out.print(table)
    lanes = sum(len(pack.lanes) for pack in planned.packs)
    out.print(f"{lanes} trials in {len(planned.packs)} packs, {len(planned.excluded)} combinations left out")
    out.print(_expectation(planned), soft_wrap=True)
    corpus = planned.corpus
    out.print(f"corpus {corpus['corpus']}: {corpus['tokens']:,} tokens, {corpus['vocabulary']} different")
    from orchestrator.preflight import estimates

    for line in estimates(planned):
        out.print(line)
    return OK


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
        planned = _planned(space, overrides)
        from orchestrator.run_folder import claim, run_store

        with _folder_trouble():
            store = run_store(name or planned.spec.name, storage)
            claimed = claim(planned, store, _preflight(store, address))
    for note in planned.spec.notes:
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

    store = _opened(run)
    with _folder_trouble():
        claimed = claim(read_plan(store), store, _preflight(store, address))
    from orchestrator.attended import run_attended

    return run_attended(claimed.plan, store, claimed.state, address)


@app.command
def status(run: Run, /, *, as_json: Json = False) -> int:
    """Where a sweep stands, running or not.

    Example: altgrad status runs/quickstart
    """
    from orchestrator.results.journal import Journal, SweepState, load_plan

    store = _opened(run)
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
def consolidate(run: Run, /, *, as_json: Json = False) -> int:
    """Gather a run's chunks into its dataset; again and again, also while it runs.

    Example: altgrad consolidate runs/quickstart
    """
    from orchestrator.results.consolidate import consolidate as gather

    report = gather(_opened(run))
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        rows = ", ".join(f"{n:,} {table}" for table, n in report.rows.items())
        out.print(f"{len(report.written)} files written, {len(report.unchanged)} unchanged: {rows}")
    say_damaged(report)
    return INTEGRITY if report.damaged else OK


@app.command
def query(run: Run, sql: str, /, *, format: Literal["table", "csv", "json"] = "table") -> int:
    """Ask a run in SQL; the tables are trials, steps, layers, events.

    Example: altgrad query runs/quickstart "SELECT format, avg(stall_ratio) FROM layers GROUP BY format"
    """
    from orchestrator.results.consolidate import consolidate as gather
    from orchestrator.results.queries import QueryError
    from orchestrator.results.queries import query as ask

    store = _opened(run)
    say_damaged(gather(store))
    try:
        found = ask(store, sql)
    except QueryError as error:
        raise UsageError(str(error)) from error
    if format == "json":
        print(json.dumps(found.to_pylist(), default=str))
    elif format == "csv":
        print(found.to_pandas().to_csv(index=False), end="")
    else:
        show_rows(found)
    return OK


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

    store = _opened(run)
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


@app.command
def formats(name: str | None = None, /, *, as_json: Json = False) -> int:
    """Show the number formats: range, spacing, and how well they keep a tensor. With a name, every code of that one.

    Example: altgrad formats E3M4

    Parameters
    ----------
    name
        A format, such as E3M4.
    """
    from altgrad.quantization.formats import FORMAT_REGISTRY
    from orchestrator.formats import tables
    from orchestrator.formats.facts import codes, facts

    out.width = max(out.width, tables.NARROWEST)  # a terminal may wrap it, but no digit is left out
    if name is None:
        with err.status("rounding tensors to every format"):
            import torch

            from orchestrator.formats.figures import ELEMENTS, fidelity, tensors

            torch.set_num_threads(1)  # the same sums on every machine; and a busy one is slower with more
            data = tensors()
            known = [facts(each) | fidelity(each, data) for each in FORMAT_REGISTRY.values()]
        shown: dict[str, Any] = {"elements": ELEMENTS, "formats": known}
        table = tables.overview(known, ELEMENTS)
    elif name in FORMAT_REGISTRY:
        format = FORMAT_REGISTRY[name]
        listed = list(codes(format)) if format.bits == 8 else None
        shown = facts(format) | {"codes": listed}
        table = tables.one_format(facts(format), listed, out.width)
    else:
        raise UsageError(f"unknown format {name!r}; {nearest_name(name, FORMAT_REGISTRY)}")
    if as_json:
        print(json.dumps(shown, allow_nan=False))
    else:
        out.print(table)
    return OK


@app.command
def doctor(*, storage: str = "runs", cluster: Path | None = None, as_json: Json = False) -> int:
    """Is this machine fit to run a sweep? What there is, what is missing, and what to do about it.

    Example: altgrad doctor

    Parameters
    ----------
    storage
        Folder or URI under which runs would be kept; a small file is written there, read back and deleted.
    cluster
        Cluster file to check; by default the cluster.yaml of this folder, if there is one.
    """
    from orchestrator.doctor import examine

    if cluster is None and Path("cluster.yaml").exists():
        cluster = Path("cluster.yaml")
    with err.status("looking around"):
        findings = examine(storage, cluster)
    if as_json:
        print(json.dumps([vars(finding) for finding in findings]))
    else:
        for finding in findings:
            out.print(f"{finding.level:<4}  {finding.subject:<9}  {finding.found}", soft_wrap=True)
            if finding.advice:
                out.print(f"      {'':<9}  {finding.advice}", soft_wrap=True)
    return ENVIRONMENT if any(finding.level == "fail" for finding in findings) else OK


def _expectation(planned: "Plan") -> str:
    """What stopping is going to save, and on what assumption that is said."""
    from orchestrator.sweep.expected import expected_savings

    rules = planned.spec.early_terminate
    if rules.type == "none":
        return "stopping: only trials that diverge, collapse or stall end early"
    total = sum(lane.config.steps for pack in planned.packs for lane in pack.lanes)
    among = "those of their cell" if rules.scope == "cell" else "all"
    expected = f"{rules.type} should save about {expected_savings(planned):.0%} of {total:,} steps"
    assumed = f"if packs rank at random among {among} and run one after another"
    return f"stopping: {expected}, {assumed}; trials that diverge, collapse or stall save more"


def _planned(space: Path, overrides: Sequence[str]) -> "Plan":
    from orchestrator.space import load_space

    spec = load_space(space, overrides)
    from orchestrator.run_folder import plan_sweep

    return plan_sweep(spec)


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


def _opened(run: str) -> "Store":
    from orchestrator.run_folder import open_run

    with _folder_trouble():
        return open_run(run)


@contextmanager
def _folder_trouble() -> Iterator[None]:
    from orchestrator.run_folder import DamagedRunError, RunFolderError

    try:
        yield
    except RunFolderError as error:
        raise UsageError(str(error)) from error
    except DamagedRunError as error:
        raise IntegrityError(str(error)) from error


if __name__ == "__main__":
    main()
