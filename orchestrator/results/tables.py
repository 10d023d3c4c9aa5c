"""A sweep's four tables as Arrow, for pandas, polars and whatever else takes them."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path

import pyarrow as pa

from orchestrator.results.consolidate import consolidate, mended
from orchestrator.results.runs import find_run
from orchestrator.results.schema import SCHEMAS
from orchestrator.results.sources import Source
from orchestrator.results.store import Store


class Tables:
    """The tables of a sweep; each is read when it is first asked for, and then kept."""

    def __init__(self, store: Store, damaged: Iterable[Source] = (), refresh: bool = False) -> None:
        """``refresh``: build a file again from its chunks where it turns out to be damaged."""
        self.store = store
        self._refresh = refresh
        #: Damaged chunks whose rows are missing.
        self.damaged = tuple(damaged)

    def __repr__(self) -> str:
        return f"Tables({self.store.uri!r})"

    @cached_property
    def trials(self) -> pa.Table:
        """A row a trial."""
        return self._read("trials")

    @cached_property
    def steps(self) -> pa.Table:
        """A row a trial and step."""
        return self._read("steps")

    @cached_property
    def layers(self) -> pa.Table:
        """A row a trial, step and matrix: most of what there is."""
        return self._read("layers")

    @cached_property
    def events(self) -> pa.Table:
        """A row a warning and a decision."""
        return self._read("events")

    def _read(self, table: str) -> pa.Table:
        return mended([self.store], lambda: self._read_files(table)) if self._refresh else self._read_files(table)

    def _read_files(self, table: str) -> pa.Table:
        schema = SCHEMAS[table]
        paths = [path for path in self.store.list(f"dataset/{table}") if path.endswith(".parquet")]
        with ThreadPoolExecutor() as pool:
            parts = pool.map(partial(self.store.read_table, schema=schema), paths)
            return pa.concat_tables([schema.empty_table(), *parts])


def load(run: str | Path, *, refresh: bool = True) -> Tables:
    """The tables of a sweep.

    Args:
        run: its folder or URI, or its name under ``runs/``.
        refresh: bring the dataset up to date first, as the commands do; without it nothing is written, and what has
            happened since the dataset was made is not seen.

    Raises:
        FileNotFoundError: no sweep is there.
        ValueError: an address that cannot be opened.
        DamagedError: a file of the dataset is damaged; raised here or when its table is read.
        NewerError: a later version of the program wrote it.
    """
    store = find_run(str(run))
    return Tables(store, consolidate(store).damaged if refresh else (), refresh)
