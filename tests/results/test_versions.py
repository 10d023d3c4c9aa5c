"""Results of an earlier version of the columns read as what they are; those of a later one are refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_sweep import Sweep

from orchestrator.results import load, versions
from orchestrator.results.consolidate import consolidate
from orchestrator.results.errors import DamagedError, NewerError
from orchestrator.results.matrix import matrix
from orchestrator.results.named import ask
from orchestrator.results.schema import SCHEMAS
from orchestrator.results.store import Store

#: Columns as version 1 had them on its first day, spelt out: what was written then must be read for ever.
VERSION_1: dict[str, dict[str, list[Any]]] = {
    "steps": {
        "key": ["k0000", "k0000"], "pack": ["p000"] * 2, "attempt": [1, 1], "step": [1, 2],
        "loss": pa.array([4.0, 3.0], pa.float32()), "val_loss": pa.array([None, 3.5], pa.float32()),
        "lr": pa.array([0.001, 0.001], pa.float32()), "tokens": [64, 128], "flips": [7, 9], "updates": [100, 100],
        "stall_ratio": pa.array([0.5, 0.25], pa.float32()),
    },
    "layers": {
        "key": ["k0000"], "pack": ["p000"], "attempt": [1], "step": [2], "matrix": ["wte"], "format": ["E4M3"],
        "elements": [100], "stall_ratio": pa.array([0.25], pa.float32()),
    },
    "events": {
        "key": ["k0000"], "pack": ["p000"], "attempt": [1], "step": [2], "kind": ["rank_warning"], "matrix": ["wte"],
        "value": pa.array([20.0], pa.float32()), "message": ["wte: effective rank 20"],
    },
    "trials": {
        "key": ["k0000"], "pack": ["p000"], "cell": ["E4M3 adamw master"], "control": [False], "format": ["E4M3"],
        "optimizer": ["adamw"], "storage": ["master"], "layers": ["all"], "lr": [0.001], "seed": [0],
        "config": ["{}"], "status": ["finished"], "reason": ["completed"], "step": [2], "steps_planned": [2],
        "val_loss": pa.array([3.5], pa.float32()),
    },
}  # fmt: skip


def write(store: Store, path: str, table: str, version: bytes | None = b"1") -> None:
    """A file of version 1, written by pyarrow alone."""
    metadata = {} if version is None else {b"altgrad_schema": version}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(VERSION_1[table]).replace_schema_metadata(metadata), sink)
    store.write_bytes(path, sink.getvalue().to_pybytes())


@pytest.fixture
def planned(tmp_path: Path) -> Sweep:
    sweep = Sweep(Store.open(tmp_path / "run"))
    pack = sweep.add_pack(steps=2)
    sweep.journal.append({"event": "pack_started", "pack": "p000", "attempt": 1})
    sweep.end(pack, "k0000", "completed", 2)
    return sweep


@pytest.fixture(params=[1, 2], ids=["today's columns", "columns of a next version"])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """What this program writes and reads: today's version, or one with a column more and one under another name."""
    version: int = request.param
    if version == 2:
        monkeypatch.setattr(versions, "SCHEMA_VERSION", version)
        monkeypatch.setattr("orchestrator.results.consolidate.SCHEMA_VERSION", version)
        for table, fields in SCHEMAS.items():
            kept = [field for field in fields if field.name not in ("lr", "threshold")]
            kept += [pa.field("heat", pa.float32())]
            monkeypatch.setitem(SCHEMAS, table, pa.schema(kept, metadata={"altgrad_schema": "2"}))
    return version


@pytest.mark.parametrize("version", [b"1", None], ids=["named", "unnamed"])
def test_chunks_of_version_1_become_a_dataset_of_today(planned: Sweep, columns: int, version: bytes | None) -> None:
    store = planned.store
    for table in ("steps", "layers", "events"):
        write(store, f"packs/p000/attempt-1/{table}-000000.parquet", table, version)
    report = consolidate(store)
    assert (report.damaged, report.rows) == ([], {"trials": 1, "steps": 2, "layers": 1, "events": 2})
    run = load(store.uri)
    assert run.steps["step"].to_pylist() == [1, 2]
    assert run.steps["val_loss"].to_pylist() == [None, 3.5]
    assert run.steps["grad_norm"].to_pylist() == [None, None]
    assert run.layers["stall_ratio"].to_pylist() == [0.25]
    assert run.events["kind"].to_pylist() == ["completed", "rank_warning"]
    assert run.trials["val_loss"].to_pylist() == [3.5]
    assert json.loads(store.read_bytes("dataset/manifest.json"))["schema_version"] == columns
    assert ("heat" in run.steps.column_names) == (columns == 2)
    assert consolidate(store).written == []


def test_a_dataset_of_version_1_is_read_without_its_chunks(planned: Sweep, columns: int) -> None:
    store = planned.store
    for table in ("steps", "layers", "events"):
        write(store, f"dataset/{table}/p000.parquet", table)
    write(store, "dataset/trials/trials.parquet", "trials")
    for refresh in (False, True):
        run = load(store.uri, refresh=refresh)
        assert run.trials["val_loss"].to_pylist() == [3.5]
        assert run.steps["loss"].to_pylist() == [4.0, 3.0]
        assert run.steps["oscillations"].to_pylist() == [None, None]
        assert run.steps.schema.names == SCHEMAS["steps"].names
        assert ask(store, "SELECT val_loss, grad_norm FROM steps ORDER BY step").to_pylist() == [
            {"val_loss": None, "grad_norm": None},
            {"val_loss": 3.5, "grad_norm": None},
        ]
        assert ask(store, "@stalls")["stall_ratio"].to_pylist() == [0.25]
    (cell,) = matrix(store).cells.values()
    assert cell.mean == 3.5


@pytest.mark.parametrize("path", ["packs/p000/attempt-1/steps-000000.parquet", "dataset/steps/p000.parquet"])
def test_a_later_version_is_refused_and_nothing_is_touched(planned: Sweep, path: str) -> None:
    consolidate(planned.store)
    write(planned.store, "packs/p000/attempt-1/steps-000000.parquet", "steps")
    write(planned.store, path, "steps", b"2")
    before = {name: planned.store.read_bytes(name) for name in planned.store.list()}
    with pytest.raises(NewerError, match=rf"{path} has schema version 2, this program reads up to 1"):
        consolidate(planned.store)
    assert {name: planned.store.read_bytes(name) for name in planned.store.list()} == before


def test_a_query_refuses_a_dataset_of_a_later_version(planned: Sweep) -> None:
    write(planned.store, "dataset/steps/p000.parquet", "steps", b"2")
    with pytest.raises(NewerError, match="use a newer altgrad"):
        ask(planned.store, "SELECT count(*) FROM steps")
    with pytest.raises(NewerError, match="use a newer altgrad"):
        _ = load(planned.store.uri, refresh=False).steps


@pytest.mark.parametrize("version", [b"one", b""])
def test_what_is_no_version_is_damage(planned: Sweep, version: bytes) -> None:
    write(planned.store, "packs/p000/attempt-1/steps-000000.parquet", "steps", version)
    assert [chunk.path for chunk in consolidate(planned.store).damaged] == ["packs/p000/attempt-1/steps-000000.parquet"]
    with pytest.raises(DamagedError):
        planned.store.read_table("packs/p000/attempt-1/steps-000000.parquet", SCHEMAS["steps"])


def test_a_version_altered_in_a_footer_is_damage_and_no_later_version(planned: Sweep) -> None:
    path = "packs/p000/attempt-1/steps-000000.parquet"
    write(planned.store, path, "steps")
    data = planned.store.read_bytes(path)
    at = data.index(b"altgrad_schema") + len(b"altgrad_schema")
    assert data[at : at + 3] == b"\x18\x011"
    planned.store.write_bytes(path, data[: at + 2] + b"3" + data[at + 3 :])
    (chunk,) = consolidate(planned.store).damaged
    assert "versions in the footer disagree" in str(chunk.damage)
