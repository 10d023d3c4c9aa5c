"""A sweep that is asked to end waits for the checkpoints of the packs that run, and not for ever."""

import signal
from pathlib import Path

import pytest
from small_plan import small_plan, tune_trial

from orchestrator.results.journal import Journal, SweepState
from orchestrator.results.store import Store
from orchestrator.signals import Caught
from orchestrator.sweep import departure
from orchestrator.sweep.checkpoint_folders import ASKED
from orchestrator.sweep.departure import PATIENCE_SECONDS, Departure
from orchestrator.sweep.observer import SweepObserver
from orchestrator.sweep.progress import Progress


class Leaving:
    """A driver with two packs on workers and one that waits."""

    def __init__(self, folder: Path) -> None:
        plan = small_plan(folder)
        self.store, self.caught, progress = Store.open(folder), Caught(), Progress(plan, {})
        state = SweepState.from_records(plan.to_dict(), [])
        self.observer = SweepObserver(state, Journal(self.store), progress, 0, 0)
        self.departure = Departure(self.store, self.caught, self.observer, progress)
        self.first, self.second, self.waiting = (tune_trial(pack.pack) for pack in plan.packs)
        for trial in (self.first, self.second):
            self.observer.on_trial_start(0, [], trial)

    @property
    def asked(self) -> bool:
        return self.store.exists(ASKED)


@pytest.fixture
def leaving(tmp_path: Path) -> Leaving:
    return Leaving(tmp_path)


def test_without_a_signal_nobody_leaves(leaving: Leaving) -> None:
    assert not leaving.departure.due()
    assert not leaving.asked


def test_packs_on_workers_are_asked_and_waited_for(leaving: Leaving) -> None:
    leaving.caught.signal = signal.SIGTERM
    assert not leaving.departure.due()
    assert leaving.asked
    leaving.observer.on_trial_start(0, [], leaving.waiting)
    leaving.observer.on_trial_result(0, [], leaving.first, {"saved": 40})
    assert not leaving.departure.due()
    leaving.observer.on_trial_result(0, [], leaving.second, {"saved": 30})
    assert leaving.departure.due(), "a pack that was placed meanwhile is not waited for"


def test_a_pack_that_ends_or_is_lost_is_not_waited_for(leaving: Leaving) -> None:
    leaving.caught.signal = signal.SIGINT
    assert not leaving.departure.due()
    leaving.observer.on_trial_complete(0, [], leaving.first)
    leaving.observer.attempt_failed(leaving.second)
    assert leaving.departure.due()


def test_patience_has_an_end(leaving: Leaving, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(departure.time, "monotonic", lambda: now)
    leaving.caught.signal = signal.SIGINT
    assert not leaving.departure.due()
    now += PATIENCE_SECONDS
    assert not leaving.departure.due()
    now += 0.1
    assert leaving.departure.due()


def test_a_request_does_not_outlive_the_run_that_made_it(leaving: Leaving) -> None:
    leaving.store.write_bytes(ASKED, b"of a driver that was killed")
    with leaving.departure.answered():
        assert not leaving.asked
        leaving.caught.signal = signal.SIGTERM
        leaving.departure.due()
        assert leaving.asked
    assert not leaving.asked
