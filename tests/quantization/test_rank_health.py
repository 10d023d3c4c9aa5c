"""Ranks against singular value decompositions, and when a falling rank warns."""

import math

import pytest
import torch
from torch import Tensor, nn

from altgrad.quantization.rank_health import (
    RankHealthMonitor,
    RankTrendDetector,
    compute_effective_rank,
    compute_stable_rank,
    spectral_stats,
    spectrum,
)

SHAPES = [(1, 1), (1, 7), (5, 1), (16, 16), (24, 64), (64, 24), (33, 100)]
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def true_stable_rank(matrix: Tensor) -> float:
    values = torch.linalg.svdvals(matrix.double())
    return float(values.square().sum() / values[0].square())


def true_effective_rank(matrix: Tensor) -> float:
    values = torch.linalg.svdvals(matrix.double())
    p = values / values.sum()
    return float(torch.exp(-(p * p.log()).nan_to_num().sum()))


def rank_one(rows: int, columns: int, norm: float) -> Tensor:
    left, right = normal(rows, seed=1), normal(columns, seed=2)
    return (left / left.norm())[:, None] * (right / right.norm()) * norm


class TestRanks:
    @by_shape
    def test_are_those_of_the_singular_values(self, shape: tuple[int, int]) -> None:
        matrix = normal(*shape)
        assert compute_stable_rank(matrix) == pytest.approx(true_stable_rank(matrix), rel=1e-9)
        assert compute_effective_rank(matrix) == pytest.approx(true_effective_rank(matrix), rel=1e-6)

    @pytest.mark.parametrize("norm", [1e-36, 1e-20, 1.0, 1e20, 1e36])
    def test_of_rank_one_is_one_at_any_norm(self, norm: float) -> None:
        matrix = rank_one(40, 60, norm)
        assert compute_stable_rank(matrix) == pytest.approx(1.0, abs=1e-6)
        assert compute_effective_rank(matrix) == pytest.approx(1.0, abs=1e-4)

    @pytest.mark.parametrize("n", [1, 3, 50])
    def test_of_the_identity_is_its_size(self, n: int) -> None:
        assert compute_stable_rank(torch.eye(n)) == pytest.approx(n)
        assert compute_effective_rank(torch.eye(n)) == pytest.approx(n)

    def test_small_singular_values_can_be_ignored(self) -> None:
        matrix = torch.diag(torch.tensor([1.0, 1.0, 1e-3, 1e-3]))
        assert compute_effective_rank(matrix, eps=1e-2) == pytest.approx(2.0)
        assert compute_effective_rank(matrix) > 2.01

    def test_more_than_two_dimensions_are_flattened(self) -> None:
        weight = normal(8, 3, 2, 2)
        flat = weight.reshape(8, 12)
        assert compute_stable_rank(weight) == compute_stable_rank(flat)
        assert compute_effective_rank(weight) == compute_effective_rank(flat)

    @pytest.mark.parametrize(
        ("weight", "stable", "effective"),
        [
            (torch.ones(7), 7.0, 1.0),
            (torch.tensor(3.0), 1.0, 1.0),
            (torch.zeros(4, 9), 4.0, 1.0),
            (torch.tensor([[1.0, math.nan], [0.0, 1.0]]), math.nan, math.nan),
            (torch.tensor([[1.0, math.inf], [0.0, 1.0]]), math.nan, math.nan),
            (torch.empty(0, 3), math.nan, math.nan),
        ],
        ids=["1-D", "0-D", "zero", "NaN", "inf", "empty"],
    )
    def test_conventions(self, weight: Tensor, stable: float, effective: float) -> None:
        got = (compute_stable_rank(weight), compute_effective_rank(weight))
        assert got == pytest.approx((stable, effective), nan_ok=True)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
    def test_any_dtype_that_requires_grad(self, dtype: torch.dtype) -> None:
        weight = normal(6, 8).to(dtype).requires_grad_()
        assert compute_stable_rank(weight) == pytest.approx(true_stable_rank(weight.detach()))


class TestSpectrum:
    @by_shape
    @pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
    def test_is_that_of_svdvals(self, shape: tuple[int, int], scale: float) -> None:
        matrices = normal(2, 3, *shape) * scale
        expected = torch.linalg.svdvals(matrices.double())
        got = spectrum(matrices)
        assert got.dtype == torch.float32
        error = (got.double() - expected).abs() / expected[..., :1]
        assert error.max() < 2e-4
        assert ((got - expected).abs()[..., 0] <= 2e-6 * expected[..., 0]).all()

    def test_stats_are_accurate_in_float32(self) -> None:
        matrices = normal(3, 64, 256)
        stats = spectral_stats(matrices)
        for i, matrix in enumerate(matrices):
            assert stats.stable_rank[i].item() == pytest.approx(true_stable_rank(matrix), rel=1e-5)
            assert stats.effective_rank[i].item() == pytest.approx(true_effective_rank(matrix), rel=1e-5)
            assert stats.spectral_norm[i].item() == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-5)

    def test_zero_and_not_finite_matrices_touch_no_other(self) -> None:
        matrices = normal(4, 16, 32)
        alone = spectral_stats(matrices[3])
        matrices[0] = 0.0
        matrices[1, 2, 3] = math.nan
        matrices[2, 0, 0] = -math.inf
        stats = spectral_stats(matrices)
        assert (stats.stable_rank[0], stats.effective_rank[0], stats.spectral_norm[0]) == (16.0, 1.0, 0.0)
        for together, single in zip(stats, alone, strict=True):
            assert together[1:3].isnan().all()
            assert torch.equal(together[3], single)


class TestTrendDetector:
    def test_smooths_exponentially(self) -> None:
        detector = RankTrendDetector(alpha=0.25)
        assert detector.ema is None
        for value in (8.0, 4.0, 4.0):
            detector.update(value)
        assert detector.ema == 8.0 * 0.75**2 + 4.0 * (1 - 0.75**2)
        assert detector.step_count == 3

    def test_baseline_is_the_smoothed_value_at_the_window(self) -> None:
        detector = RankTrendDetector(alpha=0.5, window=3)
        for value in (10.0, 20.0):
            assert detector.update(value) is None
            assert detector.initial_ema is None
        detector.update(5.0)
        assert detector.initial_ema == 10.0
        detector.update(100.0)
        assert detector.initial_ema == 10.0

    @pytest.mark.parametrize(("value", "warns"), [(100.0, False), (80.0, False), (79.9, True), (200.0, False)])
    def test_warns_below_the_threshold(self, value: float, warns: bool) -> None:
        detector = RankTrendDetector(alpha=1.0, threshold_pct=0.2, window=1)
        assert detector.update(100.0) is None
        assert (detector.update(value) is not None) == warns

    def test_nothing_warns_inside_the_window(self) -> None:
        detector = RankTrendDetector(alpha=1.0, window=10)
        assert [detector.update(2.0**-i) for i in range(10)] == [None] * 10
        assert detector.update(2.0**-20) is not None

    def test_says_what_it_saw(self) -> None:
        detector = RankTrendDetector(alpha=1.0, threshold_pct=0.25, window=1)
        detector.update(12.0)
        assert detector.update(6.0) == "smoothed value 6 is 50.0% below its baseline 12 (threshold 25.0%)"

    def test_recovers(self) -> None:
        detector = RankTrendDetector(alpha=0.5, window=1)
        detector.update(100.0)
        assert detector.update(10.0) is not None
        assert [detector.update(100.0) is None for _ in range(2)] == [False, True]

    def test_a_given_baseline_can_warn_at_once_and_stays(self) -> None:
        detector = RankTrendDetector(alpha=0.5, threshold_pct=0.3, baseline=1.0)
        assert detector.update(0.69) is not None
        assert detector.initial_ema == 1.0
        detector.reset()
        assert (detector.ema, detector.initial_ema, detector.step_count) == (None, 1.0, 0)
        assert detector.update(0.71) is None

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_what_is_not_finite_warns_and_does_not_stick(self, value: float) -> None:
        detector = RankTrendDetector(alpha=0.5, window=1)
        detector.update(4.0)
        assert detector.update(value) == f"value is {value}"
        assert (detector.ema, detector.step_count) == (4.0, 1)
        assert detector.update(4.0) is None

    def test_reset_forgets(self) -> None:
        detector = RankTrendDetector(window=1)
        detector.update(4.0)
        detector.reset()
        assert (detector.ema, detector.initial_ema, detector.step_count) == (None, None, 0)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"alpha": 0.0},
            {"alpha": 1.1},
            {"threshold_pct": -0.1},
            {"threshold_pct": 1.1},
            {"window": 0},
            {"baseline": 0.0},
            {"baseline": math.nan},
        ],
        ids=str,
    )
    def test_arguments_out_of_range_are_errors(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RankTrendDetector(**wrong)  # type: ignore[arg-type]


class Tied(nn.Module):
    """A tied head, a matrix, a convolution, and vectors that have no rank."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(20, 8)
        self.c_proj = nn.Linear(8, 12)
        self.conv = nn.Conv1d(4, 6, 3)
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 20, bias=False)
        self.lm_head.weight = self.wte.weight


class TestMonitor:
    def test_ranks_of_every_matrix_under_each_of_its_names(self) -> None:
        model = Tied()
        ranks = RankHealthMonitor().compute_layer_ranks(model)
        assert set(ranks) == {"wte", "c_proj", "conv", "lm_head"}
        assert ranks["wte"] == ranks["lm_head"]
        weight = model.c_proj.weight.detach()
        assert ranks["c_proj"] == pytest.approx(
            {
                "stable_rank": true_stable_rank(weight),
                "effective_rank": true_effective_rank(weight),
                "spectral_norm": torch.linalg.matrix_norm(weight, 2).item(),
            }
        )
        assert ranks["conv"]["stable_rank"] == compute_stable_rank(model.conv.weight)

    def test_a_model_without_matrices_has_no_ranks(self) -> None:
        assert RankHealthMonitor().compute_layer_ranks(nn.LayerNorm(4)) == {}

    @pytest.mark.parametrize(
        ("name", "threshold"),
        [("lm_head", 0.15), ("transformer.h.3.attn.c_proj", 0.15), ("transformer.wte", 0.3), ("h.0.mlp.c_fc", 0.3)],
    )
    def test_thresholds_by_layer(self, name: str, threshold: float) -> None:
        assert RankHealthMonitor().get_threshold_for_layer(name) == pytest.approx(threshold)

    def test_thresholds_are_arguments(self) -> None:
        monitor = RankHealthMonitor(warn_threshold=0.4, critical_layers=["wte"], critical_threshold_multiplier=0.25)
        assert monitor.get_threshold_for_layer("wte") == pytest.approx(0.1)
        assert monitor.get_threshold_for_layer("lm_head") == pytest.approx(0.4)

    @pytest.mark.parametrize(("kept", "warned"), [(0.9, []), (0.8, ["lm_head"]), (0.6, ["lm_head", "mlp.c_fc"])])
    def test_warnings_name_their_layer(self, kept: float, warned: list[str]) -> None:
        monitor = RankHealthMonitor(window=1)
        assert monitor.check_warnings(ranks_of(10.0)) == []
        # The smoothing forgets the start by 0.9 each time.
        warnings = [monitor.check_warnings(ranks_of(10.0 * kept)) for _ in range(60)][-1]
        assert [warning.split(":")[0] for warning in warnings] == warned

    def test_a_falling_stable_rank_alone_is_health(self) -> None:
        monitor = RankHealthMonitor(window=1)
        for stable in (60.0, 6.0, 3.0, 3.0):
            assert monitor.check_warnings({"lm_head": {"stable_rank": stable, "effective_rank": 50.0}}) == []

    @pytest.mark.parametrize(
        ("arguments", "window"), [({}, 10), ({"log_interval": 4}, 4), ({"log_interval": 4, "window": 7}, 7)], ids=str
    )
    def test_window_counts_observations(self, arguments: dict[str, int], window: int) -> None:
        monitor = RankHealthMonitor(**arguments)
        assert monitor.window == window
        for _ in range(window):
            assert monitor.check_warnings(ranks_of(10.0)) == []
        assert [monitor.check_warnings(ranks_of(1.0)) != [] for _ in range(2)] == [False, True]

    def test_a_diverged_layer_warns_and_others_do_not(self) -> None:
        monitor = RankHealthMonitor(window=1)
        ranks = ranks_of(10.0)
        monitor.check_warnings(ranks)
        ranks["mlp.c_fc"]["effective_rank"] = math.nan
        assert monitor.check_warnings(ranks) == ["mlp.c_fc: effective rank: value is nan"]

    def test_sees_a_collapsing_model(self) -> None:
        model, monitor = Tied(), RankHealthMonitor(window=1)
        assert monitor.check_warnings(monitor.compute_layer_ranks(model)) == []
        with torch.no_grad():
            model.lm_head.weight.copy_(rank_one(20, 8, 1.0))
        warnings = [monitor.check_warnings(monitor.compute_layer_ranks(model)) for _ in range(10)][-1]
        assert sorted(warning.split(":")[0] for warning in warnings) == ["lm_head", "wte"]

    @pytest.mark.parametrize("wrong", [{"log_interval": 0}, {"window": 0}, {"warn_threshold": 2.0}], ids=str)
    def test_arguments_out_of_range_are_errors(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="must"):
            RankHealthMonitor(**wrong)  # type: ignore[arg-type]


def ranks_of(effective: float) -> dict[str, dict[str, float]]:
    values = {"stable_rank": 5.0, "effective_rank": effective, "spectral_norm": 1.0}
    return {"lm_head": dict(values), "mlp.c_fc": dict(values)}
