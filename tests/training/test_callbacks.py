"""Observers: flips against a count by hand, and rank warnings against planted declines."""

import itertools
import json
import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import small
from torch import Tensor

from altgrad.quantization.formats import FORMAT_REGISTRY
from altgrad.training.callbacks import FlipObserver, RankAlarm, RankWatch
from altgrad.training.config import RankConfig
from altgrad.training.precision import Transition, WeightGrid
from altgrad.training.weights import Stack

CONFIG = RankConfig(interval=10, warmup_steps=20, alpha=0.5)
#: Matrix, further names, the share it may lose.
THRESHOLDS = [
    ("lm_head", (), 0.15),
    ("h.0.attn.c_proj", (), 0.15),
    ("h.3.mlp.c_proj", (), 0.15),
    ("wte", ("wte", "lm_head"), 0.15),
    ("wte", (), 0.30),
    ("h.0.attn.c_attn", (), 0.30),
    ("h.0.mlp.c_fc", (), 0.30),
]


def watch_of(matrix: str = "wte", names: tuple[str, ...] = (), config: RankConfig = CONFIG) -> RankWatch:
    return RankWatch(config, {matrix: names} if names else None)


def checks(
    watch: RankWatch, ratios: Sequence[float], matrix: str = "wte", first: int = 20
) -> Iterator[list[RankAlarm]]:
    """One check every ten steps; the control itself falls to a tenth on the way."""
    for i, ratio in enumerate(ratios):
        control = 100.0 * 0.1 ** (i / len(ratios))
        yield watch.check(first + 10 * i, {matrix: ratio * control}, {matrix: control})


@pytest.mark.parametrize(("matrix", "names", "threshold"), THRESHOLDS)
class TestDeclines:
    def test_heads_and_projections_may_lose_half_as_much(
        self, matrix: str, names: tuple[str, ...], threshold: float
    ) -> None:
        assert watch_of(matrix, names).threshold(matrix) == pytest.approx(threshold)

    @pytest.mark.parametrize("slope", [0.01, 0.03, 0.1])
    def test_a_decline_is_noticed_within_two_checks_of_crossing(
        self, slope: float, matrix: str, names: tuple[str, ...], threshold: float
    ) -> None:
        ratios = [1.0] * 5 + [1.0 - slope * i for i in range(1, round(0.6 / slope))]
        crossing = next(i for i, ratio in enumerate(ratios) if ratio < 1 - threshold - 1e-9)
        alarms = list(checks(watch_of(matrix, names), ratios, matrix))
        first = next(i for i, found in enumerate(alarms) if found)
        assert crossing <= first <= crossing + 2
        assert all(alarms[first:])
        (alarm,) = alarms[first]
        assert (alarm.matrix, alarm.threshold) == (matrix, pytest.approx(threshold))
        assert alarm.value == pytest.approx(ratios[first] * alarm.reference)
        assert alarm.message.startswith(f"{matrix}: effective rank")
        assert f"at step {20 + 10 * first}, the control has" in alarm.message

    def test_a_loss_just_within_the_threshold_is_none(
        self, matrix: str, names: tuple[str, ...], threshold: float
    ) -> None:
        assert not any(checks(watch_of(matrix, names), [1 - threshold + 0.005] * 100, matrix))


class TestRankWatch:
    @given(ratios=st.lists(st.floats(0.96, 1.04), max_size=60))
    def test_healthy_ratios_give_nothing_even_to_critical_matrices(self, ratios: list[float]) -> None:
        assert not any(checks(watch_of("lm_head"), ratios, "lm_head"))

    def test_one_bad_check_is_smoothed_away(self) -> None:
        assert not any(checks(watch_of(), [1.0, 1.0, 0.45, 1.0, 1.0]))

    def test_nothing_is_decided_or_remembered_before_the_warm_up(self) -> None:
        watch = watch_of()
        assert not any(checks(watch, [0.01, 0.01], first=0))
        assert not any(checks(watch, [1.0] * 5))

    @pytest.mark.parametrize(
        ("rank", "control"),
        [
            ({"wte": math.nan}, {"wte": 10.0}),
            ({"wte": math.inf}, {"wte": 10.0}),
            ({"wte": 1.0}, {"wte": math.nan}),
            ({"wte": 1.0}, {"wte": 0.0}),
            ({"wte": 1.0}, {"wpe": 10.0}),
            ({}, {"wte": 10.0}),
        ],
        ids=str,
    )
    def test_undefined_ranks_decide_nothing(self, rank: dict, control: dict) -> None:
        watch = watch_of()
        assert not any(checks(watch, [1.0, 0.8]))
        before = watch.state()
        for step in range(100, 200, 10):
            assert watch.check(step, rank, control) == []
        assert watch.state() == before

    def test_only_the_sick_matrix_is_named(self) -> None:
        ranks, control = {"wte": 10.0, "wpe": 1.0, "h.0.mlp.c_fc": 9.0}, dict.fromkeys(("wte", "wpe"), 10.0)
        found = watch_of().check(20, ranks, control | {"h.0.mlp.c_fc": 10.0})
        assert [alarm.matrix for alarm in found] == ["wpe"]

    def test_against_its_own_start_the_first_check_is_the_reference(self) -> None:
        watch = watch_of()
        assert watch.check(10, {"wte": 500.0}) == []
        alarms = [watch.check(20 + 10 * i, {"wte": 40.0 * ratio}) for i, ratio in enumerate([1.0, 0.9, 0.6, 0.5])]
        assert [bool(found) for found in alarms] == [False, False, False, True]
        assert (alarms[3][0].reference, alarms[3][0].value) == (40.0, 20.0)
        assert "its start has 40" in alarms[3][0].message

    @pytest.mark.parametrize("own_start", [False, True])
    @given(ratios=st.lists(st.one_of(st.floats(0.2, 1.2), st.just(math.nan)), max_size=20), cut=st.integers(0, 20))
    def test_a_restored_watch_goes_on_as_if_never_stopped(self, own_start: bool, ratios: list[float], cut: int) -> None:
        def check(watch: RankWatch, i: int) -> list[RankAlarm]:
            ranks = {"wte": 50 * ratios[i], "lm_head": 20 * ratios[-i]}
            return watch.check(20 + 10 * i, ranks, None if own_start else {"wte": 50.0, "lm_head": 20.0})

        whole, stopped, resumed = watch_of(), watch_of(), watch_of()
        expected = [check(whole, i) for i in range(len(ratios))]
        found = [check(stopped, i) for i in range(min(cut, len(ratios)))]
        resumed.restore(json.loads(json.dumps(stopped.state())))
        found += [check(resumed, i) for i in range(cut, len(ratios))]
        assert repr(found) == repr(expected)
        assert repr(resumed.state() if cut < len(ratios) else stopped.state()) == repr(whole.state())


def stack_and_grid(format: str = "E4M3", lanes: int = 1) -> tuple[Stack, WeightGrid]:
    configs = [small(format=format) for _ in range(lanes)]
    stack = Stack(["w"], {"w": torch.ones(lanes, 1, 1)}, torch.device("cpu"))
    return stack, WeightGrid(stack, [FORMAT_REGISTRY[format]] * lanes, [0], configs)


def rungs(value: int) -> Tensor:
    return torch.tensor([[[[value]]]], dtype=torch.int8)


@pytest.mark.parametrize(
    ("path", "reversals"),
    [
        ([0, 1, 2, 3], [0, 0, 0]),
        ([0, 1, 0, 1], [0, 1, 1]),
        ([0, 1, 1, 1, 0], [0, 0, 0, 1]),
        ([5, 3, 3, 9, 8], [0, 0, 1, 1]),
        ([0, -1, -1, -2], [0, 0, 0]),
    ],
    ids=str,
)
def test_an_oscillation_is_a_flip_against_the_last_flip_however_long_ago(path: list[int], reversals: list[int]) -> None:
    """The definition of arXiv 2203.11086, section 2.2."""
    stack, grid = stack_and_grid()
    observer = FlipObserver(stack, grid)
    found = []
    for old, new in itertools.pairwise(path):
        t = Transition(rungs(old), rungs(new), rungs(new).float(), torch.ones(1, 1))
        found.append(observer.observe(t, torch.ones(1, 1, 1, 1))["oscillations"].item())
        observer.turn()
    assert found == reversals


def test_momentum_alone_can_flip_but_only_flips_of_updated_weights_count_against_a_stall() -> None:
    configs = [small()]
    stack = Stack(["w"], {"w": torch.ones(1, 1, 4)}, torch.device("cpu"))
    observer = FlipObserver(stack, WeightGrid(stack, [FORMAT_REGISTRY["E4M3"]], [0], configs))
    before, after = (torch.tensor([[[row]]], dtype=torch.int8) for row in ([1, 2, 3, 4], [2, 5, 3, 5]))
    gradient = torch.tensor([[[[0.0, 0.0, 1.0, -1.0]]]])
    row = observer.observe(Transition(before, after, after.float(), torch.ones(1, 1)), gradient)
    found = {name: row[name].item() for name in ("updates", "flips", "stall_ratio", "rung_distance")}
    assert found == {"updates": 2, "flips": 3, "stall_ratio": 0.5, "rung_distance": 5 / 3}


def test_a_rescaled_code_is_no_flip_and_turns_no_direction() -> None:
    stack, grid = stack_and_grid()
    observer, found = FlipObserver(stack, grid), []
    for before, after in ((8, 9), (1, 2), (2, 2), (10, 9)):
        t = Transition(rungs(before), rungs(after), rungs(after).float(), torch.ones(1, 1))
        row = observer.observe(t, torch.ones(1, 1, 1, 1))
        observer.turn()
        found.append(tuple(row[name].item() for name in ("flips", "oscillations")))
    assert found == [(1, 0), (1, 0), (0, 0), (1, 1)]


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_weights_that_are_no_numbers_have_no_counts(lost: float) -> None:
    stack, grid = stack_and_grid(lanes=2)
    observer = FlipObserver(stack, grid)
    for step in (1, 2):
        stack.stored[:, 0] = lost
        stack.stored[:, 1] *= 1.5
        grid.begin(step)
        transition = grid.round(stack)
        row = observer.observe(transition, torch.ones_like(stack.stored))
        grid.rescale(stack)
        for name in row:
            assert math.isnan(row[name][0, 0].item()), name
            assert math.isfinite(row[name][0, 1].item()), name
