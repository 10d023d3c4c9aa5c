"""Lanes never mix: what stands beside a lane, and how often it is interrupted, changes no bit of its rows."""

import dataclasses

import numpy as np
import pytest
import torch
from small_runs import assert_same_rows, lane_rows, run, small

from altgrad.quantization import FP8_FORMATS
from altgrad.training.checkpoint import Checkpoint, from_files, to_files
from altgrad.training.config import ConfigError, LayerRule, ModelConfig, RankConfig, RunConfig
from altgrad.training.corpus import Corpus, load_corpus
from altgrad.training.lanes import Lanes
from altgrad.training.loop import train, train_step
from altgrad.training.ranks import SPECTRA

MIXES = {
    "formats, seeds and learning rates": [
        small(format="E4M3", seed=1, lr=1e-3),
        small(format="E5M2", seed=2, lr=3e-3),
        small(format="fp32", seed=3, lr=1e-2),
    ],
    "storage": [
        small(format="E4M3", storage="nearest"),
        small(format="E4M3", storage="stochastic", seed=2),
        small(format="E2M5", storage="master"),
    ],
    "layers": [
        small(format="E3M4", layers="attention"),
        small(format="E5M2", layers=(LayerRule("h.0.*", "bf16"), LayerRule("*"))),
        small(format="E7M0", layers="no_head"),
    ],
    "grid": [
        small(format=name, optimizer="grid", storage="nearest", seed=seed, grid_scale=2.0 * seed)
        for seed, name in enumerate(("E0M7", "E4M3", "E7M0"), start=1)
    ],
    "manifold": [
        small(format=name, optimizer="manifold_adamw", storage="stochastic", precondition="update", rung_lr=lr)
        for name, lr in (("E0M7", 0.1), ("E4M3", 0.5), ("E5M2", 1.0))
    ],
    "muon": [
        small(format=name, optimizer="muon", storage=storage, muon_momentum=momentum, lr=lr)
        for name, storage, momentum, lr in (
            ("E4M3", "master", 0.95, 1e-3),
            ("E5M2", "stochastic", 0.9, 1e-2),
            ("fp32", "master", 0.5, 3e-3),
        )
    ],
    "quantized gradients": [
        small(format=name, tensors=("weights", "activations", "gradients")) for name in ("E4M3", "fp32", "E6M1")
    ],
}


TWO_THREADS = ("layers", "formats, seeds and learning rates")


@pytest.mark.parametrize(("mix", "threads"), [*((mix, 1) for mix in MIXES), *((mix, 2) for mix in TWO_THREADS)])
def test_three_lanes_equal_three_runs_bit_for_bit(mix: str, threads: int, corpus: Corpus) -> None:
    torch.set_num_threads(threads)
    # Two threads on a busy core wait for each other most of the time; ten steps show as much.
    configs = [dataclasses.replace(config, steps=50 if threads == 1 else 10) for config in MIXES[mix]]
    together = run(configs, corpus)
    for i, config in enumerate(configs):
        alone = run([config], corpus, keys=[f"lane{i}"])
        assert_same_rows(lane_rows(together, f"lane{i}"), lane_rows(alone, f"lane{i}"))


@pytest.mark.parametrize("mix", ["storage", "grid"])
def test_an_interrupted_run_resumes_to_the_same_rows(mix: str, corpus: Corpus) -> None:
    whole = run(MIXES[mix], corpus)
    saved: list[Checkpoint] = []
    run(MIXES[mix], corpus, save=saved.append)
    assert [checkpoint.step for checkpoint in saved] == [20, 40]
    resumed = run(MIXES[mix], corpus, resume=from_files(to_files(saved[0])))
    for i in range(3):
        assert_same_rows(lane_rows(whole[2:], f"lane{i}"), lane_rows(resumed, f"lane{i}"))


@pytest.mark.parametrize(
    ("mix", "ended"), [("layers", "lane1"), ("storage", "lane2"), ("storage", "lane0"), ("wide beside narrow", "lane0")]
)
def test_a_lane_that_ends_leaves_the_others_unchanged(mix: str, ended: str, corpus: Corpus) -> None:
    """Also where it alone had masters, or more than a byte a weight."""
    settings = [{"format": "bf16"}, {"format": "E4M3"}, {"format": "E5M2"}]
    configs = MIXES.get(mix) or [small(storage="nearest", seed=i, **changes) for i, changes in enumerate(settings)]
    whole = run(configs, corpus)
    reports = []

    def end_one(step, rows):
        reports.append(rows)
        return {ended} if step == 20 else None

    train(configs, end_one, corpus=corpus)
    kept = {"lane0", "lane1", "lane2"} - {ended}
    assert set(reports[1].steps["key"]) == kept | {ended}
    assert set(reports[2].steps["key"]) == kept
    for key in kept:
        assert_same_rows(lane_rows(whole, key), lane_rows(reports, key))


def test_a_lane_that_blows_up_harms_no_other(corpus: Corpus) -> None:
    healthy = small(format="E4M3")
    beside = run([healthy, small(format="fp32", lr=1e30, grad_clip=0)], corpus)
    assert not np.isfinite(beside[-1].steps["loss"][1::2]).any()
    assert_same_rows(lane_rows(beside, "lane0"), lane_rows(run([healthy], corpus), "lane0"))


@pytest.mark.parametrize(
    "setting",
    [
        {"optimizer": "adamw", "storage": "master"},
        {"optimizer": "adamw", "storage": "nearest"},
        {"optimizer": "adamw", "storage": "stochastic"},
        {"optimizer": "manifold_adamw", "storage": "nearest"},
        {"optimizer": "manifold_adamw", "storage": "nearest", "precondition": "update", "rung_lr": 1.0},
        {"optimizer": "grid", "storage": "nearest"},
        {"tensors": ("weights", "activations", "gradients")},
    ],
    ids=str,
)
def test_e0m7_and_e1m6_train_alike_under_power_of_two_scales(setting: dict, corpus: Corpus) -> None:
    rows = run([small(format="E0M7", **setting), small(format="E1M6", **setting)], corpus)
    one, other = lane_rows(rows, "lane0"), lane_rows(rows, "lane1")
    assert_same_rows(one, other, but=("key", "format", "scale"))
    scaled = one["layers/scale"] == 4 * other["layers/scale"]
    assert scaled.all()


@pytest.mark.parametrize("format", [format.name for format in FP8_FORMATS])
def test_stall_ratios_and_shares_lie_between_zero_and_one(format: str, corpus: Corpus) -> None:
    rows = lane_rows(run([small(format=format, storage="nearest", weight_decay=1.0)], corpus), "lane0")
    for name in ("stall_ratio", "weight_saturated", "weight_underflowed", "activation_saturated"):
        values = rows[f"layers/{name}"]
        values = values[~np.isnan(values)]
        assert len(values)
        assert ((values >= 0) & (values <= 1)).all()
    assert (rows["layers/flips"] <= rows["layers/elements"]).all()


def test_float32_has_no_codes_and_says_so(corpus: Corpus) -> None:
    rows = lane_rows(run([small(format="fp32")], corpus), "lane0")
    for name in ("flips", "updates", "stall_ratio", "rung_distance", "weight_saturated", "activation_saturated"):
        assert np.isnan(rows[f"steps/{name}"]).all(), name
    assert np.isfinite(rows["steps/stable_rank_mean"]).all()


def test_spectra_come_at_rank_checks_only(corpus: Corpus) -> None:
    rows = lane_rows(run([small()], corpus), "lane0")
    for name in SPECTRA:
        measured = ~np.isnan(rows[f"layers/{name}"])
        assert set(rows["layers/step"][measured]) == {10, 20, 30, 40, 50}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stable_rank_is_within_one_percent_of_the_exact_one_at_every_step(optimizer: str, corpus: Corpus) -> None:
    config = small(optimizer=optimizer, steps=60, ranks=RankConfig(interval=1), report_interval=60)
    rows = lane_rows(run([config], corpus), "lane0")
    np.testing.assert_allclose(rows["layers/stable_rank"], rows["layers/exact_stable_rank"], rtol=0.01)


def test_so_it_is_at_nanogpts_cpu_size_while_the_first_directions_are_learned() -> None:
    """Of 2,000 steps these are the hardest: new singular values outgrow those of the random start (step 14 or so)."""
    config = RunConfig(steps=2000, ranks=RankConfig(interval=1), report_interval=25, eval_batches=1)
    reports = []

    def keep_one(step, rows):
        reports.append(rows)
        return {"lane0"}

    train([config], keep_one, corpus=load_corpus("stdlib"))
    rows = lane_rows(reports, "lane0")
    assert rows["layers/step"].max() == 25
    np.testing.assert_allclose(rows["layers/stable_rank"], rows["layers/exact_stable_rank"], rtol=0.01)


def test_without_masters_every_weight_lies_on_its_grid_after_every_step(corpus: Corpus) -> None:
    configs = {"a": small(storage="nearest"), "b": small(storage="stochastic")}
    lanes = Lanes(list(configs), configs, corpus, torch.device("cpu"))
    for step in range(1, 6):
        train_step(lanes, step)
        for part in lanes.parts:
            if part.grid:
                before = part.stack.stored.clone()
                part.grid.refresh(part.stack)
                assert torch.equal(before, part.stack.stored)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"steps": 60}, "steps"),
        ({"model": ModelConfig(n_layer=1)}, "model"),
        ({"optimizer": "manifold_adamw"}, "optimizer"),
    ],
)
def test_lanes_that_differ_in_shape_are_refused(change: dict, where: str, corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match=f"{where}: must be the same"):
        run([small(), small(**change)], corpus)


def test_a_layer_rule_that_matches_nothing_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match=r"layers\.0\.match: '\*\.atn\.\*' matches no matrix"):
        run([small(layers=(LayerRule("*.atn.*"),))], corpus)
