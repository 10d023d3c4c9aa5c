"""What holds for all tests."""

import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from command import Command


def pytest_configure() -> None:
    """Let Ctrl-C be heard: pytest-xdist's workers ignore it, and so would every command that a test starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Command":
    """The `altgrad` command, called in this process."""
    from command import caller

    return caller(monkeypatch, capsys)
