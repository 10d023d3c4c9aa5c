"""Stalls against a scalar count, stiffness against the distances on the grid."""

import math

import numpy as np
import pytest
import torch
from grid_oracle import grid, near_values
from hypothesis import given, settings
from hypothesis import strategies as st

from altgrad.quantization.diagnostics import BitStallDetector, detect_bit_stall, exponent_stiffness, stiffness
from altgrad.quantization.formats import E3M4, E4M3, E5M2, FORMAT_REGISTRY, FP8_FORMATS, FP8Format
from altgrad.quantization.ops import quantize

by_name = pytest.mark.parametrize("format", FP8_FORMATS, ids=lambda format: format.name)


class TestDetectBitStall:
    @by_name
    def test_counts_as_the_scalar_code_does(self, format: FP8Format) -> None:
        weight = torch.from_numpy(near_values(format, 500, seed=1))
        grad = torch.from_numpy(near_values(format, 500, seed=2)).masked_fill(torch.arange(500) % 5 == 0, 0.0)
        lr = 0.01
        moved = weight - lr * grad
        pairs = [
            (format.to_real(format.to_bits(before)), format.to_real(format.to_bits(after)))
            for before, after, g in zip(weight.tolist(), moved.tolist(), grad.tolist(), strict=True)
            if abs(g) > 1e-10
        ]
        stalled = sum(before == after for before, after in pairs)
        assert 0 < stalled < len(pairs)
        assert detect_bit_stall(weight, grad, lr, format, 1.0) == (stalled, len(pairs))

    @pytest.mark.parametrize(
        ("grad", "expected"), [(0.0, (0, 0)), (1e-10, (0, 0)), (1.1e-10, (1, 1)), (0.1, (1, 1)), (100.0, (0, 1))]
    )
    def test_gradients_of_nothing_are_no_updates(self, grad: float, expected: tuple[int, int]) -> None:
        assert detect_bit_stall(torch.ones(1), torch.tensor([grad]), 0.01, E4M3, 1.0) == expected

    def test_zeros_of_both_signs_are_one_code(self) -> None:
        weight, grad = torch.tensor([1e-9]), torch.tensor([2e-7])
        assert detect_bit_stall(weight, grad, 0.01, E4M3, 1.0) == (1, 1)

    def test_scale_decides_what_a_step_is(self) -> None:
        weight, up = torch.ones(1), torch.tensor([-0.4])
        assert detect_bit_stall(weight, 0.1 * up, 1.0, E4M3, 1.0) == (1, 1)
        assert detect_bit_stall(weight, up, 1.0, E4M3, 1.0) == (0, 1)
        assert detect_bit_stall(weight, up, 1.0, E3M4, 64.0) == (1, 1)

    def test_a_diverged_weight_is_counted_and_no_error(self) -> None:
        weight = torch.tensor([math.nan, 1.0])
        assert detect_bit_stall(weight, torch.full((2,), math.inf), 0.1, E3M4, 1.0) == (1, 2)

    def test_unlike_shapes_are_an_error(self) -> None:
        with pytest.raises(ValueError, match="differ in shape"):
            detect_bit_stall(torch.ones(2), torch.ones(3), 0.1, E4M3, 1.0)


class TestBitStallDetector:
    def test_accumulates(self) -> None:
        detector = BitStallDetector()
        assert detector.get_stats() == {"stall_rate": 0.0, "stall_count": 0, "total_count": 0, "steps": 0}
        assert detector.update(torch.ones(4), torch.full((4,), 0.1), 0.01, E4M3, 1.0) == (4, 4)
        assert detector.update(torch.ones(4), torch.full((4,), 100.0), 0.01, E4M3, 1.0) == (0, 4)
        assert detector.get_stall_rate() == 0.5
        assert detector.get_stats() == {"stall_rate": 0.5, "stall_count": 4, "total_count": 8, "steps": 2}

    def test_reset_forgets(self) -> None:
        detector = BitStallDetector()
        detector.update(torch.ones(4), torch.ones(4), 1e-6, E4M3, 1.0)
        detector.reset()
        assert detector.get_stats() == BitStallDetector().get_stats()


class TestStiffness:
    @by_name
    @pytest.mark.parametrize("scale", [1.0, 0.25, 2.0**10])
    def test_is_the_gap_above_each_magnitude(self, format: FP8Format, scale: float) -> None:
        values = grid(format)
        magnitudes = values[values >= 0]
        expected = torch.from_numpy(np.diff(magnitudes) * np.float32(scale))
        weight = torch.from_numpy(magnitudes[:-1] * np.float32(scale))
        assert torch.equal(stiffness(weight, format, scale), expected)
        assert torch.equal(stiffness(-weight, format, scale), expected)

    @by_name
    def test_bounds_the_rounding_error_by_half(self, format: FP8Format) -> None:
        weight = torch.from_numpy(near_values(format, 2000))
        weight = weight[weight.abs() <= format.max_representable_value]
        error = (quantize(weight, format, 1.0) - weight).abs()
        assert (2 * error <= stiffness(weight, format)).all()

    def test_of_float32_is_its_own_spacing(self) -> None:
        weight = torch.tensor([0.0, 1e-45, 1.0, -3.0, 1e30])
        expected = np.spacing(weight.abs().numpy())
        assert torch.equal(stiffness(weight, FORMAT_REGISTRY["fp32"]), torch.from_numpy(expected))

    def test_takes_a_scale_per_channel_and_keeps_the_dtype(self) -> None:
        got = stiffness(torch.ones(2, 2, dtype=torch.bfloat16), E4M3, torch.tensor([[1.0], [8.0]]))
        assert got.dtype == torch.bfloat16
        assert got.tolist() == [[0.125, 0.125], [0.0625 * 2, 0.125]]

    def test_nan_stays_nan(self) -> None:
        assert stiffness(torch.tensor([math.nan, 1.0]), E5M2).isnan().tolist() == [True, False]


class TestExponentStiffness:
    @settings(max_examples=300, deadline=None)
    @given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(0, 7))
    def test_is_the_power_of_two_below_each_weight(self, weight: float, mantissa_bits: int) -> None:
        expected = 1.0 if weight == 0 else math.ldexp(1.0, math.frexp(weight)[1] - 1 - mantissa_bits)
        got = exponent_stiffness(torch.tensor([weight]), mantissa_bits)
        assert got.item() == np.float32(expected)

    @pytest.mark.parametrize("exponent", range(-149, 128, 7))
    def test_just_below_a_power_of_two(self, exponent: int) -> None:
        power = torch.tensor(2.0**exponent)
        below = torch.nextafter(power, torch.tensor(0.0))
        assert exponent_stiffness(power, 0) == power
        assert exponent_stiffness(below, 0) == (power / 2 if below > 0 else 1.0)

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
    def test_mantissa_bits_by_lane(self, dtype: torch.dtype) -> None:
        bits = torch.tensor([[0], [3]], dtype=dtype)
        assert exponent_stiffness(torch.tensor([[1.0, 5.0]] * 2), bits).tolist() == [[1.0, 4.0], [0.125, 0.5]]

    def test_what_is_not_finite_is_nan(self) -> None:
        assert exponent_stiffness(torch.tensor([math.nan, math.inf, -math.inf]), 2).isnan().all()
