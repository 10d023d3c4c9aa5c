"""SQL sees the four tables and nothing else, and a query that cannot be answered says why in words."""

import time
from pathlib import Path

import pyarrow as pa
import pytest
from synthetic_sweep import Sweep

from orchestrator.results.consolidate import consolidate
from orchestrator.results.errors import DamagedQueryError, QueryError
from orchestrator.results.queries import connect, query
from orchestrator.results.schema import SCHEMAS
from orchestrator.results.store import Store


@pytest.fixture
def trained(any_sweep: Sweep) -> Store:
    any_sweep.train(any_sweep.add_pack(lanes=2), [2.0, 3.0], [("completed", 400), ("asha", 100)])
    any_sweep.train(any_sweep.add_pack(format="E5M2"), [2.5])
    consolidate(any_sweep.store)
    return any_sweep.store


def test_tables_join_across_packs(trained: Store) -> None:
    found = query(
        trained, "SELECT format, count(*) n FROM steps JOIN trials USING (key) GROUP BY format ORDER BY format"
    )
    assert found.to_pylist() == [{"format": "E4M3", "n": 500}, {"format": "E5M2", "n": 400}]


@pytest.mark.parametrize("table", SCHEMAS)
def test_every_table_has_its_columns_even_without_a_dataset(trained: Store, tmp_path: Path, table: str) -> None:
    for store in (trained, Store.open(tmp_path / "nothing")):
        found = query(store, f"SELECT * FROM {table}")
        assert found.schema.remove_metadata().equals(pa.schema([f.remove_metadata() for f in SCHEMAS[table]]))
    assert query(Store.open(tmp_path / "nothing"), f"SELECT count(*) n FROM {table}").to_pylist() == [{"n": 0}]


def test_undefined_is_null_to_sql(trained: Store) -> None:
    found = query(
        trained, "SELECT count(*) - count(val_loss) AS undefined, count(*) FILTER (isnan(val_loss)) AS nans FROM steps"
    )
    assert found.to_pylist() == [{"undefined": 900 - 6, "nans": 0}]


def test_a_column_that_an_older_dataset_lacks_is_null(local_store: Store) -> None:
    local_store.write_table("dataset/steps/old.parquet", pa.table({"key": ["k"], "step": [1]}))
    assert query(local_store, "SELECT key, step, loss FROM steps").to_pylist() == [
        {"key": "k", "step": 1, "loss": None}
    ]


def test_several_sweeps_are_told_apart_by_run(tmp_path: Path) -> None:
    stores = []
    for name in ("first", "it's second"):
        sweep = Sweep(Store.open(tmp_path / name))
        sweep.train(sweep.add_pack(), [2.0])
        consolidate(sweep.store)
        stores.append(sweep.store)
    found = query(stores, "SELECT run, count(*) AS n FROM steps GROUP BY run ORDER BY run").to_pylist()
    assert found == [{"run": "first", "n": 400}, {"run": "it's second", "n": 400}]
    with pytest.raises(ValueError, match="no sweep to read"):
        connect([])


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT los FROM steps", '"los" not found'),
        ("FROM nope", "nope"),
    ],
)
def test_wrong_sql_is_explained_in_duckdbs_words(local_store: Store, sql: str, message: str) -> None:
    with pytest.raises(QueryError, match=message) as caught:
        query(local_store, sql)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM range(100000000) a, range(100000) b WHERE a.range * b.range % 7 = 3",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT max(n) FROM r",
    ],
)
def test_a_query_that_takes_too_long_is_ended(local_store: Store, sql: str) -> None:
    began = time.monotonic()
    with pytest.raises(QueryError, match=r"no answer within 0\.2 s"):
        query(local_store, sql, timeout_s=0.2)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("sql", "rows"), [("CREATE TABLE t AS SELECT 1 AS a; FROM t", [{"a": 1}]), ("-- nothing", []), ("", [])]
)
def test_tables_in_memory_and_empty_queries_are_harmless(local_store: Store, sql: str, rows: list[object]) -> None:
    assert query(local_store, sql).to_pylist() == rows


def test_a_damaged_file_is_an_error_that_names_it_and_the_way_out(sweep: Sweep) -> None:
    sweep.train(sweep.add_pack(), [2.0])
    consolidate(sweep.store)
    path = "dataset/steps/p000.parquet"
    data = bytearray(sweep.store.read_bytes(path))
    data[data.index(b"(\xb5\x2f\xfd") + 12] ^= 1
    sweep.store.write_bytes(path, bytes(data))
    with pytest.raises(
        DamagedQueryError, match=r"dataset/steps/p000.parquet: .*: delete this file in .* and consolidate again"
    ):
        query(sweep.store, "SELECT count(DISTINCT key) FROM steps")
