"""Ctrl-C, and SIGTERM, a cluster's notice that a machine goes: both end a command, at once or when it is ready."""

import signal
import types
from collections.abc import Iterator
from contextlib import contextmanager


class Caught:
    """The signal that asked the command to end, if one did."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._patient = False

    def listen(self) -> None:
        """Answer both signals from here on, whoever did before."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask_to_end)

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Here somebody looks at `signal` and ends in order; only the second signal interrupts."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def _ask_to_end(self, number: int, frame: types.FrameType | None) -> None:
        again = self.signal is not None
        self.signal = self.signal or signal.Signals(number)
        if again or not self._patient:
            raise KeyboardInterrupt


@contextmanager
def caught_signals() -> Iterator[Caught]:
    """Listen to both signals for a while."""
    caught = Caught()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    caught.listen()
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
