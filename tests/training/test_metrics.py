"""From a step's counts to rows: what is summed, what is averaged, what stays undefined."""

import math

import numpy as np
import pytest
import torch
from small_runs import run, small
from torch import nn

from altgrad.quantization.rank_health import compute_effective_rank, compute_stable_rank
from altgrad.training.corpus import Corpus
from altgrad.training.metrics import Recorder, compute_rank_stats, pooled
from orchestrator.results.schema import SCHEMAS

NAN = math.nan
#: Three matrices of one lane; the second has no codes, and the third nothing that flipped.
LAYERS = {
    "updates": [100.0, NAN, 50.0],
    "flips": [10.0, NAN, 0.0],
    "rescale_flips": [3.0, NAN, 4.0],
    "oscillations": [1.0, NAN, 0.0],
    "stall_ratio": [0.9, NAN, 1.0],
    "rung_distance": [1.5, NAN, NAN],
    "weight_saturated": [0.1, NAN, 0.4],
    "weight_underflowed": [0.0, NAN, 0.5],
    "activation_saturated": [0.2, 0.4, NAN],
    "activation_underflowed": [NAN, NAN, NAN],
    "gradient_saturated": [NAN, NAN, NAN],
    "gradient_underflowed": [NAN, 0.25, NAN],
    "stable_rank": [2.0, 4.0, 3.0],
    "effective_rank": [NAN, NAN, NAN],
}
POOLED = {
    "updates": 150.0,
    "flips": 10.0,
    "rescale_flips": 7.0,
    "oscillations": 1.0,
    "stall_ratio": (90 + 50) / 150,
    "rung_distance": 1.5,
    "weight_saturated": (0.1 * 200 + 0.4 * 600) / 800,
    "weight_underflowed": 0.5 * 600 / 800,
    "activation_saturated": 0.3,
    "activation_underflowed": NAN,
    "gradient_saturated": NAN,
    "gradient_underflowed": 0.25,
    "stable_rank_mean": 3.0,
    "stable_rank_min": 2.0,
    "effective_rank_mean": NAN,
    "effective_rank_min": NAN,
}
ELEMENTS = torch.tensor([200.0, 9000.0, 600.0], dtype=torch.float64)


def columns(changes: dict[str, list[float]] | None = None) -> dict[str, torch.Tensor]:
    layers = LAYERS | (changes or {})
    return {name: torch.tensor([values], dtype=torch.float64) for name, values in layers.items()}


class TestPooled:
    def test_undefined_matrices_are_left_out(self) -> None:
        row = pooled(columns(), ELEMENTS)
        assert row.keys() == POOLED.keys()
        for name, value in POOLED.items():
            np.testing.assert_allclose(row[name].item(), value, rtol=1e-12, err_msg=name)

    @pytest.mark.parametrize(
        ("changes", "column", "expected"),
        [
            ({"updates": [0.0, NAN, 0.0], "stall_ratio": [0.0, NAN, 0.0]}, "stall_ratio", 0.0),
            ({"updates": [NAN] * 3, "stall_ratio": [NAN] * 3}, "stall_ratio", NAN),
            ({"flips": [0.0, NAN, 0.0], "rung_distance": [NAN] * 3}, "rung_distance", NAN),
            ({"flips": [NAN] * 3}, "flips", NAN),
            ({"weight_saturated": [NAN] * 3}, "weight_saturated", NAN),
            ({"flips": [10.0, NAN, 30.0], "rung_distance": [1.0, NAN, 2.0]}, "rung_distance", 1.75),
            ({"stable_rank": [2.0, NAN, 3.0]}, "stable_rank_mean", NAN),
            ({"stable_rank": [2.0, NAN, 3.0]}, "stable_rank_min", NAN),
        ],
    )
    def test_what_nothing_defines_stays_undefined(self, changes: dict, column: str, expected: float) -> None:
        np.testing.assert_allclose(pooled(columns(changes), ELEMENTS)[column].item(), expected)

    def test_lanes_do_not_touch(self) -> None:
        other = columns({"flips": [1.0, 2.0, 3.0], "stall_ratio": [0.5, 0.5, 0.5], "updates": [2.0, 4.0, 6.0]})
        both = pooled({name: torch.cat([values, other[name]]) for name, values in columns().items()}, ELEMENTS)
        for i, alone in enumerate((pooled(columns(), ELEMENTS), pooled(other, ELEMENTS))):
            for name, values in both.items():
                np.testing.assert_array_equal(values[i].item(), alone[name].item(), err_msg=name)


class TestRecorder:
    @pytest.mark.parametrize("table", ["steps", "layers"])
    @pytest.mark.parametrize("format", ["E4M3", "fp32"])
    def test_columns_are_the_schemas(self, table: str, format: str, corpus: Corpus) -> None:
        """``pack`` and ``attempt`` are the writer's."""
        rows = getattr(run([small(format=format, steps=1)], corpus)[0], table)
        assert set(rows) == set(SCHEMAS[table].names) - {"pack", "attempt"}
        assert len({len(column) for column in rows.values()}) == 1

    def test_rows_stand_in_the_order_of_step_matrix_and_lane(self) -> None:
        recorder = Recorder(
            ["a", "b"], ["w", "v"], [["E4M3", "E5M2"], ["bf16", "fp32"]], torch.tensor([6.0, 8.0]).double()
        )
        for step in (3, 4):
            cell = torch.tensor([[10.0, 11.0], [20.0, 21.0]], dtype=torch.float64) + 100 * step
            layers = dict.fromkeys(LAYERS, cell)
            recorder.add(step, {"loss": torch.tensor([step + 0.25, step + 0.5])}, layers)
        rows = recorder.rows({"val_loss": torch.tensor([1.0, 2.0])})
        assert list(zip(rows.steps["step"], rows.steps["key"], rows.steps["loss"], strict=True)) == [
            (3, "a", 3.25),
            (3, "b", 3.5),
            (4, "a", 4.25),
            (4, "b", 4.5),
        ]
        np.testing.assert_array_equal(rows.steps["val_loss"], [NAN, NAN, 1.0, 2.0])
        names = ("step", "matrix", "key", "format", "elements", "flips")
        assert list(zip(*(rows.layers[name] for name in names), strict=True))[4:] == [
            (4, "w", "a", "E4M3", 6, 410.0),
            (4, "w", "b", "E5M2", 6, 411.0),
            (4, "v", "a", "bf16", 8, 420.0),
            (4, "v", "b", "fp32", 8, 421.0),
        ]

    def test_rows_are_given_once(self, corpus: Corpus) -> None:
        recorder = Recorder(["a"], ["w"], [["E4M3"]], torch.ones(1).double())
        assert recorder.rows({"val_loss": torch.ones(1)}).steps == {}
        recorder.add(1, {}, {name: torch.ones(1, 1).double() for name in LAYERS})
        assert len(recorder.rows({}).steps["step"]) == 1
        assert recorder.rows({}).layers == {}


class TestRankStats:
    def test_every_matrix_of_any_model(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 5), nn.LayerNorm(5), nn.Conv1d(5, 4, 3))
        stats = compute_rank_stats(model)
        weights = {"0": model[0].weight, "2": model[2].weight}
        for kind, rank in (("stable_rank", compute_stable_rank), ("effective_rank", compute_effective_rank)):
            expected = {name: rank(weight) for name, weight in weights.items()}
            for name, value in expected.items():
                assert stats.pop(f"{kind}/{name}") == pytest.approx(value)
            assert stats.pop(f"{kind}/mean") == pytest.approx(sum(expected.values()) / 2)
            assert stats.pop(f"{kind}/min") == pytest.approx(min(expected.values()))
        assert stats == {}

    def test_a_tied_head_is_known_under_both_names(self) -> None:
        model = nn.ModuleDict({"wte": nn.Embedding(10, 4), "lm_head": nn.Linear(4, 10, bias=False)})
        model["lm_head"].weight = model["wte"].weight
        stats = compute_rank_stats(model)
        assert stats["stable_rank/wte"] == stats["stable_rank/lm_head"] == stats["stable_rank/min"]

    def test_a_model_without_matrices(self) -> None:
        stats = compute_rank_stats(nn.LayerNorm(3))
        assert stats == dict.fromkeys(
            ("stable_rank/mean", "stable_rank/min", "effective_rank/mean", "effective_rank/min"), 0.0
        )
