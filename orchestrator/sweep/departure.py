"""How a sweep leaves when it is asked to: every running pack saves a checkpoint first."""

import contextlib
import time
from collections.abc import Iterator

from orchestrator.results.store import Store
from orchestrator.signals import Caught
from orchestrator.sweep.checkpoint_folders import ASKED
from orchestrator.sweep.observer import SweepObserver
from orchestrator.sweep.progress import Progress

#: How long packs may take to come to a report and save. Clusters give about 30 s of notice.
PATIENCE_SECONDS = 15.0


class Departure:
    """Asks the packs that run for a checkpoint once a signal came, and says when it is time to go."""

    def __init__(self, store: Store, caught: Caught, observer: SweepObserver, progress: Progress) -> None:
        self._store, self._caught, self._observer, self._progress = store, caught, observer, progress
        self._running: set[str] | None = None
        self._deadline = 0.0

    @contextlib.contextmanager
    def answered(self) -> Iterator[None]:
        """For the length of a run: the first signal asks, the second interrupts."""
        self._store.delete(ASKED)
        try:
            with self._caught.patience():
                yield
        finally:
            with contextlib.suppress(OSError):
                self._store.delete(ASKED)

    def due(self) -> bool:
        """Whether a signal came, and every pack that ran then has saved, or had its time."""
        if self._caught.signal is None:
            return False
        if self._running is None:
            self._running = set(self._observer.running)
            self._deadline = time.monotonic() + PATIENCE_SECONDS
            self._progress.say("saving checkpoints; once more, and it ends at once")
            # Where the disk is full there is no checkpoint either.
            with contextlib.suppress(OSError):
                self._store.write_bytes(ASKED, b"")
        waiting = (self._running & self._observer.running) - self._observer.saved
        return not waiting or time.monotonic() > self._deadline
