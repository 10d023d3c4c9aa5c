"""Compiled programs: what compiles nothing again, who else finds them, and that they train as eager ones do."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import small, steps_from_equal_states
from torch._dynamo.utils import counters

from altgrad.quantization.fused import Engine
from altgrad.training import compiling
from altgrad.training.compiling import compile_seconds, is_compiled, saved_seconds
from altgrad.training.config import LANE_FIELDS, ModelConfig, RunConfig
from altgrad.training.corpus import Corpus, load_corpus
from altgrad.training.lanes import Lanes
from altgrad.training.loop import evaluate, train_step
from altgrad.training.weights import copy_whole

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")),
    reason="torch.compile needs a C++ compiler",
)


def program(corpus: Corpus, *lanes: dict[str, Any], **shared: Any) -> Lanes:
    """Two lanes; with nothing said the program that most tests here share, so that it is paid for once."""
    one, other = lanes or ({"format": "E4M3"}, {"format": "E5M2"})
    configs = {
        "a": small(**({"compile": "always"} | shared | one)),
        "b": small(**({"compile": "always"} | shared | other)),
    }
    return Lanes(list(configs), configs, corpus, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16])
def test_whole_numbers_that_fit_are_copied_as_they_are(dtype: torch.dtype) -> None:
    limits = torch.iinfo(dtype)
    numbers = torch.arange(limits.min, limits.max + 1, dtype=torch.int32)
    target = torch.zeros_like(numbers, dtype=dtype)
    compiling.compiled(copy_whole)(target, numbers)
    assert torch.equal(target.to(torch.int32), numbers)


def go(lanes: Lanes) -> dict[str, int]:
    """Two steps and a validation; what this process has traced, found in the cache and compiled since it started."""
    torch.set_num_threads(1)
    for step in (1, 2):
        train_step(lanes, step)
    evaluate(lanes)
    inductor = counters["inductor"]
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "found": inductor["fxgraph_cache_hit"],
        "made": inductor["fxgraph_cache_miss"],
    }


@pytest.fixture(scope="module")
def compiled(corpus: Corpus) -> dict[str, int]:
    """Counts when the program is compiled."""
    counts = go(program(corpus))
    assert counts["graphs"] > 0
    return counts


@pytest.mark.parametrize(
    "lanes",
    [
        ({"format": "E5M2"}, {"format": "E4M3"}),
        ({"format": "E0M7"}, {"format": "E7M0"}),
        ({"lr": 3e-2}, {"lr": 1e-4}),
        ({"seed": 1}, {"seed": 2}),
        ({"min_lr_ratio": 0.5, "beta1": 0.8, "beta2": 0.999}, {"eps": 1e-6, "weight_decay": 0.0, "grad_clip": 0.0}),
    ],
    ids=str,
)
def test_other_lanes_compile_nothing_again(lanes: tuple[dict, dict], compiled: dict[str, int], corpus: Corpus) -> None:
    assert set().union(*lanes) <= LANE_FIELDS
    graphs = counters["stats"]["unique_graphs"]
    assert go(program(corpus, *lanes))["graphs"] == graphs


def test_another_process_finds_them_in_the_cache(compiled: dict[str, int]) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["graphs"] > 0
    assert counts["found"] > 0
    assert counts["made"] == 0


@pytest.mark.parametrize(
    "setting",
    [
        {"optimizer": "adamw"},
        {"optimizer": "manifold_adamw", "precondition": "update", "rung_lr": 1.0, "storage": "stochastic"},
        {"optimizer": "grid", "storage": "nearest"},
    ],
    ids=str,
)
def test_steps_agree_with_eager_ones_from_equal_states(
    setting: dict, corpus: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    """From the same state, one step differs by float32 rounding only; a few codes on a boundary may flip.

    PyTorch 2.15 fails on the second half of the grid optimizer's step, which then runs eagerly.
    """
    eager, ours = program(corpus, compile="never", **setting), program(corpus, **setting)
    for one, other in steps_from_equal_states(eager, ours, steps=3):
        np.testing.assert_allclose(one.steps["loss"], other.steps["loss"], rtol=1e-3)
        np.testing.assert_allclose(one.layers["grad_norm"], other.layers["grad_norm"], rtol=0.02)
        for counted in ("flips", "updates"):
            differing = np.abs(one.steps[counted] - other.steps[counted]) / one.steps["updates"]
            assert (differing < 0.02).all(), counted
    assert setting["optimizer"] == "grid" or not fallbacks(caplog)


def fallbacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [record.getMessage() for record in caplog.records if record.name == compiling.__name__]
    return [message for message in said if "run eagerly" in message]


def test_a_compiler_that_fails_costs_speed_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no program for this one")

    def double(x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)

    monkeypatch.setitem(compiling._SETTINGS, "backend", refuse)
    monkeypatch.setattr(compiling, "_THREADS", {})
    program, x = compiling.compiled(double), torch.ones(1)
    assert [program(x).item() for _ in range(3)] == [2.0, 4.0, 8.0]
    (said,) = fallbacks(caplog)
    assert said.startswith("double is not compiled but run eagerly: the compiler failed")
    assert "no program for this one" in said


class TestAuto:
    """`compile: auto`, with the estimates of docs/measurements.md."""

    CPU = torch.device("cpu")

    def repaid_after(self, **changes: Any) -> int:
        config = RunConfig(**changes)
        return math.ceil(compile_seconds(config) / saved_seconds(config))

    @pytest.mark.parametrize("model", [ModelConfig(n_layer=1, n_embd=32), ModelConfig()], ids=["1x32", "4x128"])
    def test_a_run_that_does_not_repay_it_stays_eager(self, model: ModelConfig) -> None:
        steps = self.repaid_after(model=model)
        assert not is_compiled(RunConfig(model=model, steps=steps - 1), self.CPU)
        assert is_compiled(RunConfig(model=model, steps=steps), self.CPU)

    def test_a_larger_model_repays_it_sooner_though_it_costs_more(self) -> None:
        small, large = ModelConfig(), ModelConfig(n_layer=6, n_head=6, n_embd=384, block_size=128)
        assert compile_seconds(RunConfig(model=large)) > compile_seconds(RunConfig(model=small))
        assert 300 < self.repaid_after(model=large) < self.repaid_after(model=small) < 5000

    def test_what_is_asked_for_is_done(self) -> None:
        assert is_compiled(RunConfig(steps=1, compile="always"), self.CPU)
        assert not is_compiled(RunConfig(steps=10**9, compile="never"), self.CPU)

    def test_without_a_compiler_it_stays_eager(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compiling, "engine", lambda device: Engine("eager", "no compiler"))
        assert not is_compiled(RunConfig(steps=10**9), self.CPU)


if __name__ == "__main__":
    print(json.dumps(go(program(load_corpus("stdlib")))))
