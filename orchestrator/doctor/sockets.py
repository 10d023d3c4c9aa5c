"""What listens on this machine, and whether it asks for a token."""

import http.client
import ipaddress
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: State of a listening socket in Linux's tables.
_LISTENS = "0A"
_ANSWER_SECONDS = 2


class Listener(NamedTuple):
    """A TCP port on which something listens."""

    address: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Reached from this machine alone."""
        address = ipaddress.ip_address(self.address)
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback


def listeners(tables: Path = Path("/proc/net")) -> list[Listener]:
    """Every listening TCP port of this machine; none where there are no tables of Linux's kind."""
    return sorted({listener for name in ("tcp", "tcp6") for listener in _read(tables / name)})


def _read(table: Path) -> Iterator[Listener]:
    if not table.exists():
        return
    for line in table.read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        if state == _LISTENS:
            address, port = local.split(":")
            yield Listener(_address(address), int(port, 16))


def _address(text: str) -> str:
    """An address as the kernel prints it: words of four bytes, each in the machine's order."""
    words = [bytes.fromhex(text[i : i + 8]) for i in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)))


def asks_for_token(listener: Listener) -> bool:
    """Whether what listens there refuses a request that shows no token; what does not answer does not refuse."""
    host = "localhost" if ipaddress.ip_address(listener.address).is_unspecified else listener.address
    connection = http.client.HTTPConnection(host, listener.port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/nodes?view=summary")
        return connection.getresponse().status in (401, 403)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
