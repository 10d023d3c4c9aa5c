"""Checkpoints go when their pack has ended, and not before."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from altgrad.training.checkpoint import Checkpoint
from orchestrator.results.store import Store
from orchestrator.sweep.checkpoint_folders import latest_step
from orchestrator.sweep.checkpoints import save_checkpoint
from orchestrator.sweep.retention import Retention, delete_checkpoints


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three packs with checkpoints of two attempts and a chunk each."""
    store = Store.open(tmp_path)
    for pack in ("p1", "p11", "p2"):
        for attempt in (1, 2):
            save_checkpoint(store, pack, attempt, Checkpoint(10 * attempt, ("a",), {"x": torch.zeros(1)}))
        store.write_bytes(f"packs/{pack}/attempt-1/steps-000000.parquet", b"rows")
    return store


def kept(store: Store) -> set[str]:
    return {path.split("/")[1] for path in store.list("packs") if "checkpoint-" in path}


@pytest.mark.parametrize(
    ("packs", "left"), [([], {"p1", "p11", "p2"}), (["p1"], {"p11", "p2"}), (["p1", "p2"], {"p11"})]
)
def test_checkpoints_of_these_packs_go_and_rows_stay(packs: list[str], left: set[str], store: Store) -> None:
    delete_checkpoints(store, packs)
    assert kept(store) == left
    assert len([path for path in store.list("packs") if path.endswith(".parquet")]) == 3
    assert latest_step(store, "p11") == 20


@pytest.mark.parametrize(
    ("unfinished", "failed", "left"),
    [([], {}, {"p11", "p2"}), (["p1"], {}, {"p1", "p11", "p2"}), ([], {"p1": "why"}, {"p1", "p11", "p2"})],
    ids=["ended", "interrupted", "failed"],
)
def test_a_pack_that_is_to_go_on_keeps_its_checkpoints(
    unfinished: list[str], failed: dict[str, str], left: set[str], store: Store
) -> None:
    observer = SimpleNamespace(unfinished=unfinished, failed=failed)
    retention = Retention(store, observer)  # type: ignore[arg-type]
    retention.on_trial_complete(1, [], SimpleNamespace(config={"pack": "p1"}))  # type: ignore[arg-type]
    assert kept(store) == left
