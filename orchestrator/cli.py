"""The `altgrad` command: parses, delegates, prints.

Results go to stdout, everything said on the way to stderr. Heavy libraries are imported by the commands that need them,
so that help is there at once.
"""

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

import altgrad
from altgrad.training.config import ConfigError, CorpusError
from orchestrator.space import SpaceError

if TYPE_CHECKING:
    from orchestrator.plan import Plan
    from orchestrator.results.journal import SweepState
    from orchestrator.results.store import Store
    from orchestrator.sweep.progress import Progress

OK, USAGE, FAILED_TRIALS, ENVIRONMENT, INTEGRITY = 0, 2, 3, 4, 5
#: More characters than any table is wide.
_WIDEST = 100_000

app = App(
    name="altgrad",
    help="Which 8-bit number format trains a GPT best, and where and why do the others fail?",
    version=altgrad.__version__,
    version_flags=["--version"],
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


class _Output(Console):
    """Text as it is: what looks like markup is somebody's data. A reader that has gone ends the command."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Messages(Console):
    """Goes quiet where nobody listens any more: a sweep does not end for that."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _discard(sys.stderr)


out = _Output(markup=False, emoji=False)
err = _Messages(stderr=True)

Override = Annotated[str, Parameter(help="key=value: a parameter, a key of the file, or a field of a run.")]
Json = Annotated[bool, Parameter("--json", help="Print JSON, for scripts.")]
Run = Annotated[str, Parameter(help="The run's folder or URI, or its name under runs/.")]


class UsageError(Exception):
    """Something the person who typed the command can put right."""


class IntegrityError(Exception):
    """Kept data that is not what was written."""


def main() -> None:
    """Entry point of the command; exit codes are those of the README."""
    try:
        code = app()
        sys.stdout.flush()
    except (SpaceError, ConfigError, CorpusError, UsageError) as error:
        _complain(error)
        code = USAGE
    except IntegrityError as error:
        _complain(error)
        code = INTEGRITY
    except BrokenPipeError:
        _discard(sys.stdout)
        code = 128 + signal.SIGPIPE
    except OSError as error:
        _complain(error)
        code = ENVIRONMENT
    except KeyboardInterrupt:
        _say("interrupted")
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
    corpus = planned.corpus
    out.print(f"corpus {corpus['corpus']}: {corpus['tokens']:,} tokens, {corpus['vocabulary']} different")
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

    A sweep that was interrupted goes on where it was; one that is finished is not run again.

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
            state = claim(planned, store)
    for note in planned.spec.notes:
        _say(note)
    return _run(planned, store, state, address)


@app.command
def resume(run: Run, /, *, address: Annotated[str | None, Parameter(env_var="RAY_ADDRESS")] = None) -> int:
    """Go on with a sweep that was interrupted: unfinished trials only, each from its last checkpoint.

    Checkpoints are data and are never executed; the folder's plan decides what runs, so resume folders that you trust.

    Example: altgrad resume runs/quickstart
    """
    from orchestrator.run_folder import claim, read_plan

    store = _opened(run)
    with _folder_trouble():
        planned = read_plan(store)
        state = claim(planned, store)
    return _run(planned, store, state, address)


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
        _say(f"go on with: {_command('resume', store)}")
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
    for chunk in report.damaged:
        _say(f"damaged, left out: {chunk}")
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
    gather(store)
    try:
        found = ask(store, sql)
    except QueryError as error:
        raise UsageError(str(error)) from error
    if format == "json":
        print(json.dumps(found.to_pylist(), default=str))
    elif format == "csv":
        print(found.to_pandas().to_csv(index=False), end="")
    else:
        table = Table(*found.column_names)
        for row in found.to_pylist():
            table.add_row(*map(_shown_value, row.values()))
        # As wide as its values: a pager or the terminal may wrap it, but nothing is left out.
        width = out.measure(table, options=out.options.update(width=_WIDEST)).maximum
        _Output(markup=False, emoji=False, width=width).print(table)
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
    gather(store)
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


def _planned(space: Path, overrides: Sequence[str]) -> "Plan":
    from orchestrator.space import load_space

    spec = load_space(space, overrides)
    from orchestrator.run_folder import plan_sweep

    return plan_sweep(spec)


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


def _run(planned: "Plan", store: "Store", state: "SweepState", address: str | None) -> int:
    """Run what is unfinished, then say what came of it."""
    from orchestrator.sweep.progress import Progress

    if not state.unfinished:
        _say(f"all trials of {store.uri} have ended; nothing is left to run")
        return _conclude(store)
    ended = {lane.key: str(lane.reason) for lane in state.lanes.values() if lane.status == "finished"}
    progress = Progress(planned, ended)
    with _shown(progress):
        progress.say("loading PyTorch and Ray")
        from orchestrator.sweep.tuner import SurroundingsError, run_sweep

        try:
            outcome = run_sweep(planned, store, progress, address or None)
        except SurroundingsError as error:
            _complain(error)
            return ENVIRONMENT
        except KeyboardInterrupt:
            _say_how_to_resume(store)
            return 128 + signal.SIGINT
    code = _conclude(store)
    cells = {pack.pack: pack.cell for pack in planned.packs}
    for pack, why in outcome.failed.items():
        _say(f"failed: {cells[pack]} ({pack}): {why}")
    if outcome.signal is not None:
        _say_how_to_resume(store)
        return 128 + outcome.signal
    if outcome.failed:
        _say(f"try them again with: {_command('resume', store)}")
    return FAILED_TRIALS if outcome.failed else code


def _say_how_to_resume(store: "Store") -> None:
    _say(f"interrupted; go on with: {_command('resume', store)}")


def _command(name: str, store: "Store") -> str:
    """A command on a run as a shell takes it."""
    return f"altgrad {name} {shlex.quote(store.uri)}"


@contextmanager
def _shown(progress: "Progress") -> Iterator[None]:
    """Draw the progress on a terminal; elsewhere say in a line how each trial ended. Ray's own words go to stderr."""
    from rich.live import Live

    if not err.is_terminal:
        progress.echo = _say
        with redirect_stdout(sys.stderr):
            yield
        return
    with Live(progress, console=err, refresh_per_second=8, transient=True):
        yield


def _conclude(store: "Store") -> int:
    """The matrix, how trials ended, what stopping saved, and what to type next."""
    from orchestrator.results.consolidate import consolidate as gather
    from orchestrator.results.matrix import matrix as build
    from orchestrator.results.matrix import savings
    from orchestrator.results.render import render

    report = gather(store)
    out.print(render(build(store)))
    saved = savings(store)
    ends = ", ".join(f"{n} {reason}" for reason, n in sorted(saved.lanes_by_reason.items()))
    out.print(f"Trials: {ends}.")
    if saved.saved:
        by = ", ".join(f"{steps:,} by {reason}" for reason, steps in saved.saved_by_reason.items())
        share = saved.saved / saved.planned
        out.print(f"Stopping saved {saved.saved:,} of {saved.planned:,} steps ({share:.0%}): {by}.")
    out.print("\nNext:")
    out.print(f"  {_command('matrix', store)} --metric stall_ratio", highlight=False, soft_wrap=True)
    sql = "SELECT format, matrix, avg(stall_ratio) FROM layers GROUP BY ALL ORDER BY 3 DESC LIMIT 10"
    out.print(f'  {_command("query", store)} "{sql}"', highlight=False, soft_wrap=True)
    out.print(f"  {_command('status', store)}", highlight=False, soft_wrap=True)
    for chunk in report.damaged:
        _say(f"damaged, left out: {chunk}")
    return INTEGRITY if report.damaged else OK


def _shown_value(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _discard(stream: TextIO) -> None:
    """Let what is still to be written go nowhere, or Python complains of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(error: Exception) -> None:
    for line in str(error).splitlines():
        _say(f"error: {line}")


def _say(line: str) -> None:
    """A line for the person at the terminal, as it is: no markup, no colours, no hard wrapping."""
    err.print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
