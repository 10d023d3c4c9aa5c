"""Checkpoints are whole or not there, and what is damaged says so."""

import builtins
import json
import math
import pickle
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from small_runs import run, small

from altgrad.training import checkpoint as module
from altgrad.training.checkpoint import Checkpoint, CheckpointError, from_files, read, to_files, write
from altgrad.training.config import ModelConfig, RunConfig
from altgrad.training.corpus import Corpus
from altgrad.training.lanes import Lanes

TENSORS, FACTS = "state.safetensors", "checkpoint.json"


def example(step: int = 40) -> Checkpoint:
    tensors = {
        "wte/stored": torch.arange(24.0).view(2, 3, 4) / 7,
        "wte/direction": torch.tensor([[-1, 0, 1]], dtype=torch.int8),
        "h.0/history": torch.tensor([0.0, math.inf, math.nan]),
        "transposed": torch.arange(6.0).view(2, 3).t(),
        "empty": torch.zeros(2, 0),
    }
    extra = {"judges": {"a": {"ema": 0.1 + 0.2, "worst": math.nan, "checks": [1, 2.5, None, "x"]}}}
    return Checkpoint(step, ("b", "a"), tensors, extra)


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert (one.step, one.keys) == (other.step, other.keys)
    assert repr(one.extra) == repr(other.extra)
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert tensor.dtype == other.tensors[name].dtype
        assert torch.equal(tensor.nan_to_num(7.0), other.tensors[name].nan_to_num(7.0)), name


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path, example())
    assert folder == tmp_path / "checkpoint-00000040"
    assert sorted(path.name for path in folder.iterdir()) == [FACTS, TENSORS]
    assert_same(read(folder), example())
    assert_same(from_files(to_files(read(folder))), read(folder))


def test_tensors_survive_bit_for_bit() -> None:
    tensor = torch.randint(-(2**31), 2**31 - 1, (1000,), dtype=torch.int32).view(torch.float32)
    back = from_files(to_files(Checkpoint(1, ("a",), {"x": tensor}))).tensors["x"]
    assert torch.equal(back.view(torch.int32), tensor.view(torch.int32))


def test_the_file_that_completes_a_checkpoint_comes_last() -> None:
    assert list(to_files(example())) == [TENSORS, FACTS]


def damage(name: str, how: str) -> dict[str, bytes]:
    files = to_files(example())
    data = bytearray(files[name])
    if how == "missing":
        del files[name]
        return files
    if how == "empty":
        data.clear()
    elif how == "truncated":
        del data[len(data) // 2 :]
    elif how == "longer":
        data += b"x"
    elif how == "not text":
        data[3] = 0xFF
    else:
        data[-2] ^= 1
    return files | {name: bytes(data)}


@pytest.mark.parametrize("name", [TENSORS, FACTS])
@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "longer", "not text", "one bit"])
def test_a_damaged_checkpoint_says_so(name: str, how: str) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        from_files(damage(name, how))


@pytest.mark.parametrize(
    "change", [{"step": 41}, {"keys": ["a", "b"]}, {"extra": {}}, {"sha256": "0" * 64}, {"more": 1}], ids=str
)
def test_facts_are_verified_as_tensors_are(change: dict) -> None:
    files = to_files(example())
    facts = json.loads(files[FACTS])
    with pytest.raises(CheckpointError, match="not what was written"):
        from_files(files | {FACTS: json.dumps(facts | change).encode()})


@pytest.mark.parametrize("facts", [b"[]", b"3", b"null", b"{}"])
def test_facts_of_another_shape_are_damage(facts: bytes) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        from_files(to_files(example()) | {FACTS: facts})


@pytest.mark.parametrize("name", [TENSORS, FACTS])
def test_a_folder_that_lacks_a_file_cannot_be_read(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, example())
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*: No such file"):
        read(folder)
    with pytest.raises(CheckpointError, match="cannot read"):
        read(tmp_path / "nowhere")


def test_a_writer_that_dies_leaves_nothing_that_looks_like_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*args: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, example())
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == []
    assert [path.name for path in tmp_path.iterdir()] == [".checkpoint-00000040.tmp"]
    monkeypatch.undo()
    folder = write(tmp_path, example())
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert read(folder).step == 40


def test_writing_again_replaces_and_leaves_nothing_aside(tmp_path: Path) -> None:
    folder = write(tmp_path, example())
    (folder / TENSORS).write_bytes(b"damaged since")
    assert write(tmp_path, example()) == folder
    assert read(folder).step == 40
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("report", "interval", "saved"),
    [
        (10, 20, [20, 40]),
        (10, 10, [10, 20, 30, 40]),
        (10, 5, [10, 20, 30, 40]),
        (20, 30, [40]),
        (7, 20, [21, 42]),
        (10, 0, []),
    ],
)
def test_checkpoints_are_taken_at_the_first_report_after_each_interval_and_not_at_the_end(
    report: int, interval: int, saved: list[int], corpus: Corpus
) -> None:
    found: list[Checkpoint] = []
    run([small(report_interval=report, checkpoint_interval=interval)], corpus, save=found.append)
    assert [checkpoint.step for checkpoint in found] == saved


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format": "fp32"}, "lacks"), ({"model": ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=16)}, "shapes")],
)
def test_the_state_of_another_program_is_refused(change: dict, message: str, corpus: Corpus) -> None:
    def program(*configs: RunConfig) -> Lanes:
        by_key = {f"lane{i}": config for i, config in enumerate(configs)}
        return Lanes(list(by_key), by_key, corpus, torch.device("cpu"))

    own = program(small())
    with pytest.raises(ValueError, match=f"the state of another program.*{message}"):
        own.load(program(small(**change)).tensors())
    with pytest.raises(ValueError, match="unlike shapes"):
        program(small(), small(seed=1)).load(own.tensors())


class Bomb:
    """A pickle that would call a function when read."""

    def __reduce__(self) -> tuple:
        return (builtins.exec, ("raise SystemExit('unpickled')",))


def test_nothing_is_ever_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    files = to_files(example())
    bomb = pickle.dumps(Bomb())
    facts = json.loads(files[FACTS])
    del facts["sha256"]
    signed = json.dumps(facts | {"sha256": module._digest(bomb, facts)}).encode()
    for hostile in (files | {TENSORS: bomb}, {TENSORS: bomb, FACTS: signed}, files | {FACTS: bomb}):
        with pytest.raises(CheckpointError, match="damaged"):
            from_files(hostile)

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("unpickled")

    for target, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(target, name, refuse)
    assert from_files(files).step == 40
