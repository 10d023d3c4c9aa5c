"""SQL over the dataset of one or several sweeps, through DuckDB.

The connection cannot reach files, the network, extensions or the caller's variables, and its settings are locked. That
guards against accidents and leaks, not against SQL written to attack the process: DuckDB runs inside it.
"""

import threading
from collections.abc import Iterator, Sequence

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from orchestrator.results.parquet import DamagedError
from orchestrator.results.schema import SCHEMAS
from orchestrator.results.store import Store

#: Settings before anything is registered; what is locked afterwards needs a running connection.
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    # Large sorts may not spill next to the caller's files.
    "temp_directory": "",
}


class QueryError(Exception):
    """A query that cannot be answered: wrong SQL, something forbidden, too slow, or a damaged file."""


def connect(stores: Store | Sequence[Store]) -> duckdb.DuckDBPyConnection:
    """A locked connection with the tables ``trials, steps, layers, events`` of consolidated sweeps.

    A table that is not there is empty. Page checksums are verified while reading. With several stores every table has
    a further last column ``run``, the name of the sweep's folder.

    Raises:
        ValueError: an empty list of stores.
    """
    if not isinstance(stores, Store) and not stores:
        raise ValueError("no sweep to read")
    connection = duckdb.connect(":memory:", config=_CONFIG)
    for table in SCHEMAS:
        if isinstance(stores, Store):
            connection.register(table, _dataset(stores, table))
            continue
        parts = []
        for i, store in enumerate(stores):
            connection.register(f"{table}_{i}", _dataset(store, table))
            name = store.name.replace("'", "''")
            parts.append(f"SELECT *, '{name}' AS run FROM {table}_{i}")
        connection.execute(f"CREATE TEMP VIEW {table} AS {' UNION ALL '.join(parts)}")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def query(stores: Store | Sequence[Store], sql: str, timeout_s: float = 60.0) -> pa.Table:
    """Run SQL over the dataset; see `connect` for the tables.

    Args:
        stores: one sweep's folder, or several.
        sql: one or more statements; the last one's rows are returned.
        timeout_s: seconds after which the query is ended.

    Raises:
        QueryError: the query is wrong, forbidden, too slow, or met a damaged file; the message is DuckDB's.
    """
    with connect(stores) as connection:
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
            raise QueryError("\n".join([str(error), *_damaged(stores, error)])) from None
        finally:
            timer.cancel()
            # Otherwise a timer that fires just now would interrupt a closed connection.
            timer.join()


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
    schema = SCHEMAS[table]
    places = [store.arrow_source(path) for path in _files(store, table)]
    if not places:
        return pads.dataset(schema.empty_table())
    options = pads.ParquetFragmentScanOptions(page_checksum_verification=True)
    return pads.dataset(
        [path for _, path in places],
        filesystem=places[0][0],
        schema=schema,
        format=pads.ParquetFileFormat(default_fragment_scan_options=options),
    )
