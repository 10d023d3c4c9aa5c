"""What it costs to have no float32 masters, and what stochastic rounding gives back."""

import numpy as np
import pytest
from small_runs import lane_rows, run, small

from altgrad.training.config import RankConfig
from altgrad.training.data import Corpus

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
