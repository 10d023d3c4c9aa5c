"""The dataset follows from the chunks, whatever happened to some of them, and is rewritten only where they changed."""

import hashlib
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from synthetic_sweep import Sweep

from orchestrator.results.consolidate import consolidate, mended
from orchestrator.results.errors import DamagedError
from orchestrator.results.parquet import encode_table
from orchestrator.results.schema import SCHEMAS
from orchestrator.results.store import ChunkWriter, Store

STEPS_0 = "dataset/steps/p000.parquet"


def rows(store: Store, table: str, pack: str = "p000", columns: tuple[str, ...] = ("key", "step", "loss")) -> list[Any]:
    found = store.read_table(f"dataset/{table}/{pack}.parquet", SCHEMAS[table])
    return [tuple(row.values()) for row in found.select(list(columns)).to_pylist()]


def write(sweep: Sweep, attempt: int, *steps: tuple[str, int, float]) -> str:
    """One chunk of (key, step, loss) rows of pack p000."""
    keys, numbers, losses = zip(*steps, strict=True)
    path = ChunkWriter(sweep.store, "p000", attempt).append("steps", {"key": keys, "step": numbers, "loss": losses})
    assert path is not None
    return path


def trials(store: Store) -> list[dict[str, Any]]:
    return store.read_table("dataset/trials/trials.parquet", SCHEMAS["trials"]).to_pylist()


def test_chunks_become_one_sorted_file_a_pack_and_table(any_sweep: Sweep) -> None:
    for _ in range(2):
        any_sweep.add_pack(lanes=2)
    write(any_sweep, 1, ("b", 1, 0.5), ("a", 2, 0.25))
    write(any_sweep, 1, ("a", 1, 0.75), ("b", 2, 0.0))
    layers = {"key": ["a", "a"], "step": [1, 1], "matrix": ["z", "c_fc"]}
    ChunkWriter(any_sweep.store, "p001", 1).append("layers", layers)
    report = consolidate(any_sweep.store)
    assert rows(any_sweep.store, "steps") == [("a", 1, 0.75), ("a", 2, 0.25), ("b", 1, 0.5), ("b", 2, 0.0)]
    assert rows(any_sweep.store, "layers", "p001", ("key", "step", "matrix")) == [("a", 1, "c_fc"), ("a", 1, "z")]
    assert report.rows == {"trials": 4, "steps": 4, "layers": 2, "events": 0}
    assert report.damaged == []


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([(1, ("k", 1, 0.1)), (2, ("k", 1, 0.2))], [("k", 1, 2, 0.2)]),
        ([(2, ("k", 1, 0.2)), (1, ("k", 1, 0.1))], [("k", 1, 2, 0.2)]),
        ([(10, ("k", 1, 0.5)), (9, ("k", 1, 0.25))], [("k", 1, 10, 0.5)]),
        ([(1, ("k", 1, 0.5)), (1, ("k", 1, 0.25))], [("k", 1, 1, 0.25)]),
        ([(1, ("k", 1, 0.5)), (1, ("k", 2, 0.25)), (2, ("k", 2, 0.0))], [("k", 1, 1, 0.5), ("k", 2, 2, 0.0)]),
    ],
    ids=["higher attempt", "whatever was written last", "attempts as numbers", "later chunk", "only the repeated"],
)
def test_a_repeated_step_is_the_highest_attempts(
    sweep: Sweep, chunks: list[tuple[int, tuple[str, int, float]]], expected: list[Any]
) -> None:
    sweep.add_pack()
    for attempt, row in chunks:
        write(sweep, attempt, row)
    consolidate(sweep.store)
    found = rows(sweep.store, "steps", columns=("key", "step", "attempt", "loss"))
    assert [(*row[:3], round(row[3], 4)) for row in found] == expected


def test_layers_and_events_repeat_only_where_matrix_and_kind_do(sweep: Sweep) -> None:
    sweep.add_pack()
    for attempt in (1, 2):
        writer = ChunkWriter(sweep.store, "p000", attempt)
        writer.append("layers", {"key": ["k"] * 2, "step": [1] * 2, "matrix": ["a", "b"]})
        kinds = ["rank_warning", "rank_warning", "stalled"]
        writer.append("events", {"key": ["k"] * 3, "step": [1] * 3, "kind": kinds, "matrix": ["a", "b", None]})
    consolidate(sweep.store)
    assert rows(sweep.store, "layers", columns=("matrix", "attempt")) == [("a", 2), ("b", 2)]
    found = rows(sweep.store, "events", columns=("kind", "matrix", "attempt"))
    assert found == [("rank_warning", "a", 2), ("rank_warning", "b", 2), ("stalled", None, 2)]


# --- damage


def flip(data: bytes) -> bytes:
    """The data with one bit changed in the dictionary of its first column, the keys."""
    position = data.index(b"(\xb5\x2f\xfd") + 12
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize(
    "damage", [flip, lambda data: data[:-20], lambda data: b"", lambda data: b"not a table"],
    ids=["flipped bit", "truncated", "empty", "another kind of file"],
)  # fmt: skip
def test_a_damaged_chunk_is_named_and_the_rest_is_kept(any_sweep: Sweep, damage: Any) -> None:
    store = any_sweep.store
    any_sweep.add_pack()
    write(any_sweep, 1, ("k", 1, 0.5))
    bad = write(any_sweep, 1, *(("k", step, step / 64) for step in range(2, 64)))
    write(any_sweep, 1, ("k", 64, 0.25))
    store.write_bytes(bad, damage(store.read_bytes(bad)))
    report = consolidate(store)
    assert rows(store, "steps") == [("k", 1, 0.5), ("k", 64, 0.25)]
    assert [chunk.path for chunk in report.damaged] == [bad]
    assert report.damaged[0].damage
    manifest = json.loads(store.read_bytes("dataset/manifest.json"))
    assert [chunk["path"] for chunk in manifest["damaged"]] == [bad]
    assert consolidate(store).written == []


def test_a_damaged_chunk_that_is_put_right_is_taken_in(sweep: Sweep) -> None:
    sweep.add_pack()
    path = write(sweep, 1, *(("k", step, 0.5) for step in range(1, 64)))
    good = sweep.store.read_bytes(path)
    sweep.store.write_bytes(path, flip(good))
    assert len(consolidate(sweep.store).damaged) == 1
    sweep.store.write_bytes(path, good)
    report = consolidate(sweep.store)
    assert report.damaged == []
    assert report.rows["steps"] == 63


def test_a_chunk_from_before_a_column_existed_has_nulls_there(sweep: Sweep) -> None:
    sweep.add_pack()
    old = pa.table({"key": ["k"], "pack": ["p000"], "attempt": [1], "step": [1]})
    sweep.store.write_bytes("packs/p000/attempt-1/steps-000000.parquet", encode_table(old))
    write(sweep, 1, ("k", 2, 0.5))
    consolidate(sweep.store)
    assert rows(sweep.store, "steps") == [("k", 1, None), ("k", 2, 0.5)]


@pytest.mark.parametrize(
    "damage", [flip, lambda data: data[:100], lambda data: b""], ids=["flipped", "truncated", "empty"]
)
def test_a_dataset_file_gone_bad_is_built_again(sweep: Sweep, damage: Any) -> None:
    sweep.train(sweep.add_pack(), [2.0])
    consolidate(sweep.store)
    good = sweep.store.read_bytes(STEPS_0)
    sweep.store.write_bytes(STEPS_0, damage(good))
    # A clock may be too coarse to tell two writes of a test apart.
    os.utime(Path(sweep.store.uri, STEPS_0), (0, 0))
    assert STEPS_0 in consolidate(sweep.store).written
    assert sweep.store.read_bytes(STEPS_0) == good


# --- incremental


def contents(store: Store) -> dict[str, tuple[int, bytes]]:
    return {path: (Path(store.uri, path).stat().st_mtime_ns, store.read_bytes(path)) for path in store.list("dataset")}


def test_a_second_run_touches_nothing(sweep: Sweep) -> None:
    for _ in range(2):
        sweep.train(sweep.add_pack(lanes=2), [2.0, 3.0])
    first = consolidate(sweep.store)
    assert len(first.written) == 6
    before = contents(sweep.store)
    second = consolidate(sweep.store)
    assert second.written == []
    assert sorted(second.unchanged) == sorted(first.written)
    assert contents(sweep.store) == before
    assert second.rows == first.rows


def test_new_chunks_rewrite_their_own_pack_only(any_sweep: Sweep) -> None:
    for _ in range(2):
        any_sweep.train(any_sweep.add_pack(), [2.0], [None])
    consolidate(any_sweep.store)
    write(any_sweep, 1, ("k0000", 101, 0.5))
    report = consolidate(any_sweep.store)
    assert sorted(report.written) == ["dataset/manifest.json", STEPS_0, "dataset/trials/trials.parquet"]
    assert report.rows["steps"] == 201


def test_a_dataset_made_under_other_columns_is_made_again(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep.train(sweep.add_pack(), [2.0], [None])
    older = SCHEMAS["steps"].remove(SCHEMAS["steps"].get_field_index("oscillations"))
    with monkeypatch.context() as past:
        past.setitem(SCHEMAS, "steps", older)
        consolidate(sweep.store)
    assert STEPS_0 in consolidate(sweep.store).written
    assert sweep.store.read_footer(STEPS_0).schema.names == SCHEMAS["steps"].names


@pytest.fixture
def files_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the files that are read from end to end."""
    seen: list[str] = []
    whole = Store.read_bytes
    monkeypatch.setattr(Store, "read_bytes", lambda store, path, *more: seen.append(path) or whole(store, path, *more))
    return seen


def test_rows_of_unchanged_packs_are_not_read(any_sweep: Sweep, files_read: list[str]) -> None:
    for _ in range(3):
        any_sweep.train(any_sweep.add_pack(lanes=2), [2.0, 3.0])
    consolidate(any_sweep.store)
    files_read.clear()
    consolidate(any_sweep.store)
    always = ["dataset/manifest.json", "dataset/trials/trials.parquet", "journal.jsonl", "plan.json"]
    assert sorted(set(files_read)) == always
    any_sweep.train(any_sweep.add_pack(), [4.0])
    files_read.clear()
    report = consolidate(any_sweep.store)
    assert set(report.written) == {"dataset/events/p003.parquet", "dataset/steps/p003.parquet", *always[:2]}
    assert set(files_read) == {*always, "packs/p003/attempt-1/steps-000000.parquet"}


def test_trials_are_the_same_whether_steps_are_read_or_remembered(sweep: Sweep) -> None:
    sweep.train(sweep.add_pack(lanes=3), [2.0, None, 0.1], [("completed", 400), ("diverged", 30), None])
    consolidate(sweep.store)
    remembered = trials(sweep.store)
    table = sweep.store.read_table(STEPS_0, SCHEMAS["steps"])
    sweep.store.delete("packs")
    sweep.store.write_table(STEPS_0, table)
    consolidate(sweep.store)
    assert trials(sweep.store) == remembered
    assert [trial["val_loss"] for trial in remembered] == [2.0, None, pytest.approx(0.1)]


def test_what_a_footer_remembers_is_not_believed_once_altered(sweep: Sweep) -> None:
    sweep.train(sweep.add_pack(), [2.0])
    consolidate(sweep.store)
    good, remembered = sweep.store.read_bytes(STEPS_0), trials(sweep.store)
    altered = good.replace(b'"best_val_loss": 2.0', b'"best_val_loss": 1.0')
    path, facts = Path(sweep.store.uri, STEPS_0), Path(sweep.store.uri, STEPS_0).stat()
    assert altered != good
    path.write_bytes(altered)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert STEPS_0 in consolidate(sweep.store).written
    assert sweep.store.read_bytes(STEPS_0) == good
    assert trials(sweep.store) == remembered


def test_a_file_that_tells_of_its_sources_in_other_words_is_built_again(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep.train(sweep.add_pack(), [2.0])
    with monkeypatch.context() as another:
        another.setattr("orchestrator.results.sources.asdict", lambda made: {"sources": len(made.chunks)})
        consolidate(sweep.store)
    assert STEPS_0 in consolidate(sweep.store).written
    assert consolidate(sweep.store).written == []


def test_to_verify_is_to_read_also_what_nobody_touched_and_to_build_again_what_is_damaged(sweep: Sweep) -> None:
    sweep.train(sweep.add_pack(), [2.0])
    consolidate(sweep.store)
    good = sweep.store.read_bytes(STEPS_0)
    _rot(sweep.store, STEPS_0)
    assert consolidate(sweep.store).written == []
    assert STEPS_0 in consolidate(sweep.store, verify=True).written
    assert sweep.store.read_bytes(STEPS_0) == good
    assert consolidate(sweep.store, verify=True).written == []


def test_a_read_that_meets_damage_is_mended_once(sweep: Sweep) -> None:
    sweep.train(sweep.add_pack(), [2.0])
    consolidate(sweep.store)
    _rot(sweep.store, STEPS_0)
    assert mended([sweep.store], lambda: rows(sweep.store, "steps"))[-1] == ("k0000", 400, 1.0)
    _rot(sweep.store, STEPS_0)
    sweep.store.delete("packs")
    with pytest.raises(DamagedError, match=STEPS_0):
        mended([sweep.store], lambda: rows(sweep.store, "steps"))


def _rot(store: Store, path: str) -> None:
    """Alter a byte of a page, and nothing that a listing shows."""
    file = Path(store.uri, path)
    data, facts = bytearray(file.read_bytes()), file.stat()
    data[data.index(b"(\xb5\x2f\xfd") + 12] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_events_of_a_pack_that_never_trained_are_those_of_the_journal(sweep: Sweep) -> None:
    pack = sweep.add_pack(lanes=2)
    sweep.end(pack, "k0000", "failed", 0, message="the first time")
    consolidate(sweep.store)
    sweep.end(pack, "k0000", "failed", 0, message="the second time")
    sweep.end(pack, "k0001", "failed", 0, message="that too")
    consolidate(sweep.store)
    assert rows(sweep.store, "events", columns=("key", "message")) == [
        ("k0000", "the second time"),
        ("k0001", "that too"),
    ]


@pytest.mark.parametrize("content", [b"{half", b"[]", b'{"files": {"dataset/steps/p000.parquet": 3}}', None])
def test_a_manifest_gone_bad_is_written_again(sweep: Sweep, content: bytes | None) -> None:
    sweep.train(sweep.add_pack(), [2.0])
    consolidate(sweep.store)
    good = sweep.store.read_bytes("dataset/manifest.json")
    sweep.store.delete("dataset/manifest.json")
    if content is not None:
        sweep.store.write_bytes("dataset/manifest.json", content)
    assert consolidate(sweep.store).written == ["dataset/manifest.json"]
    assert sweep.store.read_bytes("dataset/manifest.json") == good


def test_a_copy_that_may_only_be_read_needs_no_writing(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep.train(sweep.add_pack(), [2.0])
    before = consolidate(sweep.store)
    os.utime(Path(sweep.store.uri, STEPS_0), (0, 0))

    def refuse(store: Store, path: str, data: bytes) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(Store, "write_bytes", refuse)
    found = consolidate(sweep.store)
    assert (found.rows, found.written) == (before.rows, [])
    write_path = Path(sweep.store.uri, "packs/p000/attempt-1/steps-000000.parquet")
    write_path.unlink()
    write_path.with_name("steps-000001.parquet").write_bytes(b"not a table")
    with pytest.raises(PermissionError):
        consolidate(sweep.store)


def test_the_dataset_outlives_its_chunks(sweep: Sweep) -> None:
    sweep.train(sweep.add_pack(), [2.0])
    consolidate(sweep.store)
    before = contents(sweep.store)
    sweep.store.delete("packs")
    consolidate(sweep.store)
    assert contents(sweep.store) == before


def test_the_manifest_names_the_sources_of_every_file(any_sweep: Sweep) -> None:
    store = any_sweep.store
    any_sweep.add_pack()
    path = write(any_sweep, 1, ("k", 1, 0.5))
    consolidate(store)
    manifest = json.loads(store.read_bytes("dataset/manifest.json"))
    assert manifest["schema_version"] == 1
    digest = hashlib.sha256(store.read_bytes(path)).hexdigest()
    source = {"path": path, "bytes": len(store.read_bytes(path)), "sha256": digest, "damage": None}
    facts = store.facts("dataset")[STEPS_0]
    assert manifest["files"][STEPS_0] == {"rows": 1, **facts._asdict(), "chunks": [source]}


# --- trials and events


def test_trials_are_made_from_plan_journal_and_steps(sweep: Sweep) -> None:
    pack = sweep.add_pack(lanes=2, format="E5M2", control=True)
    sweep.add_pack()
    sweep.train(pack, [2.5, 3.5], [("completed", 400), None])
    record = {"event": "reported", "pack": "p000", "attempt": 1, "step": 100, "metrics": {}}
    sweep.journal.append({**record, "seconds": 12.5})
    consolidate(sweep.store)
    first, second, third = trials(sweep.store)
    assert json.loads(first.pop("config")) == pack["lanes"][0]["config"]
    assert first == {
        "key": "k0000", "pack": "p000", "cell": "E5M2 adamw master", "control": True, "format": "E5M2",
        "optimizer": "adamw", "storage": "master", "layers": "all", "lr": pytest.approx(0.001), "seed": 0,
        "status": "finished", "reason": "completed", "audited": None, "audited_step": None, "step": 400,
        "steps_planned": 400, "loss": 1.0, "val_loss": 2.5, "best_val_loss": 2.5, "attempts": 1,
        "seconds": 12.5, "error": None,
    }  # fmt: skip
    assert (second["status"], second["reason"], second["step"], second["val_loss"]) == ("running", None, 100, 3.5)
    assert (third["status"], third["step"], third["attempts"], third["seconds"]) == ("planned", None, 0, None)
    assert set(first) | {"config"} == set(SCHEMAS["trials"].names)


def test_an_undefined_end_is_null_and_not_the_last_good_value(sweep: Sweep) -> None:
    sweep.train(sweep.add_pack(), [None], [("diverged", 300)])
    consolidate(sweep.store)
    (trial,) = trials(sweep.store)
    assert (trial["reason"], trial["val_loss"], trial["best_val_loss"]) == ("diverged", None, 9.0)


def test_rules_of_layers_are_kept_as_json_and_errors_told(sweep: Sweep) -> None:
    pack = sweep.add_pack(layers=[{"match": "*.attn.*", "format": "bf16"}])
    sweep.journal.append({"event": "pack_started", "pack": "p000", "attempt": 1})
    sweep.journal.append({"event": "pack_failed", "pack": "p000", "attempt": 1, "error": "worker died"})
    consolidate(sweep.store)
    (trial,) = trials(sweep.store)
    assert json.loads(trial["layers"]) == pack["lanes"][0]["config"]["layers"]
    assert (trial["status"], trial["reason"], trial["error"]) == ("failed", "failed", "worker died")


def test_rows_beyond_a_lanes_recorded_end_are_kept(sweep: Sweep) -> None:
    sweep.train(sweep.add_pack(), [2.0], [("asha", 100)])
    write(sweep, 1, ("k0000", 101, 0.5))
    consolidate(sweep.store)
    assert rows(sweep.store, "steps")[-1] == ("k0000", 101, 0.5)


def test_ends_that_only_the_journal_knows_become_events(any_sweep: Sweep) -> None:
    pack = any_sweep.add_pack(lanes=3)
    any_sweep.train(pack, [2.0, 2.5, 3.0], [("completed", 400), ("asha", 100), None])
    told = {"key": ["k0000"], "step": [400], "kind": ["completed"], "message": ["as the trial saw it"]}
    ChunkWriter(any_sweep.store, "p000", 1).append("events", told)
    consolidate(any_sweep.store)
    columns = ("key", "pack", "attempt", "step", "kind", "value", "message")
    assert rows(any_sweep.store, "events", columns=columns) == [
        ("k0000", "p000", 1, 400, "completed", None, "as the trial saw it"),
        ("k0001", "p000", 1, 100, "asha", 1.0, "asha at step 100"),
    ]
    (time,) = rows(any_sweep.store, "events", columns=("time",))[1]
    assert isinstance(time, datetime)
    assert consolidate(any_sweep.store).written == []
    any_sweep.end(pack, "k0002", "stalled", 200)
    assert "dataset/events/p000.parquet" in consolidate(any_sweep.store).written
    assert rows(any_sweep.store, "events", columns=("kind",)) == [("completed",), ("asha",), ("stalled",)]


# --- a sweep in the middle


def test_a_sweep_that_has_not_started_has_only_trials(any_sweep: Sweep) -> None:
    any_sweep.add_pack(lanes=3)
    report = consolidate(any_sweep.store)
    assert report.rows == {"trials": 3, "steps": 0, "layers": 0, "events": 0}
    assert report.written == ["dataset/trials/trials.parquet", "dataset/manifest.json"]


def test_unfinished_files_and_checkpoints_are_left_alone(sweep: Sweep) -> None:
    sweep.train(sweep.add_pack(), [2.0])
    folder = Path(sweep.store.uri, "packs/p000/attempt-1")
    (folder / "steps-000001.parquet.abcd.tmp").write_bytes(b"half")
    (folder / "checkpoint-100").mkdir()
    (folder / "checkpoint-100" / "steps-000009.parquet").write_bytes(b"not a chunk")
    (folder / "trials-000000.parquet").write_bytes(b"no table of trials")
    report = consolidate(sweep.store)
    assert report.damaged == []
    assert report.rows["steps"] == 400


def test_damaged_lines_of_the_journal_are_counted(sweep: Sweep) -> None:
    sweep.train(sweep.add_pack(), [2.0])
    sweep.store.write_bytes("journal.jsonl", sweep.store.read_bytes("journal.jsonl") + b"{half")
    report = consolidate(sweep.store)
    assert report.journal_lines_skipped == 1
    assert json.loads(json.dumps(report.to_dict()))["journal_lines_skipped"] == 1


def test_a_folder_without_a_plan_is_refused(local_store: Store) -> None:
    with pytest.raises(FileNotFoundError, match="not the folder of a sweep"):
        consolidate(local_store)
