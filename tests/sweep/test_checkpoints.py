"""Checkpoints in a run's folder: the newest whole one is found, whatever happened to the others."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from altgrad.training.checkpoint import Checkpoint
from orchestrator.results.store import Store
from orchestrator.sweep.checkpoint_folders import latest_step
from orchestrator.sweep.checkpoints import KEPT, latest_checkpoint, save_checkpoint


def checkpoint(step: int, mark: float = 0.0) -> Checkpoint:
    tensors = {"wte/stored": torch.full((2, 3), mark), "wte/direction": torch.ones(2, dtype=torch.int8)}
    extra = {"judges": {"k1": {"waiting": [(step, {"wte": 1.5})]}}, "ended": [{"key": "k0", "reason": "diverged"}]}
    return Checkpoint(step, ("k1", "k2"), tensors, extra)


def folders(store: Store) -> list[str]:
    """Folders of the checkpoints of pack ``p``, below it."""
    return sorted({path.split("/", 2)[2].rsplit("/", 1)[0] for path in store.list("packs/p")})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path)


def test_a_pack_without_checkpoints_starts_at_the_beginning(store: Store) -> None:
    assert latest_checkpoint(store, "p") == (None, {})
    assert latest_step(store, "p") == 0


def test_what_was_saved_comes_back(store: Store) -> None:
    save_checkpoint(store, "p", 1, checkpoint(40, mark=2.5))
    found = latest_checkpoint(store, "p").checkpoint
    assert found is not None
    assert (found.step, found.keys) == (40, ("k1", "k2"))
    assert found.extra == {
        "judges": {"k1": {"waiting": [[40, {"wte": 1.5}]]}},
        "ended": [{"key": "k0", "reason": "diverged"}],
    }
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in checkpoint(40, 2.5).tensors.items())
    assert latest_step(store, "p") == 40


def test_other_packs_are_not_looked_at(store: Store) -> None:
    save_checkpoint(store, "p1", 1, checkpoint(40))
    assert latest_checkpoint(store, "p").checkpoint is None


def test_only_the_newest_are_kept_over_all_attempts(store: Store) -> None:
    for attempt, step in ((1, 20), (1, 40), (2, 60), (2, 80)):
        save_checkpoint(store, "p", attempt, checkpoint(step))
    assert folders(store) == ["attempt-2/checkpoint-00000060", "attempt-2/checkpoint-00000080"]


@pytest.mark.parametrize(("first", "second"), [(1, 2), (9, 10), (2, 1)])
def test_of_equal_steps_the_latest_attempt_is_taken(first: int, second: int, store: Store) -> None:
    save_checkpoint(store, "p", first, checkpoint(40, mark=float(first)))
    save_checkpoint(store, "p", second, checkpoint(40, mark=float(second)))
    found = latest_checkpoint(store, "p").checkpoint
    assert found is not None
    assert found.tensors["wte/stored"][0, 0] == max(first, second)


def cut(folder: Path) -> None:
    file = folder / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def flip(folder: Path) -> None:
    file = folder / "state.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def garble(folder: Path) -> None:
    (folder / "checkpoint.json").write_text("{")


def lose_state(folder: Path) -> None:
    (folder / "state.safetensors").unlink()


def lose_facts(folder: Path) -> None:
    (folder / "checkpoint.json").unlink()


def being_written(folder: Path) -> None:
    lose_facts(folder)
    (folder / "checkpoint.json.1a2b3c4d.tmp").write_text("{")


DAMAGE: list[tuple[Callable[[Path], None], str | None]] = [
    (cut, "SafetensorError|content is not what was written"),
    (flip, "content is not what was written"),
    (garble, "JSONDecodeError"),
    (lose_state, "state.safetensors"),
    (lose_facts, None),
    (being_written, None),
]


@pytest.mark.parametrize(("damage", "why"), DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    damage: Callable[[Path], None], why: str | None, store: Store, tmp_path: Path
) -> None:
    """One that was never complete is none; of any other it is told what is wrong with it."""
    save_checkpoint(store, "p", 1, checkpoint(40))
    save_checkpoint(store, "p", 1, checkpoint(60))
    damage(tmp_path / "packs/p/attempt-1/checkpoint-00000060")
    found, damaged = latest_checkpoint(store, "p")
    assert found is not None
    assert found.step == 40
    assert list(damaged) == ["packs/p/attempt-1/checkpoint-00000060"] * (why is not None)
    assert why is None or re.search(why, *damaged.values())


@pytest.mark.parametrize("name", ["state.safetensors", "checkpoint.json"])
def test_no_byte_of_a_checkpoint_can_change_unseen(name: str, store: Store, tmp_path: Path) -> None:
    save_checkpoint(store, "p", 1, checkpoint(60))
    file = tmp_path / "packs/p/attempt-1/checkpoint-00000060" / name
    whole = file.read_bytes()
    for position in range(len(whole)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert latest_checkpoint(store, "p").checkpoint is None, position


def test_a_checkpoint_that_cannot_be_read_is_passed_over(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(store, "p", 1, checkpoint(40))
    save_checkpoint(store, "p", 1, checkpoint(60))
    read = store.read_bytes

    def bad_sector(path: str) -> bytes:
        if "00000060/state" in path:
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(store, "read_bytes", bad_sector)
    found, damaged = latest_checkpoint(store, "p")
    assert found is not None
    assert found.step == 40
    assert "Input/output error" in damaged["packs/p/attempt-1/checkpoint-00000060"]


def test_with_every_checkpoint_damaged_the_pack_starts_again(store: Store, tmp_path: Path) -> None:
    for step in (40, 60):
        save_checkpoint(store, "p", 1, checkpoint(step))
        garble(tmp_path / f"packs/p/attempt-1/checkpoint-{step:08d}")
    found, damaged = latest_checkpoint(store, "p")
    assert found is None
    assert len(damaged) == 2
    save_checkpoint(store, "p", 2, checkpoint(20), damaged)
    assert folders(store) == ["attempt-2/checkpoint-00000020"], "older than what was damaged, and all there is"
    assert latest_step(store, "p") == 20


def test_after_a_fall_back_there_are_two_good_ones_again(store: Store, tmp_path: Path) -> None:
    save_checkpoint(store, "p", 1, checkpoint(40))
    save_checkpoint(store, "p", 1, checkpoint(60))
    cut(tmp_path / "packs/p/attempt-1/checkpoint-00000060")
    _, damaged = latest_checkpoint(store, "p")
    kept = {50: ["attempt-1/checkpoint-00000040"], 60: ["attempt-2/checkpoint-00000050"]}
    for step, before in kept.items():
        save_checkpoint(store, "p", 2, checkpoint(step, mark=2.0), damaged)
        assert folders(store) == [*before, f"attempt-2/checkpoint-{step:08d}"]
        found = latest_checkpoint(store, "p").checkpoint
        assert found is not None
        assert found.step == step


def test_what_a_writer_that_died_left_behind_goes(store: Store, tmp_path: Path) -> None:
    save_checkpoint(store, "p", 1, checkpoint(40))
    save_checkpoint(store, "p", 1, checkpoint(60))
    lose_facts(tmp_path / "packs/p/attempt-1/checkpoint-00000060")
    save_checkpoint(store, "p", 2, checkpoint(50))
    assert folders(store) == ["attempt-1/checkpoint-00000040", "attempt-2/checkpoint-00000050"]


@settings(deadline=None)
@given(steps=st.lists(st.integers(1, 10**6), min_size=1, max_size=6, unique=True))
def test_the_newest_is_found_in_whatever_order_they_came(
    steps: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store.open(tmp_path_factory.mktemp("run"))
    for step in steps:
        save_checkpoint(store, "p", 1, checkpoint(step))
    assert latest_step(store, "p") == max(steps)
    assert len(folders(store)) == min(KEPT, len(steps))
