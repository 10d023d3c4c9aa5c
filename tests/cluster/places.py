"""Where clusters of tests live: ports nobody has, folders with short names, an environment with a token."""

import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sweeps import environment


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; held together, so that they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def ray_environment(home: Path) -> Iterator[dict[str, str]]:
    """What the processes of one cluster have in common: a token, and a folder in which they find each other.

    The paths of Ray's sockets may have 107 characters, too few for a folder of pytest's.
    """
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    with tempfile.TemporaryDirectory(prefix="altgrad-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield environment(home) | {
            "RAY_AUTH_MODE": "token",
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
