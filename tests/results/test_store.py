"""Files appear whole or not at all, nothing leads out of the folder, and altered bytes are noticed."""

import datetime as dt
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.results import local
from orchestrator.results.parquet import DamagedError, decode_table, encode_table
from orchestrator.results.schema import SCHEMAS
from orchestrator.results.store import ChunkWriter, Store, attempts, chunks, next_attempt, validate_name

STEPS = SCHEMAS["steps"]


def steps_table(rows: int) -> pa.Table:
    rng = np.random.default_rng(0)
    columns = {}
    for field in STEPS:
        if pa.types.is_string(field.type):
            columns[field.name] = [f"{field.name}{i % 3}" for i in range(rows)]
        else:
            columns[field.name] = rng.integers(0, 1000, rows)
    return pa.table(columns).cast(STEPS)


# --- names and paths


@pytest.mark.parametrize("name", ["a", "fp8-sweep_2.1", "0", "A" * 64])
def test_a_plain_name_is_valid(name: str) -> None:
    assert validate_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "a..b", "-a", ".a", "_a", "a b", "a\n", "A" * 65, "ä", "a\0", "/etc", "~"],
)
def test_a_name_that_could_escape_or_surprise_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a valid name; use 1 to 64"):
        validate_name(name)


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/.", "a\\..\\b", "a/", "a\0"]
)
@pytest.mark.parametrize("method", ["exists", "read_bytes", "delete", "sub", "read_footer"])
def test_a_path_cannot_lead_out_of_the_folder(store: Store, method: str, path: str) -> None:
    with pytest.raises(ValueError, match="is not a path inside"):
        getattr(store, method)(path)
    with pytest.raises(ValueError, match="is not a path inside"):
        store.write_bytes(path, b"")


def test_an_address_with_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(ValueError, match="must not carry a password") as caught:
        Store.open("s3://user:hunter2@bucket/runs")
    assert "hunter2" not in str(caught.value)


def test_an_address_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="Unrecognized filesystem"):
        Store.open("nope://bucket/x")


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_local_store_reopens_from_its_uri(tmp_path: Path, form: str) -> None:
    store = Store.open(form.format(tmp_path / "run"))
    store.write_bytes("a/b.txt", b"x")
    assert store.uri == str(tmp_path / "run")
    assert Store.open(store.uri).read_bytes("a/b.txt") == b"x"
    assert Store.open(store.sub("a").uri).read_bytes("b.txt") == b"x"


def test_a_relative_path_means_the_same_after_a_change_of_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store.open("run")
    monkeypatch.chdir("/")
    store.write_bytes("a", b"x")
    assert (tmp_path / "run" / "a").read_bytes() == b"x"


def test_the_uri_of_a_subfolder_keeps_the_options_of_the_address() -> None:
    store = Store(pafs._MockFileSystem(), "bucket/run", "s3://bucket/run?endpoint_override=localhost:9000")
    assert store.sub("a/b").uri == "s3://bucket/run/a/b?endpoint_override=localhost:9000"
    assert store.sub("a/b").name == "b"


# --- files


def test_files_are_written_listed_read_and_deleted(store: Store) -> None:
    assert store.list() == []
    for path in ("b/2", "b/1", "a"):
        store.write_bytes(path, path.encode())
    assert store.list() == ["a", "b/1", "b/2"]
    assert store.list("b") == ["b/1", "b/2"]
    assert store.sizes("b") == {"b/1": 3, "b/2": 3}
    assert store.sub("b").list() == ["1", "2"]
    assert store.sub("b").read_bytes("1") == b"b/1"
    store.write_bytes("a", b"again")
    assert store.read_bytes("a") == b"again"
    store.delete("b")
    store.delete("never was")
    assert store.exists("a")
    assert not store.exists("b/1")
    store.delete("a")
    assert store.list() == []


@pytest.mark.parametrize(("start", "rest"), [(0, b"abc"), (2, b"c"), (3, b""), (9, b"")])
def test_a_file_is_read_from_where_one_wants(start: int, rest: bytes, store: Store) -> None:
    store.write_bytes("a/b", b"abc")
    assert store.read_bytes("a/b", start) == rest


def test_reading_what_is_not_there_says_so(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read_bytes("none")
    with pytest.raises(FileNotFoundError):
        store.read_table("none", STEPS)


def test_a_write_that_dies_leaves_the_old_content_and_nothing_beside_it(
    local_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_store.write_bytes("a", b"old")

    def die(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(local.os, "fsync", die)
    with pytest.raises(OSError, match="no space"):
        local_store.write_bytes("a", b"new")
    monkeypatch.undo()
    assert local_store.read_bytes("a") == b"old"
    assert os.listdir(local_store.uri) == ["a"]


class Interrupted:
    """A remote filesystem on which Ctrl-C falls between the opening of a file and its first byte."""

    def __init__(self) -> None:
        self._inner = pafs._MockFileSystem()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open_output_stream(self, path: str) -> pa.NativeFile:
        stream = self._inner.open_output_stream(path)
        if path.endswith("journal"):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.02)
        return stream


def test_ctrl_c_does_not_empty_a_remote_file_that_is_being_written_again() -> None:
    store = Store(Interrupted(), "bucket/run", "mock://bucket/run")
    store.write_bytes("a", b"")
    for count in range(1, 51):
        with pytest.raises(KeyboardInterrupt):
            store.append_line("journal", b"kept")
        assert store.read_bytes("journal") == b"kept\n" * count


def test_leftovers_of_a_killed_write_are_not_seen(local_store: Store) -> None:
    folder = Path(local_store.uri) / "packs" / "p" / "attempt-1"
    folder.mkdir(parents=True)
    (folder / "steps-000000.parquet.1234abcd.tmp").write_bytes(b"half")
    assert local_store.list() == []
    assert chunks(local_store, "p", "steps") == []
    assert next_attempt(local_store, "p") == 1


def test_the_file_is_synced_before_it_is_renamed(local_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(local.os, "fsync", lambda fd: (done.append("sync"), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (done.append("rename"), replace(a, b))[1])
    local_store.write_bytes("a", b"x")
    assert done[-3:] == ["sync", "rename", "sync"]


def test_lines_are_appended_and_a_torn_one_is_closed(store: Store) -> None:
    store.append_line("j", b"one")
    store.append_line("j", b"two")
    assert store.read_bytes("j") == b"one\ntwo\n"
    store.write_bytes("j", b"one\ntw")
    store.append_line("j", b"three")
    assert store.read_bytes("j") == b"one\ntw\nthree\n"


# --- tables


def test_a_table_comes_back_as_it_was_written(store: Store) -> None:
    table = steps_table(50)
    store.write_table("t.parquet", table)
    assert store.read_table("t.parquet", STEPS).equals(table)
    footer = store.read_footer("t.parquet")
    assert footer.num_rows == 50
    assert footer.metadata[b"altgrad_schema"] == b"1"


def test_columns_are_compressed_split_and_checked() -> None:
    data = encode_table(steps_table(50))
    group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    for i in range(group.num_columns):
        column = group.column(i)
        assert column.compression == "ZSTD"
        assert ("BYTE_STREAM_SPLIT" in column.encodings) == (column.physical_type == "FLOAT")


def test_a_missing_column_is_null_and_an_extra_one_is_dropped() -> None:
    table = pa.table({"key": ["k"], "step": [3], "loss": [2.5], "of_tomorrow": [1]})
    found = decode_table("t", encode_table(table), STEPS)
    assert found.schema.equals(STEPS)
    row = found.to_pylist()[0]
    assert (row["key"], row["step"], row["loss"], row["val_loss"]) == ("k", 3, 2.5, None)


ENCODED = encode_table(steps_table(40))


@given(st.integers(0, len(ENCODED) - 1), st.integers(0, 7))
@settings(max_examples=300, deadline=None)
def test_a_flipped_bit_is_damage_or_changes_nothing(position: int, bit: int) -> None:
    """Over all bits of this file there is no exception."""
    data = bytearray(ENCODED)
    data[position] ^= 1 << bit
    try:
        found = decode_table("t", bytes(data), STEPS)
    except DamagedError:
        return
    assert found.equals(steps_table(40))


@given(st.integers(0, len(ENCODED) - 1))
@settings(max_examples=50, deadline=None)
def test_a_truncated_file_is_damage(length: int) -> None:
    with pytest.raises(DamagedError, match=r"^name: "):
        decode_table("name", ENCODED[:length], STEPS)


def test_a_column_renamed_in_the_footer_is_not_taken_for_a_missing_one() -> None:
    footer = len(ENCODED) - 8 - int.from_bytes(ENCODED[-8:-4], "little")
    position = ENCODED.index(b"grad_norm", footer)
    data = ENCODED[:position] + b"grad_morm" + ENCODED[position + 9 :]
    with pytest.raises(DamagedError, match="column names in the footer disagree"):
        decode_table("t", data, STEPS)


def test_a_column_of_another_type_is_damage() -> None:
    with pytest.raises(DamagedError):
        decode_table("t", encode_table(pa.table({"step": ["not a number"]})), STEPS)


# --- chunks


def test_chunks_are_typed_numbered_and_bear_pack_and_attempt(store: Store) -> None:
    writer = ChunkWriter(store, "p1", 2)
    first = writer.append("steps", {"key": ["a", "b"], "step": np.array([1, 2]), "loss": [1.5, float("nan")]})
    second = writer.append("steps", {"key": ["a"], "step": [3]})
    events = writer.append("events", {"key": ["a"], "step": [3], "kind": ["asha"], "time": [dt.datetime(2026, 1, 2)]})
    assert first == "packs/p1/attempt-2/steps-000000.parquet"
    assert second == "packs/p1/attempt-2/steps-000001.parquet"
    assert events == "packs/p1/attempt-2/events-000000.parquet"
    table = store.read_table(first, STEPS)
    assert table.select(["key", "pack", "attempt", "step", "loss", "val_loss"]).to_pylist() == [
        {"key": "a", "pack": "p1", "attempt": 2, "step": 1, "loss": 1.5, "val_loss": None},
        {"key": "b", "pack": "p1", "attempt": 2, "step": 2, "loss": None, "val_loss": None},
    ]
    assert chunks(store, "p1", "steps") == [first, second]


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("loss", [1.0, float("nan"), None], [1.0, None, None]),
        ("loss", np.array([1.0, np.nan, np.inf], np.float32), [1.0, None, float("inf")]),
        ("loss", [np.float32(2.0), np.float32("nan"), 3], [2.0, None, 3.0]),
        ("loss", np.array([1 << 30, 1, 2]), [float(1 << 30), 1.0, 2.0]),
        ("flips", np.array([1, 2, 3], np.int32), [1, 2, 3]),
        ("flips", np.array([1.0, np.nan, 3.0]), [1, None, 3]),
        ("flips", [None, None, None], [None, None, None]),
    ],
)
def test_values_become_their_columns_type_and_undefined_becomes_null(
    local_store: Store, column: str, values: object, expected: list[object]
) -> None:
    path = ChunkWriter(local_store, "p", 1).append("steps", {"key": ["k"] * 3, "step": [1, 2, 3], column: values})
    assert local_store.read_table(path, STEPS)[column].to_pylist() == expected


def test_a_time_with_a_zone_becomes_utc(local_store: Store) -> None:
    time = dt.datetime(2026, 1, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    row = {"key": ["k"], "step": [1], "kind": ["asha"], "time": [time]}
    path = ChunkWriter(local_store, "p", 1).append("events", row)
    assert local_store.read_table(path, SCHEMAS["events"])["time"].to_pylist() == [dt.datetime(2026, 1, 1, 10)]


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        ("trials", {"key": ["k"]}, "unknown table 'trials'; known: steps, layers, events"),
        ("steps", {"key": ["k"], "step": [1], "los": [1.0]}, "steps has no columns los; known: key, "),
        ("steps", {"key": ["k"], "step": [1], "pack": ["p"]}, "the writer itself fills in pack"),
        ("steps", {"key": ["k"]}, "steps rows need step"),
        ("layers", {"key": ["k"], "step": [1]}, "layers rows need matrix"),
        ("steps", {"key": ["k"], "step": [1, 2]}, "unequal length"),
        ("steps", {"key": ["k"], "step": [None]}, "steps.step must not be null"),
        ("steps", {"key": ["k"], "step": [1.5]}, "step: "),
        ("steps", {"key": [7], "step": [1]}, "key: expected text, got int64"),
        ("steps", {"key": ["k"], "step": [1], "loss": ["low"]}, "loss: "),
        ("steps", {"key": ["k"], "step": [1], "loss": np.ones((1, 1))}, "loss: "),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_written(
    local_store: Store, table: str, columns: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ChunkWriter(local_store, "p", 1).append(table, columns)
    assert local_store.list() == []


def test_no_rows_write_no_chunk(local_store: Store) -> None:
    writer = ChunkWriter(local_store, "p", 1)
    assert writer.append("steps", {"key": [], "step": np.array([], np.int64), "loss": []}) is None
    assert local_store.list() == []
    assert writer.append("steps", {"key": ["k"], "step": [1]}) == "packs/p/attempt-1/steps-000000.parquet"


def test_a_writer_continues_after_the_chunks_of_its_attempt(store: Store) -> None:
    row = {"key": ["k"], "step": [1]}
    ChunkWriter(store, "p", 1).append("steps", row)
    assert ChunkWriter(store, "p", 1).append("steps", row) == "packs/p/attempt-1/steps-000001.parquet"
    assert ChunkWriter(store, "p", 2).append("steps", row) == "packs/p/attempt-2/steps-000000.parquet"


def test_attempts_are_ordered_as_numbers_and_packs_do_not_mix(store: Store) -> None:
    assert (attempts(store, "p"), next_attempt(store, "p")) == ([], 1)
    for pack, attempt in (("p", 10), ("p", 9), ("p2", 11)):
        ChunkWriter(store, pack, attempt).append("steps", {"key": ["k"], "step": [1]})
    store.write_bytes("packs/p/attempt-12/checkpoint-100/state.safetensors", b"x")
    assert attempts(store, "p") == [9, 10, 12]
    assert next_attempt(store, "p") == 13
    assert [path.split("/")[2] for path in chunks(store, "p", "steps")] == ["attempt-9", "attempt-10"]


@pytest.mark.parametrize(("pack", "attempt"), [("../p", 1), ("a/b", 1), ("p", 0)])
def test_a_writer_needs_a_valid_pack_and_attempt(local_store: Store, pack: str, attempt: int) -> None:
    with pytest.raises(ValueError, match=r"not a valid name|attempts count from 1"):
        ChunkWriter(local_store, pack, attempt)
