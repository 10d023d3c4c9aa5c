"""Scales against exact arithmetic, and the history they are made from."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from altgrad.quantization.formats import E0M7, E1M6, E4M3, FP8_FORMATS, FP8Format
from altgrad.quantization.ops import quantize
from altgrad.quantization.scaling import AmaxHistory, ScalingConfig, amax_scale, compute_scale, power_of_two_scale

by_name = pytest.mark.parametrize("format", FP8_FORMATS, ids=lambda format: format.name)

magnitudes = st.floats(min_value=2.0**-60, max_value=2.0**60, width=32)
laws = settings(max_examples=200, deadline=None)


def scale_of(amax: float, max_value: float, previous: float = 0.0, scale_min: float = 1e-10) -> float:
    return power_of_two_scale(torch.tensor(amax), torch.tensor(max_value), torch.tensor(previous), scale_min).item()


class TestComputeScale:
    @pytest.mark.parametrize(
        ("amax", "expected"), [(448.0, 1.0), (1.0, 1 / 448), (1e9, 1e9 / 448), (0.0, 1e-10), (1e-30, 1e-10)]
    )
    def test_takes_amax_to_the_largest_value(self, amax: float, expected: float) -> None:
        assert compute_scale(amax, E4M3) == expected
        assert compute_scale(torch.tensor(amax, dtype=torch.float64), E4M3) == expected

    def test_floor_is_an_argument(self) -> None:
        assert compute_scale(1.0, E4M3, scale_min=0.5) == 0.5

    def test_nan_stays_nan(self) -> None:
        assert math.isnan(compute_scale(math.nan, E4M3))

    def test_negative_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"amax must not be negative, got -1\.0"):
            compute_scale(-1.0, E4M3)


class TestAmaxHistory:
    def test_empty_is_one(self) -> None:
        assert AmaxHistory().get_amax() == 1.0

    @given(st.lists(st.floats(0, 1e30), min_size=1, max_size=40), st.integers(1, 20))
    @settings(deadline=None)
    def test_is_the_largest_of_the_window(self, values: list[float], history_len: int) -> None:
        history = AmaxHistory(history_len)
        for value in values:
            history.update(value)
        assert history.get_amax() == max(values[-history_len:])
        assert len(history) == min(len(values), history_len)

    def test_takes_tensors_by_their_largest_magnitude(self) -> None:
        history = AmaxHistory()
        history.update(torch.tensor([[1.0, -5.0], [2.0, 3.0]], requires_grad=True))
        assert history.get_amax() == 5.0

    @pytest.mark.parametrize("values", [[math.nan, 1.0], [1.0, math.nan], [torch.tensor([1.0, math.nan]), 2.0]])
    def test_nan_shows_until_it_leaves_the_window(self, values: list[float]) -> None:
        history = AmaxHistory(history_len=3)
        for value in values:
            history.update(value)
        assert math.isnan(history.get_amax())
        for _ in range(3):
            history.update(4.0)
        assert history.get_amax() == 4.0

    def test_reset_forgets(self) -> None:
        history = AmaxHistory()
        history.update(7.0)
        history.reset()
        assert (len(history), history.get_amax()) == (0, 1.0)

    def test_an_empty_tensor_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="no largest magnitude"):
            AmaxHistory().update(torch.empty(0, 2))

    @pytest.mark.parametrize("history_len", [0, -3])
    def test_a_history_without_length_is_an_error(self, history_len: int) -> None:
        with pytest.raises(ValueError, match="history_len must be positive"):
            AmaxHistory(history_len)


def test_config_defaults_and_errors() -> None:
    assert ScalingConfig() == ScalingConfig(history_len=16, scale_min=1e-10)
    for wrong in ({"history_len": 0}, {"scale_min": 0.0}, {"scale_min": math.nan}):
        with pytest.raises(ValueError, match="must be positive"):
            ScalingConfig(**wrong)


def test_amax_scale_is_compute_scale_of_each_element() -> None:
    amax = torch.tensor([0.0, 1.0, 448.0, 1e20, math.nan])
    scales = amax_scale(amax, torch.tensor(448.0))
    expected = torch.tensor([compute_scale(value, E4M3) for value in amax.tolist()])
    torch.testing.assert_close(scales, expected, equal_nan=True)


class TestPowerOfTwoScale:
    @by_name
    @laws
    @given(amax=magnitudes)
    def test_is_the_smallest_that_fits(self, format: FP8Format, amax: float) -> None:
        largest = format.max_representable_value
        scale = Fraction(scale_of(amax, largest, scale_min=2.0**-140))
        assert math.frexp(scale)[0] == 0.5
        assert Fraction(amax) <= scale * Fraction(largest)
        assert Fraction(amax) > scale / 2 * Fraction(largest)

    @by_name
    def test_fits_exactly_at_the_edge(self, format: FP8Format) -> None:
        largest = torch.tensor(format.max_representable_value)
        beyond = torch.nextafter(largest, torch.tensor(math.inf))
        assert scale_of(largest.item(), largest.item()) == 1.0
        assert scale_of(beyond.item(), largest.item()) == 2.0

    @by_name
    @laws
    @given(amax=magnitudes, power=st.integers(-40, 40))
    def test_hysteresis(self, format: FP8Format, amax: float, power: int) -> None:
        largest, previous = format.max_representable_value, 2.0**power
        ideal = scale_of(amax, largest, scale_min=2.0**-140)
        expected = previous if ideal in (previous, previous / 2) else ideal
        assert scale_of(amax, largest, previous, scale_min=2.0**-140) == expected

    @laws
    @given(st.lists(st.floats(min_value=2.0**-30, max_value=2.0**30, width=32), min_size=1, max_size=20))
    def test_e0m7_and_e1m6_stay_four_apart(self, history: list[float]) -> None:
        largest = torch.tensor([format.max_representable_value for format in (E0M7, E1M6)])
        scales = torch.zeros(2)
        for amax in history:
            scales = power_of_two_scale(torch.tensor(amax), largest, scales)
            assert scales[0] == 4 * scales[1]
            x = torch.linspace(-amax, amax, 9)
            assert torch.equal(quantize(x, E0M7, scales[0]), quantize(x, E1M6, scales[1]))

    @pytest.mark.parametrize(
        ("scale_min", "expected"), [(1e-10, 2.0**-33), (2.0**-20, 2.0**-20), (0.3, 0.5), (1.0, 1.0), (1.1, 2.0)]
    )
    @pytest.mark.parametrize("amax", [0.0, 1e-45, 1e-20])
    def test_the_floor_is_a_power_of_two(self, amax: float, scale_min: float, expected: float) -> None:
        assert scale_of(amax, 448.0, scale_min=scale_min) == expected

    @pytest.mark.parametrize(
        ("amax", "previous", "expected"),
        [
            (math.nan, 0.25, 0.25),
            (math.nan, 0.0, math.nan),
            (math.nan, math.nan, math.nan),
            (math.inf, 0.25, math.inf),
            (1.0, math.inf, 2.0**-8),
            (1.0, math.nan, 2.0**-8),
        ],
    )
    def test_what_is_not_finite_shows(self, amax: float, previous: float, expected: float) -> None:
        got = scale_of(amax, 448.0, previous)
        assert got == expected or (math.isnan(got) and math.isnan(expected))

    def test_a_scale_too_large_for_float32_is_infinite(self) -> None:
        assert scale_of(3.4e38, 127 / 128) == math.inf

    def test_elements_do_not_touch_one_another(self) -> None:
        amax = torch.tensor([[1.0, math.nan, 3.0], [math.inf, 5.0, 0.0]])
        largest = torch.tensor([[448.0], [7.875]])
        previous = torch.tensor([[0.0, 1.0, 2.0**-7], [1.0, 0.5, 4.0]])
        together = power_of_two_scale(amax, largest, previous)
        elements = torch.stack([amax, largest.expand(2, 3), previous], dim=-1).reshape(-1, 3).tolist()
        assert together.flatten().tolist() == [scale_of(*element) for element in elements]

    @pytest.mark.parametrize("amax", [0.0, 5.0, math.nan])
    def test_float32_lanes_have_scale_one(self, amax: float) -> None:
        assert scale_of(amax, math.inf) == 1.0
        assert amax_scale(torch.tensor(amax), torch.tensor(math.inf)).item() == 1.0
