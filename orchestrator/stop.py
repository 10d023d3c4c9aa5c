"""Ends a sweep that runs, from any shell: what a signal to its process does, without looking for the process."""

import os
import signal
import time
from collections.abc import Callable

from orchestrator.results.driver import Driver
from orchestrator.results.journal import Journal, SweepState, load_plan
from orchestrator.results.store import Store
from orchestrator.terminal import command

#: Seconds between looks at whether the process is still there.
_LOOK = 0.2


class CannotStopError(RuntimeError):
    """The sweep may be running, and cannot be ended from here."""


def running_driver(store: Store) -> Driver | None:
    """The process of this host that runs the sweep in this folder; None where nobody does.

    Raises:
        CannotStopError: it was begun on another host and has not said that it ended.
    """
    driver = _state(store).driver
    if driver is not None and not driver.is_here:
        raise CannotStopError(
            f"{store.uri} was begun by process {driver.pid} of {driver.host} and has not said that it ended. A process "
            f"can only be told to end on its own machine. Type there: {command('stop', store)}"
        )
    return driver if driver is not None and driver.drives(store) else None


def end(driver: Driver, timeout: float) -> None:
    """Ask the process to end in order, once, and wait until it has left.

    A process that is asked a second time leaves without waiting for checkpoints.

    Args:
        driver: from `running_driver`.
        timeout: seconds to wait.

    Raises:
        CannotStopError: it belongs to another user, or is still there after the time.
    """
    deadline = time.monotonic() + timeout
    try:
        os.kill(driver.pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise CannotStopError(f"process {driver.pid} belongs to another user: stop it as that user") from error
    if not _until(lambda: not driver.is_alive, deadline):
        raise CannotStopError(
            f"process {driver.pid} was told to end and is still there after {timeout:g} s: wait for it (altgrad status "
            f"RUN --watch), or stop it once more, and it leaves without waiting for checkpoints"
        )


def unfinished(store: Store) -> int:
    """Trials that have not ended."""
    return sum(lane.status != "finished" for lane in _state(store).lanes.values())


def _state(store: Store) -> SweepState:
    return SweepState.from_records(load_plan(store), Journal(store).read())


def _until(holds: Callable[[], bool], deadline: float) -> bool:
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(_LOOK)
    return held
