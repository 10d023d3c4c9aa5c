"""SQL that tries to get at anything but the tables fails, leaves nothing behind, and says nothing it should not."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.results.errors import QueryError
from orchestrator.results.queries import query
from orchestrator.results.store import Store

CANARY = "canary-7f3a"
#: What a variable of this module and of the caller hold.
SECRET_TABLE = pa.table({"secret": [CANARY]})

FILES = [
    "SELECT * FROM read_csv('{there}/canary.csv')",
    "SELECT * FROM read_csv_auto('{there}/canary.csv')",
    "SELECT * FROM sniff_csv('{there}/canary.csv')",
    "SELECT * FROM read_text('{there}/canary.csv')",
    "SELECT * FROM read_blob('{there}/canary.csv')",
    "SELECT * FROM read_json('{there}/canary.json')",
    "SELECT * FROM read_ndjson_objects('{there}/canary.json')",
    "SELECT * FROM read_parquet('{there}/canary.parquet')",
    "SELECT * FROM parquet_metadata('{there}/canary.parquet')",
    "SELECT * FROM parquet_schema('{there}/canary.parquet')",
    "SELECT * FROM parquet_kv_metadata('{there}/canary.parquet')",
    "SELECT * FROM glob('{there}/*')",
    "FROM '{there}/canary.csv'",
    "FROM '{there}/canary.parquet'",
    'SELECT * FROM "{there}/canary.json"',
    "FROM 'file://{there}/canary.csv'",
    "SELECT * FROM query('FROM read_csv(''{there}/canary.csv'')')",
    "SELECT * FROM query_table('{there}/canary.csv')",
    "CREATE MACRO steal() AS TABLE FROM read_text('{there}/canary.csv'); FROM steal()",
    "CREATE VIEW stolen AS FROM read_csv('{there}/canary.csv'); FROM stolen",
    "CREATE TABLE stolen AS FROM '{there}/canary.csv'; FROM stolen",
    "CREATE TABLE stolen (line VARCHAR); COPY stolen FROM '{there}/canary.csv'; FROM stolen",
    "PREPARE steal AS SELECT * FROM read_text('{there}/canary.csv'); EXECUTE steal",
    "SET VARIABLE stolen = (SELECT content FROM read_text('{there}/canary.csv')); SELECT getvariable('stolen')",
    "FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''{there}/canary.csv'')'))",
    "EXPLAIN ANALYZE SELECT * FROM read_text('{there}/canary.csv')",
]
WRITES = [
    "COPY (SELECT 1) TO 'escaped.csv'",
    "COPY (SELECT 1) TO '/dev/stdout'",
    "COPY trials TO 'escaped.parquet' (FORMAT parquet)",
    "COPY trials TO 'escaped' (FORMAT parquet, PARTITION_BY (format))",
    "EXPORT DATABASE 'escaped'",
    "IMPORT DATABASE '{there}'",
    "ATTACH 'escaped.db'",
    "ATTACH '{there}/canary.csv' AS other",
    "ATTACH IF NOT EXISTS 'escaped.db' AS other (READ_ONLY)",
    "ATTACH 'https://example.invalid/x.db' AS other",
    "INSERT INTO trials VALUES (1)",
    "UPDATE trials SET status = 'finished'",
    "DELETE FROM steps",
    "PRAGMA enable_profiling = 'json'; PRAGMA profiling_output = 'escaped.json'; SELECT 1",
    "SET profiling_output = 'escaped.json'",
    "CALL enable_logging(storage_path = 'escaped')",
    "CALL enable_profiling(save_location = 'escaped.json')",
    "SET log_query_path = 'escaped.log'",
]
NETWORK = [
    "FROM 'https://example.invalid/x.csv'",
    "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
    "SELECT * FROM read_csv('http://127.0.0.1:9/x.csv')",
    "SELECT * FROM read_text('hf://datasets/x/y.txt')",
    "INSTALL httpfs",
    "FORCE INSTALL httpfs FROM 'http://127.0.0.1:9'",
    "INSTALL '{there}/x.duckdb_extension'",
    "LOAD httpfs",
    "LOAD '{there}/x.duckdb_extension'",
    "UPDATE EXTENSIONS",
    "CREATE SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "CREATE PERSISTENT SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')",
]
SETTINGS = [
    "SET enable_external_access = true",
    "PRAGMA enable_external_access = true",
    "RESET enable_external_access",
    "SET lock_configuration = false",
    "RESET lock_configuration",
    "SET GLOBAL lock_configuration = false",
    "SELECT 1; SET lock_configuration = false; SELECT 2",
    "SELECT set_config('lock_configuration', 'false')",
    "SET python_enable_replacements = true",
    "SET python_scan_all_frames = true",
    "SET autoinstall_known_extensions = true",
    "SET allow_unsigned_extensions = true",
    "SET custom_extension_repository = 'http://127.0.0.1:9'",
    "SET extension_directory = '{there}'",
    "SET allowed_directories = ['{there}']",
    "SET allowed_paths = ['{there}/canary.csv']",
    "SET temp_directory = '{there}'",
    "SET secret_directory = '{there}'",
    "SET home_directory = '{there}'",
    "SET file_search_path = '{there}'",
    "SET memory_limit = '100GB'",
    "SET threads = 64",
]
VARIABLES = [
    "SELECT * FROM SECRET_TABLE",
    "SELECT * FROM secret_frame",
    "SELECT * FROM local_table",
    "SELECT * FROM connection",
    "SELECT getenv('ALTGRAD_CANARY')",
    "SELECT * FROM python_map_function('x')",
]


DISABLED, LOCKED, NOT_THERE = "disabled by|disabled through", "the configuration has been locked", "does not exist"
#: What is tried, and in which words it is refused.
ATTEMPTS = [
    *((sql, DISABLED) for sql in FILES),
    *((sql, f"{DISABLED}|{LOCKED}|is not an? table|base table|requires the extension") for sql in WRITES),
    *((sql, DISABLED) for sql in NETWORK),
    *((sql, f"{LOCKED}|{NOT_THERE}") for sql in SETTINGS),
    *((sql, f"{NOT_THERE}|requires a subquery") for sql in VARIABLES),
]


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A folder with files worth reading."""
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "canary.csv").write_text(f"line\n{CANARY}\n")
    (folder / "canary.json").write_text(f'{{"line": "{CANARY}"}}\n')
    pq.write_table(SECRET_TABLE, folder / "canary.parquet")
    return folder


@pytest.mark.parametrize(("sql", "message"), ATTEMPTS)
def test_an_attempt_to_get_out_fails(
    sql: str, message: str, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALTGRAD_CANARY", CANARY)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    local_table, secret_frame = SECRET_TABLE, SECRET_TABLE.to_pandas()
    with pytest.raises(QueryError, match=message) as refused:
        query(Store.open(tmp_path / "run"), sql.format(there=there), timeout_s=20)
    assert CANARY not in str(refused.value)
    assert len(local_table) == len(secret_frame) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not any(working.iterdir())


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM duckdb_settings()",
        "SELECT * FROM duckdb_databases()",
        "SELECT current_setting('temp_directory')",
        "PRAGMA database_list",
        "SHOW ALL TABLES",
        "ATTACH ':memory:' AS other; CREATE TABLE other.t AS SELECT 1 AS a; FROM other.t",
    ],
)
def test_what_the_database_says_of_itself_holds_no_secret(
    sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALTGRAD_CANARY", CANARY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    monkeypatch.chdir(tmp_path)
    told = query(Store.open(tmp_path / "run"), sql).to_pylist()
    assert told
    assert CANARY not in str(told)
    assert not any(tmp_path.iterdir())


def test_kept_secrets_of_the_database_are_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="Cannot access"):
        query(Store.open(tmp_path / "run"), "SELECT * FROM duckdb_secrets()")


@pytest.mark.parametrize("sql", [FILES[0], FILES[3], FILES[7], FILES[12], FILES[18], FILES[19], FILES[23]])
def test_what_is_refused_works_where_nothing_is_locked(sql: str, there: Path) -> None:
    with duckdb.connect(":memory:") as connection:
        assert CANARY in str(connection.sql(sql.format(there=there)).to_arrow_table().to_pylist())
