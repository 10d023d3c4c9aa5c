"""What a sweep that is taken up again says it found."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_plan import small_plan

from altgrad.training.checkpoint import Checkpoint
from orchestrator.results.journal import Journal, SweepState
from orchestrator.results.store import Store
from orchestrator.sweep.checkpoints import save_checkpoint
from orchestrator.sweep.found import found, tune_state


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "run")


@pytest.mark.parametrize(
    ("checkpoints", "goes_on"),
    [
        ([], "3 packs start"),
        ([20], "1 pack goes on from step 20, 2 packs start"),
        ([20, 60], "2 packs go on from steps 20 and 60, 1 pack starts"),
        ([20, 60, 40], "3 packs go on from steps 20, 60 and 40"),
    ],
)
def test_where_packs_go_on(checkpoints: list[int], goes_on: str, store: Store, tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    Journal(store).append({"event": "pack_started", "pack": plan.packs[0].pack})
    for pack, step in zip(plan.packs, checkpoints, strict=False):
        save_checkpoint(store, pack.pack, 1, Checkpoint(step, ("k",), {"w": torch.zeros(1)}))
    first, state = found(store, SweepState.from_records(plan.to_dict(), Journal(store).read()))
    assert first == f"0 of 12 trials ended, {goes_on}"
    assert state == "Ray's own state is missing; it is not used"


def test_a_sweep_that_has_not_begun_finds_nothing(store: Store, tmp_path: Path) -> None:
    assert list(found(store, SweepState.from_records(small_plan(tmp_path).to_dict(), []))) == []


OLDER, NEWER = (f"ray/experiment_state-2026-11-20_13-0{minute}-00.json" for minute in (1, 2))


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({}, "missing"),
        ({"ray/tuner.pkl": b"\x80\x04poison"}, "missing"),
        ({OLDER: b"{}", NEWER: b'{"a": 1}'}, "whole"),
        ({OLDER: b"{}", NEWER: b'{"a": '}, f"damaged ({NEWER})"),
        ({OLDER: b"{", NEWER: b"{}"}, "whole"),
    ],
)
def test_of_tunes_own_state_it_is_said_whether_it_is_whole(files: dict[str, bytes], state: str, store: Store) -> None:
    for path, data in files.items():
        store.write_bytes(path, data)
    assert tune_state(store) == state


def test_a_pack_that_had_failed_gets_another_chance(store: Store, tmp_path: Path) -> None:
    plan, records = small_plan(tmp_path), Journal(store)
    for event in ("pack_started", "pack_failed"):
        told: dict[str, Any] = {"event": event, "pack": plan.packs[2].pack}
        records.append(told)
    words = list(found(store, SweepState.from_records(plan.to_dict(), records.read())))
    assert "1 of these packs had failed and gets another chance" in words
