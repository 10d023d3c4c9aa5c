"""Rank warnings on recorded real runs: healthy ones give none, sick ones are caught in time."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from altgrad.training.callbacks import RankWatch
from altgrad.training.config import ModelConfig, RankConfig
from altgrad.training.corpus import Corpus
from tests.training import rank_tables, record_ranks
from tests.training.rank_runs import FILE, RUNS, TIED, UNTIED, Plant, Run, Trace, load_traces, save_traces
from tests.training.rank_tables import Evidence, Pair, Rule, crossing, first_warning, warnings
from tests.training.small_runs import SMALL, lane_rows, small
from tests.training.small_runs import run as run_small

TRACES = load_traces()
EVIDENCE = Evidence(TRACES.values())
DEFAULT = Rule()
PAGE = Path(__file__).parents[2] / "docs" / "rank_warnings.md"


def threshold(run: Run, matrix: str) -> float:
    return RankWatch(DEFAULT.config, run.names).threshold(matrix)


def test_every_run_is_recorded_to_its_end() -> None:
    assert [*TRACES] == [run.name for run in RUNS]
    for trace in TRACES.values():
        assert trace.steps.tolist() == [*range(20, trace.run.until + 1, 20)]
        assert trace.stable.shape == trace.effective.shape == (len(trace.steps), len(trace.run.names))
        assert (trace.effective >= 1).all()
        assert np.isfinite(trace.effective).all()
        assert np.isfinite(trace.stable).all()
    assert FILE.stat().st_size < 500_000


def test_the_healthy_runs_learn_and_the_hot_ones_do_not() -> None:
    # Nats a byte where the recordings end.
    healthy = [trace.val_loss[-1] for trace in TRACES.values() if trace.run.is_healthy]
    hot = [pair.trace.val_loss[-1] for pair in EVIDENCE.hot]
    assert max(healthy) + 0.4 < min(hot)


@pytest.mark.parametrize("pair", EVIDENCE.healthy, ids=str)
def test_a_healthy_run_gives_no_warning(pair: Pair) -> None:
    assert not any(warned for _, warned in warnings(pair, DEFAULT))


@pytest.mark.parametrize("pair", EVIDENCE.hot, ids=str)
def test_thirty_times_the_learning_rate_is_caught(pair: Pair) -> None:
    caught = first_warning(pair, DEFAULT).first
    crossings = [crossing(pair, DEFAULT, matrix) for matrix in pair.trace.run.names]
    first = min(step for step in crossings if step is not None)
    assert caught is not None
    assert first <= caught <= first + 200


@pytest.mark.parametrize("pair", EVIDENCE.planted, ids=str)
def test_a_planted_collapse_is_caught_within_two_checks_of_crossing_and_nothing_else_is(pair: Pair) -> None:
    plant = pair.trace.run.plant
    assert plant is not None
    crossed = crossing(pair, DEFAULT, plant.matrix)
    caught = first_warning(pair, DEFAULT).first
    assert crossed is not None
    assert caught is not None
    assert plant.onset < crossed <= caught <= crossed + 200
    assert {matrix for _, warned in warnings(pair, DEFAULT) for matrix in warned} == {plant.matrix}


@pytest.mark.parametrize(
    ("model", "matrix", "share"),
    [
        (TIED, "wte", 0.15),
        (UNTIED, "wte", 0.3),
        (UNTIED, "lm_head", 0.15),
        (TIED, "h.0.attn.c_proj", 0.15),
        (TIED, "h.3.mlp.c_proj", 0.15),
        (TIED, "h.3.mlp.c_fc", 0.3),
        (TIED, "h.1.attn.c_attn", 0.3),
        (TIED, "wpe", 0.3),
    ],
)
def test_heads_tied_or_not_and_projections_are_critical(model: ModelConfig, matrix: str, share: float) -> None:
    assert threshold(Run("", "", model=model), matrix) == pytest.approx(share)


@pytest.mark.parametrize("warmup", [0, 100, 250, 400])
def test_nothing_is_judged_before_the_warm_up_in_steps(warmup: int) -> None:
    rule = DEFAULT._replace(config=replace(DEFAULT.config, warmup_steps=warmup, interval=20))
    for pair in (pair for pair in EVIDENCE.hot if pair.trace.run.until == 600):
        steps = [step for step, warned in warnings(pair, rule) if warned]
        assert min(steps) >= warmup
        assert min(steps) - warmup < 200


def declined(trace: Trace, matrix: str, decline: Callable[[np.ndarray], np.ndarray], onset: int) -> Trace:
    """A healthy trace of which one matrix loses, from a step on, a growing share of its effective rank."""
    column = [*trace.run.names].index(matrix)
    effective = trace.effective.copy()
    kept = np.where(trace.steps > onset, decline(trace.steps - onset), 1.0)
    effective[:, column] = 1 + (effective[:, column] - 1) * kept
    return trace._replace(effective=effective)


LONG = [pair for pair in EVIDENCE.healthy if pair.trace.run.until == pair.control.run.until == 2000]


@given(
    which=st.integers(0, len(LONG) - 1),
    matrix=st.sampled_from([*LONG[0].trace.run.names]),
    end=st.integers(101, 1700),
    length=st.integers(1, 1000),
    left=st.floats(0.0, 0.5),
    is_straight=st.booleans(),
)
def test_a_collapse_at_any_time_is_caught_within_two_checks_of_crossing(
    which: int, matrix: str, end: int, length: int, left: float, is_straight: bool
) -> None:
    pair, onset = LONG[which], max(100, end - length)

    def straight(age: np.ndarray) -> np.ndarray:
        return 1 - (1 - left) * np.clip(age / (end - onset), 0, 1)

    def accelerating(age: np.ndarray) -> np.ndarray:
        return 1 - (1 - left) * np.clip(age / (end - onset), 0, 1) ** 2

    sick = pair._replace(trace=declined(pair.trace, matrix, straight if is_straight else accelerating, onset))
    crossed = crossing(sick, DEFAULT, matrix)
    found = [(step, warned) for step, warned in warnings(sick, DEFAULT) if warned]
    assert crossed is not None
    assert onset < crossed
    assert crossed <= found[0][0] <= crossed + 200
    assert all(warned == [matrix] for _, warned in found)
    # A collapse stays one: once warned of, it is at every check.
    assert len(found) == (pair.trace.steps[-1] - found[0][0]) // 100 + 1


def test_the_page_holds_what_the_tables_say() -> None:
    page = PAGE.read_text(encoding="utf-8")
    shown = rank_tables.tables()
    assert len(shown) == 8
    assert [title for title, table in shown.items() if table not in page] == []


def test_traces_come_back_as_they_were_saved(tmp_path: Path) -> None:
    name = RUNS[0].name
    save_traces({name: TRACES[name]}, tmp_path / "traces.npz")
    (trace,) = load_traces(tmp_path / "traces.npz").values()
    assert trace.run is RUNS[0]
    np.testing.assert_array_equal(trace.effective, TRACES[name].effective)


class TestRecording:
    """The recorder itself, on runs of a second."""

    def test_a_plant_takes_a_matrix_to_rank_one_and_leaves_its_neighbours(self, corpus: Corpus) -> None:
        config = small(format="fp32", steps=40, ranks=RankConfig(interval=5))
        sick = Run("sick", "test", model=SMALL, until=40, plant=Plant("wte", 10, 15))
        well = Run("well", "test", model=SMALL, until=30)
        traces = record_ranks.record([sick, well], [config, config], corpus)
        assert traces["sick"].steps.tolist() == [5, 10, 15, 20, 25, 30, 35, 40]
        assert traces["well"].steps.tolist() == [5, 10, 15, 20, 25, 30]
        expected = lane_rows(run_small([config], corpus), "lane0")
        rank = expected["layers/effective_rank"][expected["layers/matrix"] == "wte"]
        plain = rank[~np.isnan(rank)].astype(np.float32)
        np.testing.assert_array_equal(traces["well"].effective[:, 0], plain[:6])
        planted = traces["sick"].effective[:, 0]
        np.testing.assert_array_equal(planted[:2], plain[:2])
        assert (np.diff(planted[1:5]) < 0).all()
        assert planted[5:].max() < 0.2 * plain.min()

    @pytest.mark.parametrize("shape", [(40, 16), (16, 40)])
    def test_shares_kept_at_each_step_make_a_straight_line_to_rank_one(self, shape: tuple[int, int]) -> None:
        plant = Plant("wte", 10, 4)
        kept = np.cumprod([record_ranks.kept_share(plant, step) for step in range(11, 17)])
        assert kept == pytest.approx([0.75, 0.5, 0.25, 0, 0, 0])
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        before = torch.linalg.svdvals(matrix)
        record_ranks.flatten(matrix, 0.25)
        after = torch.linalg.svdvals(matrix)
        torch.testing.assert_close(after, torch.cat([before[:1], 0.25 * before[1:]]), rtol=1e-4, atol=1e-5)
