"""A sweep with a person watching: its picture while it runs, and what came of it."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

from rich.live import Live

from orchestrator.plan import Plan
from orchestrator.results.consolidate import consolidate
from orchestrator.results.journal import Journal, SweepState
from orchestrator.results.matrix import matrix, savings
from orchestrator.results.paired import benefits, sentences
from orchestrator.results.rebuild import missing_records
from orchestrator.results.regret import regret
from orchestrator.results.render import render
from orchestrator.results.store import Store
from orchestrator.signals import Caught, caught_signals
from orchestrator.sweep.progress import Progress
from orchestrator.terminal import (
    ENVIRONMENT,
    FAILED_TRIALS,
    INTEGRITY,
    OK,
    command,
    complain,
    err,
    out,
    say,
    say_damaged,
    show_sentences,
)

if TYPE_CHECKING:
    from orchestrator.sweep.tuner import SweepOutcome


def run_attended(planned: Plan, store: Store, state: SweepState, address: str | None) -> int:
    """Run what is unfinished of a sweep, then say what came of it.

    Returns:
        The exit code of the command.
    """
    with caught_signals() as caught:
        try:
            state = _completed(planned, store, state)
            lost = _packs_with_losses(planned, store) if state.attempts else []
            if lost:
                say(f"chunks are damaged: {', '.join(lost)} will train again from before the rows that are lost")
            is_over = not state.unfinished and not lost
            outcome = None if is_over else _run(planned, store, state, address, lost, caught)
        except KeyboardInterrupt:
            return _interrupted(store, caught)
    if is_over:
        say(f"all trials of {store.uri} have ended; nothing is left to run")
        return conclude(store)
    if outcome is None:
        return ENVIRONMENT
    code = conclude(store)
    for folder, why in outcome.damaged.items():
        say(f"damaged, passed over: {folder}: {why}")
    cells = {pack.pack: pack.cell for pack in planned.packs}
    for pack, why in outcome.failed.items():
        say(f"failed: {cells[pack]} ({pack}): {why}")
    if outcome.interrupted:
        return _interrupted(store, caught)
    if outcome.fatal is not None:
        limit = planned.spec.max_consecutive_failures
        say(f"ended: {limit} attempts in a row failed (max_consecutive_failures), the last with {outcome.fatal}")
    if outcome.failed:
        say(f"try them again with: {command('resume', store)}")
    return FAILED_TRIALS if outcome.failed else code


def _run(
    planned: Plan, store: Store, state: SweepState, address: str | None, lost: list[str], caught: Caught
) -> "SweepOutcome | None":
    """Run it, its picture on the terminal; None where what it needs around it is not there, which is said."""
    ended = {lane.key: str(lane.reason) for lane in state.lanes.values() if lane.status == "finished"}
    progress = Progress(planned, ended)
    with _shown(progress):
        progress.say("loading Ray")
        from orchestrator.sweep.found import found
        from orchestrator.sweep.surroundings import DiskFullError, SurroundingsError
        from orchestrator.sweep.tuner import run_sweep

        for line in found(store, state):
            say(f"found: {line}")
        try:
            return run_sweep(planned, store, progress, caught, address or None, lost)
        except SurroundingsError as error:
            complain(error)
            if isinstance(error, DiskFullError):
                say(f"then go on with: {command('resume', store)}")
            return None


def _packs_with_losses(planned: Plan, store: Store) -> list[str]:
    """Packs of the plan with rows that were measured and cannot be read any more."""
    lost = consolidate(store).packs_with_losses
    return [pack.pack for pack in planned.packs if pack.pack in lost]


def _completed(planned: Plan, store: Store, state: SweepState) -> SweepState:
    """Where the sweep stands once its journal has what it lacked; says what was found."""
    journal = Journal(store)
    missing = missing_records(store, planned.to_dict(), journal.read())
    if journal.skipped:
        say(f"found: lines of the journal that cannot be read: {journal.skipped}; left out")
    if not missing:
        return state
    for record in missing:
        journal.append(record)
    say(f"found: records that the journal lacked: {len(missing)}; written again from what the packs left")
    return SweepState.from_records(planned.to_dict(), journal.read())


def _interrupted(store: Store, caught: Caught) -> int:
    say(f"interrupted; go on with: {command('resume', store)}")
    return 128 + (caught.signal or signal.SIGINT)


@contextmanager
def _shown(progress: Progress) -> Iterator[None]:
    """Draw the progress on a terminal; elsewhere say in a line how each trial ended. Ray's own words go to stderr."""
    if not err.is_terminal:
        progress.echo = say
        with redirect_stdout(sys.stderr):
            yield
        return
    with Live(progress, console=err, refresh_per_second=8, transient=True):
        yield


def conclude(store: Store) -> int:
    """The matrix, optimizers against AdamW, what stopping saved, and what to type next."""
    report = consolidate(store)
    found = matrix(store)
    out.print(render(found))
    out.print()
    show_sentences(sentences(found, benefits(found)))
    saved = savings(store)
    if saved.saved:
        by = ", ".join(f"{steps:,} by {reason}" for reason, steps in saved.saved_by_reason.items())
        share = saved.saved / saved.planned
        out.print(f"Stopping saved {saved.saved:,} of {saved.planned:,} steps ({share:.0%}): {by}.")
    show_sentences(regret(store).sentences())
    out.print("\nNext:")
    for line in (command("report", store), f"{command('query', store)} @stalls", command("status", store)):
        out.print(f"  {line}", highlight=False, soft_wrap=True)
    say_damaged(report)
    if report.damaged:
        say(f"train again what is lost with: {command('resume', store)}")
    return INTEGRITY if report.damaged else OK
