"""SQL over the dataset of one or several sweeps, through DuckDB.

The connection cannot reach files, the network, extensions or the caller's variables, and its settings are locked. That
guards against accidents and leaks, not against SQL written to attack the process: DuckDB runs inside it.
"""

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from orchestrator.results.errors import DamagedError, DamagedQueryError, QueryError
from orchestrator.results.runs import run_names
from orchestrator.results.schema import SCHEMAS
from orchestrator.results.store import Store

#: Settings before anything is registered; what is locked afterwards needs a running connection.
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    # Large sorts may not spill next to the caller's files.
    "temp_directory": "",
    # How many rows a table has is not known when a query is planned: the right side of a join is taken for the smaller.
    "disabled_optimizers": "build_side_probe_side",
}
_SIZE = re.compile(r"\d+(\.\d+)? ?([KMGT]i?B|B)", re.IGNORECASE)


def connect(stores: Store | Sequence[Store], memory: str | None = None) -> duckdb.DuckDBPyConnection:
    """A locked connection with the tables ``trials, steps, layers, events`` of consolidated sweeps.

    A table that is not there is empty. Page checksums are verified while reading. With a sequence of stores every table
    has a further last column ``run``, see `run_names`.

    Args:
        stores: one sweep's folder, or several.
        memory: how much DuckDB may hold at once, such as ``2GB``; by default four fifths of the machine's.

    Raises:
        ValueError: an empty list of stores, or the same one twice.
        NewerError: a later version of the program wrote the dataset.
    """
    connection = duckdb.connect(":memory:", config=_CONFIG | ({"memory_limit": memory} if memory else {}))
    if isinstance(stores, Store):
        for table in SCHEMAS:
            connection.register(table, _dataset(stores, table))
    else:
        _register(connection, dict(zip(run_names(stores), stores, strict=True)))
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def query(stores: Store | Sequence[Store], sql: str, timeout_s: float = 60.0, memory: str | None = None) -> pa.Table:
    """Run SQL over the dataset; see `connect` for the tables.

    Args:
        stores: one sweep's folder, or several.
        sql: one or more statements; the last one's rows are returned.
        timeout_s: seconds after which the query is ended.
        memory: how much DuckDB may hold at once, such as ``2GB``; the answer itself comes on top.

    Raises:
        QueryError: the query is wrong, forbidden, too slow, too large, or met a damaged file; the message is DuckDB's.
        ValueError: an empty list of stores, the same one twice, no time, or not a size.
        NewerError: a later version of the program wrote the dataset.
    """
    check_limits(timeout_s, memory)
    with connect(stores, memory) as connection:
        timed_out = threading.Event()

        def end() -> None:
            timed_out.set()
            connection.interrupt()

        timer = threading.Timer(timeout_s, end)
        timer.start()
        try:
            relation = connection.sql(sql)
            return pa.table({}) if relation is None else relation.to_arrow_table()
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            if timed_out.is_set():
                raise QueryError(f"no answer within {timeout_s:g} s; ask for less or allow more time") from None
            if isinstance(error, duckdb.OutOfMemoryException):
                raise QueryError(f"not enough memory: ask for less or allow more ({error})") from None
            if damaged := [*_damaged(stores, error)]:
                raise DamagedQueryError("\n".join([str(error), *damaged])) from None
            raise QueryError(str(error)) from None
        finally:
            timer.cancel()
            # Otherwise a timer that fires just now would interrupt a closed connection.
            timer.join()


def check_limits(timeout_s: float, memory: str | None) -> None:
    """Refuse limits that are none.

    Raises:
        ValueError: the time is not above 0 s, or the memory not a size.
    """
    if not 0 < timeout_s <= threading.TIMEOUT_MAX:
        raise ValueError(f"a query needs some seconds to answer in, got {timeout_s:g}")
    if memory is not None and not _SIZE.fullmatch(memory):
        raise ValueError(f"{memory!r} is not a size; write 500MB, 2GB or 1.5GiB")


def _register(connection: duckdb.DuckDBPyConnection, stores: dict[str, Store]) -> None:
    for table in SCHEMAS:
        parts = []
        for i, (name, store) in enumerate(stores.items()):
            connection.register(f"{table}_{i}", _dataset(store, table))
            quoted = name.replace("'", "''")
            parts.append(f"SELECT *, '{quoted}' AS run FROM {table}_{i}")
        connection.execute(f"CREATE TEMP VIEW {table} AS {' UNION ALL '.join(parts)}")


def _damaged(stores: Store | Sequence[Store], error: Exception) -> Iterator[str]:
    """What to do about each damaged file, where that may be why a query failed."""
    if not isinstance(error, (duckdb.InvalidInputException, duckdb.IOException, pa.ArrowException, OSError)):
        return
    for store in [stores] if isinstance(stores, Store) else stores:
        for table, schema in SCHEMAS.items():
            for path in _files(store, table):
                try:
                    store.read_table(path, schema)
                except DamagedError as damage:
                    yield f"{damage}: delete this file in {store.uri} and consolidate again"


def _files(store: Store, table: str) -> list[str]:
    return [path for path in store.list(f"dataset/{table}") if path.endswith(".parquet")]


def _dataset(store: Store, table: str) -> pads.Dataset:
    files, schema = _files(store, table), SCHEMAS[table]
    if not files:
        return pads.dataset(schema.empty_table())
    with suppress(DamagedError):  # which the query itself tells of
        store.read_footer(files[0])  # one stands for all: a dataset is made by one program
    places = [store.arrow_source(path) for path in files]
    options = pads.ParquetFragmentScanOptions(page_checksum_verification=True)
    return pads.dataset(
        [path for _, path in places],
        filesystem=places[0][0],
        schema=schema,
        format=pads.ParquetFileFormat(default_fragment_scan_options=options),
    )
