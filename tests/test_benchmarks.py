"""The benchmarks run and say what they promise. How fast anything is, is never asserted."""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altgrad.training.data import Corpus, load_corpus
from benchmarks.learn_as_nanogpt import Curves, compare
from benchmarks.train_step import WARM_UP, Cost, Plain, Program, Size, Tracked, Untracked, measure

ROOT = Path(__file__).parents[1]
TINY = "1x32"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("".join(f"The {i}th rung of {i * i % 97} is a code.\n" for i in range(500)))
    return path


@pytest.fixture(scope="module")
def corpus(text: Path) -> Corpus:
    return load_corpus(str(text))


def last_line(*command: str) -> dict[str, Any]:
    """What a script's last line holds, run as a person runs it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def numbers(value: Any) -> list[float]:
    return [number for item in value.values() for number in numbers(item)] if isinstance(value, dict) else [value]


@pytest.mark.parametrize("script", [["-m", "benchmarks.train_step"], ["benchmarks/train_step.py"]], ids=" ".join)
def test_train_step_prints_its_ratios(script: list[str]) -> None:
    settings = ["--json", "--steps", "2", "--sizes", f"{TINY},2x16", "--lanes", "4,16", "--threads", "1"]
    result = last_line(*script, *settings)
    over_plain = ("tracked_over_plain", "tracked_quantized_gradients_over_plain", "fp32_lane_over_plain")
    assert result.keys() == {*over_plain, "trackers_over_untracked", "per_lane", "threads"}
    assert all(result[name].keys() == {TINY, "2x16"} for name in over_plain)
    assert result["per_lane"].keys() == {"1", "4", "16"}
    assert result["per_lane"]["1"] == 1.0
    assert result["threads"] == 1
    assert all(math.isfinite(number) and number > 0 for number in numbers(result))


def test_learn_as_nanogpt_prints_its_verdict(text: Path) -> None:
    result = last_line("-m", "benchmarks.learn_as_nanogpt", str(text), "--steps", "3", "--json", "--threads", "1")
    differences = ("first_steps_difference", "any_step_difference", "validation_difference")
    positive = ("seed_spread", "plain_validation", "lane_validation", "steps", "seeds", "threads")
    assert result.keys() == {"alike", *differences, *positive}
    assert result["alike"] is True
    assert (result["steps"], result["seeds"]) == (3, 2)
    assert all(math.isfinite(result[name]) and result[name] > 0 for name in positive)
    assert all(0 <= result[name] <= 1e-4 for name in differences)


@pytest.mark.parametrize("size", ["4", "0x128", "3x128", "4x128x2", "fourx128"])
def test_an_impossible_size_is_refused(size: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"LAYERSxWIDTH|must divide"):
        Size.parse(size)


def test_the_untracked_step_trains_exactly_as_the_tracked_one(corpus: Corpus) -> None:
    config = Size.parse(TINY).config(format="E5M2", warmup_steps=2)
    tracked, untracked = Tracked(config, corpus), Untracked(config, corpus)
    losses = []
    for step in range(1, 31):
        tracked.step(step)
        untracked.step(step)
        losses.append(float(untracked.loss))
    np.testing.assert_allclose(tracked.lanes.recorder.rows({}).steps["loss"], losses, rtol=1e-6)
    assert losses[-1] < losses[0]


def test_the_plain_step_trains_as_a_float32_lane(corpus: Corpus) -> None:
    config = Size.parse(TINY).config(format="fp32", warmup_steps=2)
    lane, plain = Tracked(config, corpus), Plain(config, corpus)
    losses = []
    for step in range(1, 11):
        lane.step(step)
        plain.step(step)
        losses.append(float(plain.loss))
    np.testing.assert_allclose(lane.lanes.recorder.rows({}).steps["loss"], losses, rtol=2e-5)


class Recording:
    """A program that remembers which steps it was asked for."""

    def __init__(self, name: str, log: list[tuple[str, int]]) -> None:
        self._name, self._log = name, log

    def step(self, step: int) -> None:
        self._log.append((self._name, step))

    def flush(self) -> None:
        self._log.append((self._name, 0))


def test_programs_are_timed_in_turn_with_checks_apart() -> None:
    log: list[tuple[str, int]] = []
    programs: dict[str, Program] = {name: Recording(name, log) for name in "ABC"}
    measure(programs, rounds=4, interval=5)
    assert "".join(name for name, _ in log) == "ABC" * (len(log) // 3)
    steps = [step for name, step in log if name == "A"]
    assert steps[: WARM_UP + 4] == [1, 2, 3, 4, 6, 7, 8]
    assert steps[WARM_UP + 4 :] == [0, 10, 15, 20]


def test_a_long_run_has_a_check_and_rows_as_often_as_they_occur() -> None:
    cost = Cost(ordinary=1.0, check=3.0, rows=0.5, interval=10)
    assert cost.step == pytest.approx((9 * 1.0 + 3.0) / 10 + 0.5)


@pytest.mark.parametrize(
    ("early", "late", "alike"),
    [(0.0, 0.0, True), (0.5e-4, 0.05, True), (2e-4, 0.0, False), (0.0, 0.2, False)],
    ids=["equal", "within the spread", "apart at the start", "apart at the end"],
)
def test_the_verdict_holds_differences_against_seeds(early: float, late: float, alike: bool) -> None:
    plain = Curves(train=np.full((2, 300), 3.0), validation=np.array([[2.0, 1.5], [2.1, 1.6]]))
    moved = plain.train.copy()
    moved[1, 10] += early
    lane = Curves(train=moved, validation=plain.validation + [0.0, late])
    verdict = compare(plain, lane)
    assert verdict.alike is alike
    assert verdict.seed_spread == pytest.approx(0.1)
    assert verdict.validation == pytest.approx(late)
