"""The benchmarks run and say what they promise. How fast anything is, is never asserted."""

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from altgrad.quantization import fused
from altgrad.quantization.formats import E4M3, E5M2, FP8Format
from altgrad.training.config import RankConfig, RunConfig
from altgrad.training.corpus import Corpus, load_corpus
from altgrad.training.ranks import EARLY_STEPS
from benchmarks import quantize, sweep, synthetic_run
from benchmarks.learn_as_nanogpt import Curves, compare
from benchmarks.train_step import ROUND, WARM_UP, Cost, Plain, Program, Size, Tracked, Untracked, measure
from orchestrator.results.consolidate import consolidate
from orchestrator.results.named import NAMED, ask
from orchestrator.results.store import Store

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


def last_line(*command: str, timeout: float = 600) -> dict[str, Any]:
    """What a script's last line holds, run as a person runs it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def numbers(value: Any) -> list[float]:
    return [number for item in value.values() for number in numbers(item)] if isinstance(value, dict) else [value]


@pytest.mark.parametrize("script", [["-m", "benchmarks.train_step"], ["benchmarks/train_step.py"]], ids=" ".join)
def test_train_step_prints_its_ratios(script: list[str]) -> None:
    settings = ["--json", "--steps", "2", "--sizes", f"{TINY},2x16", "--lanes", "4,16", "--threads", "1", "--eager"]
    result = last_line(*script, *settings)
    by_size = {
        *("tracked_over_plain", "tracked_quantized_gradients_over_plain", "fp32_lane_over_plain"),
        *("bf16_permitted_over_plain", "trackers_over_untracked_by_size"),
    }
    assert result.keys() == by_size | {"trackers_over_untracked", "per_lane", "threads"}
    assert all(result[name].keys() == {TINY, "2x16"} for name in by_size)
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
    measure(programs, rounds=4, config=RunConfig(ranks=RankConfig(interval=5)))
    turns = [(name, len(list(steps))) for name, steps in itertools.groupby(name for name, _ in log)]
    assert turns == [(name, n) for n in [ROUND] * (2 * WARM_UP + 7) + [1] + [2] * 3 for name in "ABC"]
    steps = [step for name, step in log if name == "A"]
    first, later = ROUND * (WARM_UP + 3), ROUND * (2 * WARM_UP + 7)
    assert steps[:6] == [1, 2, 3, 4, 6, 7]
    assert EARLY_STEPS % 5 == 0
    assert steps[first : first + 7] == [EARLY_STEPS + step for step in (1, 2, 3, 4, 6, 7, 8)]
    assert steps[later:] == [0, *(steps[later - 1] // 5 * 5 + step for step in (4, 5, 9, 10, 14, 15))]


def test_a_run_has_first_steps_checks_and_rows_as_often_as_they_occur() -> None:
    cost = Cost(early=2.0, ordinary=1.0, check=3.0, rows=0.5, steps=2 * EARLY_STEPS, interval=10)
    assert cost.step == pytest.approx((9 * 1.0 + 3.0) / 10 + 0.5 * (2.0 - 1.0) + 0.5)


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


def test_quantize_prints_its_ratios() -> None:
    settings = ["--json", "--elements", "4096", "--rounds", "2", "--formats", "E5M2", "--threads", "1"]
    result = last_line("-m", "benchmarks.quantize", *settings)
    by_format = {f"{job}_over_copy" for job in ("quantize", "fused", "stochastic", "decode", "step")}
    optional = {"qtorch_over_ours", "ml_dtypes_over_ours"}
    required = {"masks_over_ours", "eager_over_ours", "torch_cast_over_copy", "copy_ms"}
    of_the_run = {"threads", "engine", "elements", "device"}
    assert result.keys() == by_format | optional | required | of_the_run | {"differences"}
    assert all(result[key].keys() == {"E4M3", "E5M2"} for key in by_format)
    assert {key for key in optional if result[key] is None} == {
        f"{name}_over_ours" for name in ("qtorch", "ml_dtypes") if name not in result["differences"]
    }
    timed = [result[key] for key in by_format | required | optional if result[key] is not None]
    assert all(math.isfinite(number) and number > 0 for value in timed for number in numbers({"": value}))
    assert (result["threads"], result["elements"], result["device"]) == (1, 4096, "cpu")
    assert result["engine"] == fused.engine().name


def test_what_does_not_give_our_values_is_not_timed_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(x: Tensor, format: FP8Format, scale: float, out: Tensor) -> Tensor:
        return out.copy_(x)

    monkeypatch.setattr(fused, "quantize", copied)
    with pytest.raises(SystemExit, match=r"E5M2 quantize: \d+ elements differ"):
        quantize.run([E5M2, E4M3], elements=64, rounds=1, device=torch.device("cpu"))


def test_every_result_of_a_contender_is_compared() -> None:
    def differences(*results: Tensor) -> int:
        wanted = (torch.tensor(3), torch.tensor([0.0, 1.0, 2.0]))
        return quantize.Contender(lambda: None, lambda: wanted, lambda _: results).differences()

    assert differences(torch.tensor(3), torch.tensor([-0.0, 1.0, 2.0])) == 0
    assert differences(torch.tensor(4), torch.tensor([0.0, 1.0, 2.0])) == 1
    assert differences(torch.tensor(3), torch.tensor([0.5, 1.0, torch.nan])) == 2


def test_the_other_ways_round_as_ours_but_for_ties() -> None:
    contenders, absent = quantize.others(quantize.Buffers(1 << 16, torch.device("cpu")))
    assert contenders.keys() | absent.keys() == {"eager", "torch cast", "masks", "qtorch", "ml_dtypes"}
    agreeing = contenders.keys() - {"qtorch"}
    assert {name: contenders[name].differences() for name in agreeing} == dict.fromkeys(agreeing, 0)


def test_masks_round_to_nearest_ties_to_even() -> None:
    values = [E4M3.to_real(code) for code in range(E4M3.max_code + 1)]
    middles = [(low + high) / 2 for low, high in itertools.pairwise(values)]
    inputs = [*values, *middles, *(math.nextafter(x, 0.0) for x in middles), 1e30, math.inf]
    x = torch.tensor([*inputs, *(-x for x in inputs)])
    wanted = torch.tensor([E4M3.to_real(E4M3.to_bits(value)) for value in x.tolist()])
    torch.testing.assert_close(quantize.masks(x, E4M3), wanted, rtol=0, atol=0)
    assert quantize.masks(torch.tensor([torch.nan]), E4M3).isnan().all()


def test_contenders_take_one_turn_a_round_each_time_in_another_order() -> None:
    log: list[str] = []
    costs = {"A": itertools.count(0), "B": itertools.count(100), "C": itertools.count(200)}

    def clock(action: Callable[[], Any]) -> float:
        log.append(action())
        return next(costs[log[-1]])

    times = quantize.measure({name: lambda name=name: name for name in costs}, rounds=5, clock=clock)
    turns = ["".join(log[i : i + 3]) for i in range(0, len(log), 3)]
    assert len(turns) == quantize.WARM_UP + 5
    assert {"".join(sorted(turn)) for turn in turns} == {"ABC"}
    assert len(set(turns)) > 1
    assert times == {name: start + quantize.WARM_UP + 2 for name, start in {"A": 0, "B": 100, "C": 200}.items()}


@pytest.mark.parametrize(("device", "share"), [("cpu", None), ("cuda", {"E4M3": 0.5})])
def test_ratios_hold_ours_against_a_copy_and_others_against_ours(
    device: str, share: dict[str, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "engine", lambda kind: fused.Engine("compiled"))
    over_copy = {"quantize": 2.0, "fused": 3.0, "stochastic": 4.0, "decode": 1.0, "step": 0.5}
    over_ours = {"eager": 5.0, "masks": 30.0, "ml_dtypes": 15.0, "qtorch": None}
    times = {"copy_": 2.0, "torch cast": 3.0} | {f"E4M3 {job}": 2 * ratio for job, ratio in over_copy.items()}
    times |= {name: 4 * ratio for name, ratio in over_ours.items() if ratio}
    absent = {"qtorch": "not installed"}
    result = quantize.ratios(quantize.Measured(times, {"eager": 0}, absent, ["E4M3"], 8, 1, torch.device(device)))
    assert {job: result[f"{job}_over_copy"] for job in over_copy} == {
        job: {"E4M3": ratio} for job, ratio in over_copy.items()
    }
    assert {name: result[f"{name}_over_ours"] for name in over_ours} == over_ours
    assert (result["torch_cast_over_copy"], result["copy_ms"]) == (1.5, 2000.0)
    assert result.get("copy_bandwidth_share") == share


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "not installed"),
        ("raise RuntimeError('Ninja is required\\nto load it')", "cannot be imported: Ninja is required"),
        ("raise ImportError('no symbol')", "cannot be imported: no symbol"),
    ],
    ids=["absent", "does not build", "does not load"],
)
def test_a_library_that_is_not_to_be_had_is_named(
    source: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source:
        (tmp_path / "some_quantizer.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert quantize.library("some_quantizer") == reason


def test_formats_are_taken_by_name_and_e4m3_joins_them() -> None:
    assert [format.name for format in quantize.formats_of("E7M0,E2M5")] == ["E2M5", "E4M3", "E7M0"]
    with pytest.raises(argparse.ArgumentTypeError, match=r"E0M7, .*, got 'bf16'"):
        quantize.formats_of("E4M3,bf16")


def test_query_prints_its_figures() -> None:
    result = last_line("-m", "benchmarks.query", "--json", "--rows", "4000", "--trials", "40", "--rounds", "1")
    asked = {"rows", "matrix_s", "slowest_named_query_s", "pandas_over_ours", "bytes_per_step_row"}
    also = {"trials", "layer_rows", "matrix_by_metric_s", "named_query_s", "pandas_s", "pandas_trials_read"}
    times = {"consolidate_s", "consolidate_unchanged_s", "matrix_command_s"}
    assert result.keys() == asked | also | times | {"threads", "load_average"}
    assert (result["rows"], result["trials"], result["layer_rows"]) == (4000, 40, 4000)
    assert result["named_query_s"].keys() == NAMED.keys()
    assert result["slowest_named_query_s"] == max(result["named_query_s"].values())
    timed = [result[name] for name in (asked | times | {"matrix_by_metric_s", "pandas_s"})]
    assert all(math.isfinite(number) and number > 0 for value in timed for number in numbers({"": value}))


def test_a_synthetic_run_is_that_of_a_sweep_and_agrees_where_grids_do(tmp_path: Path) -> None:
    plan = synthetic_run.make(tmp_path / "run", trials=40, rows=4000)
    store = Store.open(tmp_path / "run")
    report = consolidate(store)
    assert (report.damaged, report.journal_lines_skipped) == ([], 0)
    assert ask(store, "SELECT DISTINCT status, reason, step FROM trials").to_pylist() == [
        {"status": "finished", "reason": "completed", "step": 100}
    ]
    assert set(ask(store, "@control")["unequal"].to_pylist()) == {0}
    pack = plan.packs[-1]
    (first, *_) = synthetic_run.write_result_json(tmp_path / "ray", pack)
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    rows = ask(
        store, f"SELECT step, loss, val_loss FROM steps WHERE key = '{pack.lanes[0].key}' ORDER BY step"
    ).to_pylist()
    assert [line["step"] for line in lines] == [row["step"] for row in rows] == [*range(1, 101)]
    assert [line["loss"] for line in lines] == pytest.approx([row["loss"] for row in rows])
    assert [line.get("val_loss") for line in lines] == [
        row["val_loss"] and pytest.approx(row["val_loss"]) for row in rows
    ]


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ([200 + 0.5 * ended for ended in range(100)], 0.5),
        ([200.0 for _ in range(100)], 0.0),
        ([200 + 10 * min(ended, 15) for ended in range(100)], 0.0),
        ([200 + 30 * (ended >= 50) for ended in range(100)], 0.0),
        ([200.0], 0.0),
    ],
    ids=["grows", "does not", "only at the start", "jumps once", "one look"],
)
def test_growth_is_the_slope_of_memory_over_trials(memory: list[float], expected: float) -> None:
    assert sweep.growth(list(enumerate(memory))) == pytest.approx(expected)
