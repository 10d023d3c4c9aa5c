"""What holds for all tests."""

import signal


def pytest_configure() -> None:
    """Let Ctrl-C be heard: pytest-xdist's workers ignore it, and so would every command that a test starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
