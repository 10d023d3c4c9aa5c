"""The version of the columns that results are kept in, and how a later one is told.

A name is never given a second meaning: a column whose type or meaning changes gets another name. So files of an earlier
version are read by name, and what they lack is null. Files of a later version are refused, for what their columns mean
is not known here.
"""

from collections.abc import Mapping

from orchestrator.results.errors import NewerError

#: Raised by one whenever a column is renamed, or dropped for one with another type or meaning; not for one more column.
SCHEMA_VERSION = 1
#: Key of a Parquet file's metadata that holds the version it was written in.
VERSION_KEY = b"altgrad_schema"


def check_version(name: str, metadata: Mapping[bytes, bytes] | None) -> None:
    """Refuse a file of a later version; one that names none is of the first.

    Args:
        name: what the file is, for the message.
        metadata: of the Parquet file.

    Raises:
        NewerError: the file is of a later version.
        ValueError: its version is not a number.
    """
    version = int((metadata or {}).get(VERSION_KEY, b"1"))
    if version > SCHEMA_VERSION:
        raise NewerError(
            f"{name} has schema version {version}, this program reads up to {SCHEMA_VERSION}: use a newer altgrad"
        )
