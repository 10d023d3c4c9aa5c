"""What a sweep will need: estimates held against real state, rows and memory, and plans that cannot fit."""

import json
import shutil
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from command import Command
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from altgrad.training.checkpoint import Checkpoint, to_files
from altgrad.training.config import RunConfig
from altgrad.training.corpus import Corpus, load_corpus
from altgrad.training.lanes import Lanes
from altgrad.training.loop import train_step
from orchestrator.plan import Pack, Plan, make_plan
from orchestrator.preflight import (
    SHARES,
    PreflightError,
    automatic_share,
    check_disk,
    check_memory,
    checkpoint_size,
    disk,
    estimates,
    pack_memory,
)
from orchestrator.results.journal import SweepState
from orchestrator.results.store import Store
from orchestrator.space import SpaceError, load_space

GIB = 2**30
CORPUS = {"corpus": "stdlib", "hash": "c0ffee", "tokens": 1000, "vocabulary": 256}
SPACE: dict[str, Any] = {
    "name": "x",
    "parameters": {"format": {"values": ["fp32", "E4M3"]}, "seed": {"values": [1, 2]}},
    "run": {"steps": 100, "report_interval": 10, "checkpoint_interval": 10, "model": {"n_layer": 2, "n_embd": 64}},
}
LARGE: dict[str, Any] = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024}


def planned(tmp_path: Path, *overrides: str, **changes: Any) -> Plan:
    """The plan of a space; JSON is YAML."""
    (tmp_path / "x.yaml").write_text(json.dumps({**SPACE, **changes}), encoding="utf-8")
    return make_plan(load_space(tmp_path / "x.yaml", overrides), CORPUS)


class Peak(TorchDispatchMode):
    """Bytes of all tensors that live at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.most = max(self.most, self.live)
        return result

    def _freed(self, size: int) -> None:
        self.live -= size


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    text = tmp_path_factory.mktemp("corpus") / "text.txt"
    text.write_text("to be or not to be, that is the question " * 200)
    return load_corpus(str(text), "byte", "text")


WIDE = {"model": {"n_layer": 2, "n_head": 2, "n_embd": 128, "block_size": 8}, "batch_size": 1}
LONG = {"model": {"n_layer": 3, "n_head": 2, "n_embd": 64, "block_size": 128}, "batch_size": 16}
RUNS: list[dict[str, Any]] = [
    {"format": "fp32"},
    {"format": "E4M3"},
    {"format": "E4M3", "storage": "nearest"},
    {"format": "E4M3", "storage": "stochastic", "tensors": ["weights", "activations", "gradients"]},
    {"format": "E4M3", "optimizer": "muon"},
    {"format": "E4M3", "optimizer": "grid", "storage": "nearest"},
]


@pytest.mark.parametrize(("run", "shape"), [*((run, WIDE) for run in RUNS), (RUNS[0], LONG), (RUNS[3], LONG)])
def test_memory_is_estimated_within_a_factor_of_two_of_what_a_step_holds(
    run: dict[str, Any], shape: dict[str, Any], corpus: Corpus
) -> None:
    config = RunConfig.from_dict({**run, **shape, "compile": "never", "products": "float32"})
    with Peak() as peak:
        lanes = Lanes(["a", "b"], {"a": config, "b": config}, corpus, torch.device("cpu"))
        for step in (1, 2):
            train_step(lanes, step)
    estimated = pack_memory([config] * 2, corpus.vocabulary) - pack_memory([], corpus.vocabulary)
    assert estimated / 2 < peak.most < estimated * 2
    if shape is WIDE:
        written = sum(map(len, to_files(Checkpoint(2, lanes.keys, lanes.tensors())).values()))
        assert 2 * checkpoint_size(config, corpus.vocabulary) == pytest.approx(written, rel=0.15)


class Kept(NamedTuple):
    free: int


def with_free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Kept(int(size)))


def test_a_sweep_that_cannot_fit_on_the_disk_is_refused_with_numbers_and_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, store = planned(tmp_path), Store.open(tmp_path / "not" / "there")
    state = SweepState.from_records(plan.to_dict(), [])
    need = disk(plan, state, 1).total
    with_free(monkeypatch, need / 2.1)
    with pytest.raises(PreflightError, match=r"the sweep writes about .* has .* left: make room.*--storage.*wandb"):
        check_disk(plan, state, store, 1)
    with_free(monkeypatch, need * 1.5)
    assert "room is tight" in str(check_disk(plan, state, store, 1))
    with_free(monkeypatch, need * 2.1)
    assert check_disk(plan, state, store, 1) is None


def test_the_room_of_an_object_store_is_not_this_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(tmp_path)
    with_free(monkeypatch, 0)
    store = Store(Store.open(tmp_path).arrow_source("x")[0], "bucket/runs", "s3://bucket/runs")
    assert check_disk(plan, SweepState.from_records(plan.to_dict(), []), store, 1) is None


def test_only_what_is_left_to_do_is_counted(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    control, other = plan.packs

    def ends(pack: Pack) -> list[dict[str, Any]]:
        of_lane = {"event": "lane_ended", "pack": pack.pack, "reason": "completed", "step": 100}
        return [{"time": "2026-01-01T00:00:00", "key": lane.key, **of_lane} for lane in pack.lanes]

    half = [{"event": event, "pack": other.pack, "step": 50} for event in ("pack_started", "reported")]
    everything, second, rest, nothing = (
        disk(plan, SweepState.from_records(plan.to_dict(), records))
        for records in ([], ends(control), ends(control) + half, ends(control) + ends(other))
    )
    assert everything.total > second.total > rest.total > nothing.total == 0
    assert rest.wandb < second.wandb < 2 * rest.wandb, "what W&B keeps of a trial at all is not halved"


def test_checkpoints_are_counted_for_the_packs_that_run_at_once(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    all_at_once, one = disk(plan), disk(plan, None, 1)
    assert one.checkpoints < all_at_once.checkpoints < 2 * one.checkpoints
    assert disk(planned(tmp_path, "checkpoint_interval=0")).checkpoints == 0
    assert disk(planned(tmp_path, "checkpoint_interval=100")).checkpoints == 0, "none is taken at the last step"
    assert disk(planned(tmp_path, "wandb.mode=disabled")).wandb == 0
    assert disk(planned(tmp_path, "wandb.interval=1")).wandb > disk(planned(tmp_path)).wandb


# --- GPUs, which this machine need not have


def test_a_pack_that_no_share_holds_is_refused_with_numbers_and_ways_out(tmp_path: Path) -> None:
    plan = planned(tmp_path, "batch_size=32", run={**SPACE["run"], "model": LARGE})
    with pytest.raises(PreflightError) as error:
        check_memory(plan.packs, 50257, 24 * GIB, 0.5)
    message = str(error.value)
    assert f"{plan.packs[1].pack} (E4M3, 2 lanes) takes about" in message
    assert "resources.gpu: 0.5 of 26 GB is 13 GB: a larger resources.gpu, or fewer lanes" in message
    check_memory(plan.packs, 50257, 1000 * GIB, 0.5)
    with pytest.raises(PreflightError, match="takes about"):
        automatic_share(plan.packs, 50257, 24 * GIB)


@pytest.mark.parametrize(("memory", "share"), [(1.5, 1.0), (3, 0.5), (6, 0.25), (141, 0.125)])
def test_the_automatic_share_is_the_smallest_that_holds_every_pack(memory: float, share: float, tmp_path: Path) -> None:
    plan, memory = planned(tmp_path), int(memory * GIB)
    assert automatic_share(plan.packs, 256, memory) == share
    check_memory(plan.packs, 256, memory, share)
    if share > SHARES[0]:
        smaller = SHARES[SHARES.index(share) - 1]
        assert 1.25 * max(pack_memory([lane.config for lane in p.lanes], 256) for p in plan.packs) > smaller * memory


def test_several_gpus_for_a_pack_hold_what_one_holds(tmp_path: Path) -> None:
    with pytest.raises(PreflightError):
        check_memory(planned(tmp_path).packs, 256, GIB // 2, 2.0)


def test_the_plan_says_what_it_will_need(tmp_path: Path) -> None:
    room, memory = estimates(planned(tmp_path))
    assert room.startswith("disk: about ")
    assert "W&B" in room
    assert memory.startswith("GPU memory: at most ")


def test_a_share_of_a_gpu_is_a_number_or_auto(tmp_path: Path) -> None:
    assert planned(tmp_path, "resources.gpu=auto").spec.resources.gpu == "auto"
    assert Plan.from_dict(planned(tmp_path, "resources.gpu=auto").to_dict()).spec.resources.gpu == "auto"
    assert planned(tmp_path, "resources.gpu=0.25").spec.resources.gpu == 0.25
    with pytest.raises(SpaceError, match=r"resources\.gpu: expected a number or auto, got 'much' \(text\)"):
        planned(tmp_path, "resources.gpu=much")


def test_the_command_refuses_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("to be or not to be, that is the question " * 20)
    Path("x.yaml").write_text(json.dumps({**SPACE, "run": {**SPACE["run"], "corpus": "text.txt"}}))
    with_free(monkeypatch, 1000)
    refused = command("sweep", "x.yaml")
    assert refused.code == 4
    assert "error: the sweep writes about " in refused.err
    assert not Path("runs").exists()
