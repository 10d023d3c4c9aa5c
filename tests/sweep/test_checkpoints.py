"""Checkpoints in a run's folder: the newest whole one is found, whatever happened to the others."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from altgrad.training.checkpoint import Checkpoint
from orchestrator.results.store import Store
from orchestrator.sweep.checkpoints import KEPT, latest_checkpoint, latest_step, save_checkpoint


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
    assert latest_checkpoint(store, "p") is None
    assert latest_step(store, "p") == 0


def test_what_was_saved_comes_back(store: Store) -> None:
    save_checkpoint(store, "p", 1, checkpoint(40, mark=2.5))
    found = latest_checkpoint(store, "p")
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
    assert latest_checkpoint(store, "p") is None


def test_only_the_newest_are_kept_over_all_attempts(store: Store) -> None:
    for attempt, step in ((1, 20), (1, 40), (2, 60), (2, 80)):
        save_checkpoint(store, "p", attempt, checkpoint(step))
    assert folders(store) == ["attempt-2/checkpoint-00000060", "attempt-2/checkpoint-00000080"]


@pytest.mark.parametrize(("first", "second"), [(1, 2), (9, 10), (2, 1)])
def test_of_equal_steps_the_latest_attempt_is_taken(first: int, second: int, store: Store) -> None:
    save_checkpoint(store, "p", first, checkpoint(40, mark=float(first)))
    save_checkpoint(store, "p", second, checkpoint(40, mark=float(second)))
    found = latest_checkpoint(store, "p")
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


@pytest.mark.parametrize("damage", [cut, flip, garble, lose_state, lose_facts, being_written])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    damage: Callable[[Path], None], store: Store, tmp_path: Path
) -> None:
    save_checkpoint(store, "p", 1, checkpoint(40))
    save_checkpoint(store, "p", 1, checkpoint(60))
    damage(tmp_path / "packs/p/attempt-1/checkpoint-00000060")
    found = latest_checkpoint(store, "p")
    assert found is not None
    assert found.step == 40


def test_with_every_checkpoint_damaged_the_pack_starts_again(store: Store, tmp_path: Path) -> None:
    for step in (40, 60):
        save_checkpoint(store, "p", 1, checkpoint(step))
        garble(tmp_path / f"packs/p/attempt-1/checkpoint-{step:08d}")
    assert latest_checkpoint(store, "p") is None


def test_after_a_fall_back_the_new_attempt_overtakes_what_is_damaged(store: Store, tmp_path: Path) -> None:
    save_checkpoint(store, "p", 1, checkpoint(40))
    save_checkpoint(store, "p", 1, checkpoint(60))
    cut(tmp_path / "packs/p/attempt-1/checkpoint-00000060")
    for step in (50, 60, 70):
        save_checkpoint(store, "p", 2, checkpoint(step, mark=2.0))
        found = latest_checkpoint(store, "p")
        assert found is not None
        assert found.step == step
    assert folders(store) == ["attempt-2/checkpoint-00000060", "attempt-2/checkpoint-00000070"]


@given(steps=st.lists(st.integers(1, 10**6), min_size=1, max_size=6, unique=True))
def test_the_newest_is_found_in_whatever_order_they_came(
    steps: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store.open(tmp_path_factory.mktemp("run"))
    for step in steps:
        save_checkpoint(store, "p", 1, checkpoint(step))
    assert latest_step(store, "p") == max(steps)
    assert len(folders(store)) == min(KEPT, len(steps))
