"""What it costs to have no float32 masters, and what stochastic rounding gives back."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import assert_same_rows, lane_rows, run, small

from altgrad.training.config import RankConfig, RunConfig
from altgrad.training.corpus import Corpus
from altgrad.training.lanes import Lanes
from altgrad.training.loop import train_step
from altgrad.training.shapes import matrix_names

SEEDS = (1, 2)
#: By mantissa bits, most first.
FORMATS = ("E2M5", "E4M3", "E5M2", "E7M0")
STORAGES = ("master", "nearest", "stochastic")
#: By format and storage: validation loss at the end and mean stall ratio.
Ends = dict[tuple[str, str], tuple[float, float]]


@pytest.fixture(scope="module")
def ends(corpus: Corpus) -> Ends:
    """One pack of all of them, every number a mean over seeds."""
    kinds = [(name, storage) for name in FORMATS for storage in STORAGES if storage == "nearest" or name != "E2M5"]
    lanes = [(name, storage, seed) for name, storage in kinds for seed in SEEDS]
    run_of = {"steps": 100, "report_interval": 100, "lr": 3e-3, "ranks": RankConfig(interval=100)}
    configs = [small(format=name, storage=storage, seed=seed, **run_of) for name, storage, seed in lanes]
    reports = run(configs, corpus, keys=["/".join(map(str, lane)) for lane in lanes])

    def of(name: str, storage: str) -> tuple[float, float]:
        rows = [lane_rows(reports, f"{name}/{storage}/{seed}") for seed in SEEDS]
        losses, stalls = ([row[f"steps/{column}"] for row in rows] for column in ("val_loss", "stall_ratio"))
        return float(np.mean([loss[-1] for loss in losses])), float(np.mean(stalls))

    return {kind: of(*kind) for kind in kinds}


def test_without_masters_nearest_rounding_ends_worse_the_fewer_mantissa_bits(ends: Ends) -> None:
    losses, stalls = zip(*(ends[name, "nearest"] for name in FORMATS), strict=True)
    assert list(losses) == sorted(losses)
    assert list(stalls) == sorted(stalls)


@pytest.mark.parametrize("name", ["E4M3", "E5M2", "E7M0"])
def test_stochastic_rounding_closes_most_of_the_gap_to_masters(name: str, ends: Ends) -> None:
    """Measured: all of it, or a little more."""
    master, nearest, stochastic = (ends[name, storage][0] for storage in STORAGES)
    assert nearest > master
    assert (nearest - stochastic) / (nearest - master) > 0.5


#: Everything that has codes without masters: each way of rounding, each optimizer, scales that move and that do not.
ON_GRID: list[dict[str, Any]] = [
    {"storage": "nearest"},
    {"storage": "stochastic", "lr": 0.03},
    {"storage": "stochastic", "scaling": "amax", "format": "E2M5"},
    {"storage": "nearest", "optimizer": "manifold_adamw", "precondition": "update", "format": "E5M2"},
    {"storage": "nearest", "optimizer": "grid", "format": "E7M0"},
    {"storage": "stochastic", "optimizer": "muon", "scaling": "none", "format": "E0M7"},
]


def one_lane(config: RunConfig, corpus: Corpus) -> Lanes:
    return Lanes(["a"], {"a": config}, corpus, torch.device("cpu"))


@pytest.mark.parametrize("setting", ON_GRID, ids=str)
def test_without_masters_codes_and_scales_are_all_there_is_of_a_weight(setting: dict, corpus: Corpus) -> None:
    """After every step the float32 weights are spoiled, and the next step begins with what the codes say."""
    config = small(**setting)
    usual, spoiled = one_lane(config, corpus), one_lane(config, corpus)
    for step in range(1, 16):
        train_step(usual, step)
        train_step(spoiled, step)
        for part in spoiled.parts:
            if part.grid:
                codes = part.grid.codes(part.stack)
                assert codes.dtype == torch.int8
                part.stack.stored.fill_(math.nan)
                part.stack.working.fill_(math.nan)
                part.grid.restore(part.stack, codes)
    one, other = ([lanes.recorder.rows({})] for lanes in (usual, spoiled))
    assert_same_rows(lane_rows(one, "a"), lane_rows(other, "a"))


def test_a_checkpoint_holds_one_byte_a_weight_that_has_no_master(corpus: Corpus) -> None:
    tensors = one_lane(small(storage="nearest"), corpus).tensors()
    weights = {name: tensor for name, tensor in tensors.items() if name.split("/")[1] in ("stored", "codes")}
    matrices = {name for name, tensor in weights.items() if tensor.dim() == 3}
    assert matrices == {f"{name}/codes" for name in matrix_names(small().model)}
    assert {weights[name].dtype for name in matrices} == {torch.int8}


def test_a_weight_that_is_no_number_is_none_after_a_restart(corpus: Corpus) -> None:
    lanes, again = (one_lane(small(storage="nearest"), corpus) for _ in range(2))
    stored = lanes.parts[0].stack.stored
    stored[0, 0, 0, 0] = math.nan
    again.load(lanes.tensors())
    assert torch.equal(again.parts[0].stack.stored.isnan(), stored.isnan())
    assert stored.isnan().sum() == 1


@pytest.mark.parametrize("format", ["bf16", "fp16"])
def test_formats_of_two_bytes_keep_their_values(format: str, corpus: Corpus) -> None:
    lanes, again = (one_lane(small(storage="nearest", format=format), corpus) for _ in range(2))
    train_step(lanes, 1)
    again.load(lanes.tensors())
    for one, other in zip(lanes.parts, again.parts, strict=True):
        assert torch.equal(one.stack.stored, other.stack.stored)
