"""What a dataset file was made from, kept in the file itself, under a hash: a footer has no checksum of its own."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

#: Key of a dataset file's metadata that holds its `Sources`.
_KEY = b"altgrad_sources"


@dataclass(frozen=True)
class Source:
    """A chunk that a dataset file was made from."""

    path: str
    bytes: int
    #: Of its content; None where it could not be read at all.
    sha256: str | None
    #: Why its rows are missing; None where they are there.
    damage: str | None = None


@dataclass(frozen=True)
class Sources:
    """Everything that decides the content of a dataset file, and what the table of trials needs of it."""

    chunks: tuple[Source, ...] = ()
    #: Digest of the journal's lane ends that became events.
    ends: str = ""
    #: The steps' `summaries` by key; None for other tables.
    lanes: dict[str, dict[str, Any]] | None = None

    def to_metadata(self) -> dict[bytes, bytes]:
        """As metadata of a Parquet file."""
        text = json.dumps(asdict(self), sort_keys=True).encode()
        return {_KEY: _digest(text) + text}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes] | None) -> "Sources | None":
        """What `to_metadata` wrote; None where that is missing, altered, or has other fields."""
        held = (metadata or {}).get(_KEY, b"")
        text = held[64:]
        if held[:64] != _digest(text):
            return None
        values = json.loads(text)
        try:
            return cls(**{**values, "chunks": tuple(Source(**chunk) for chunk in values["chunks"])})
        except (TypeError, KeyError):
            return None


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()
