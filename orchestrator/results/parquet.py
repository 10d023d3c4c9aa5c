"""Tables to Parquet bytes and back, such that altered bytes are noticed."""

import base64

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.results.errors import DamagedError
from orchestrator.results.versions import VERSION_KEY, check_version


def encode_table(table: pa.Table) -> bytes:
    """A table as one Parquet file: zstd, split float bytes, a checksum on every page."""
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    others = [field.name for field in table.schema if not pa.types.is_floating(field.type)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=others,
        use_byte_stream_split=floats,
        write_page_checksum=True,
    )
    return sink.getvalue().to_pybytes()


def decode_table(name: str, data: bytes, schema: pa.Schema) -> pa.Table:
    """A Parquet file's bytes as a table of ``schema``: columns it lacks are null, columns it has besides are dropped.

    Page checksums cover the data but not the footer, so the footer is held against itself: its column names and
    version against the Arrow schema stored beside them, its row count against the rows.

    Args:
        name: what the bytes are, for messages.
        data: the whole file.
        schema: the columns wanted.

    Raises:
        DamagedError: the bytes are not what was written.
        NewerError: a later version of the program wrote them.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            _check_footer(file.metadata)
            check_version(name, file.metadata.metadata)
            present = set(file.schema_arrow.names)
            found = file.read(columns=[name for name in schema.names if name in present])
            if found.num_rows != file.metadata.num_rows:
                raise ValueError(f"the footer promises {file.metadata.num_rows} rows, there are {found.num_rows}")
        columns = [
            found[field.name].cast(field.type) if field.name in present else pa.nulls(len(found), field.type)
            for field in schema
        ]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DamagedError(f"{name}: {error}") from error
    return pa.table(columns, schema=schema)


def decode_footer(name: str, file: pa.NativeFile) -> pq.FileMetaData:
    """The footer of an open Parquet file: its rows, columns and metadata, without its data.

    Raises:
        DamagedError: it has no whole footer.
        NewerError: a later version of the program wrote it.
    """
    try:
        footer = pq.read_metadata(file)
        _check_footer(footer)
        check_version(name, footer.metadata)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DamagedError(f"{name}: {error}") from error
    return footer


def _check_footer(metadata: pq.FileMetaData) -> None:
    found = metadata.metadata or {}
    if (stored := found.get(b"ARROW:schema")) is None:
        return
    expected = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(stored)))
    if expected.names != metadata.schema.names:
        raise ValueError("column names in the footer disagree")
    if (expected.metadata or {}).get(VERSION_KEY) != found.get(VERSION_KEY):
        raise ValueError("versions in the footer disagree")
