"""Tables to Parquet bytes and back, such that altered bytes are noticed."""

import base64

import pyarrow as pa
import pyarrow.parquet as pq


class DamagedError(ValueError):
    """A file that is there but cannot be read back as it was written: cut short, altered, or of another kind."""


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

    Page checksums cover the data but not the footer, so the footer is held against itself: its column names against
    the Arrow schema stored beside them, its row count against the rows.

    Args:
        name: what the bytes are, for messages.
        data: the whole file.
        schema: the columns wanted.

    Raises:
        DamagedError: the bytes are not what was written.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            _check_names(file.metadata)
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
    """
    try:
        return pq.read_metadata(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DamagedError(f"{name}: {error}") from error


def _check_names(metadata: pq.FileMetaData) -> None:
    stored = (metadata.metadata or {}).get(b"ARROW:schema")
    if stored is None:
        return
    expected = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(stored)))
    if expected.names != metadata.schema.names:
        raise ValueError("column names in the footer disagree")
