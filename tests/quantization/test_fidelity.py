"""SQNR and values used: against numpy with gfloat and ml_dtypes, closed forms, and the laws both obey."""

import math
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import torch
from grid_oracle import gfloat_round, grid
from hypothesis import given
from hypothesis import strategies as st

from altgrad.quantization.fidelity import sqnr, values_used
from altgrad.quantization.formats import (
    BF16,
    E0M7,
    E1M6,
    E4M3,
    E5M2,
    FORMAT_REGISTRY,
    FP8_FORMATS,
    FP16,
    FP32,
    FP8Format,
)

by_name = pytest.mark.parametrize("format", FP8_FORMATS, ids=lambda format: format.name)
by_every_name = pytest.mark.parametrize("format", FORMAT_REGISTRY.values(), ids=lambda format: format.name)


def heavy_tailed(count: int = 20_000) -> np.ndarray:
    return np.random.default_rng(3).standard_t(3, count).astype(np.float32)


def scale_for(values: np.ndarray, format: FP8Format) -> float:
    """No power of two, and some values saturate."""
    return float(np.abs(values).max()) / format.max_representable_value / 1.3


def decibels(values: np.ndarray, rounded: np.ndarray) -> float:
    signal = values.astype(np.float64)
    return float(10 * np.log10((signal**2).sum() / ((rounded.astype(np.float64) - signal) ** 2).sum()))


@by_name
def test_sqnr_is_that_of_gfloats_rounding(format: FP8Format) -> None:
    values = heavy_tailed()
    scale = scale_for(values, format)
    rounded = gfloat_round(format, values / np.float32(scale)).astype(np.float32) * np.float32(scale)
    assert sqnr(torch.from_numpy(values), format, scale) == pytest.approx(decibels(values, rounded), abs=1e-9)


@pytest.mark.parametrize(
    ("format", "dtype"),
    [
        (E4M3, ml_dtypes.float8_e4m3fn),
        (E5M2, ml_dtypes.float8_e5m2),
        (BF16, ml_dtypes.bfloat16),
        (FP16, np.float16),
    ],
    ids=["E4M3", "E5M2", "bf16", "fp16"],
)
def test_sqnr_and_values_are_those_of_a_cast(format: FP8Format, dtype: type) -> None:
    values = heavy_tailed()
    scale = scale_for(values, format) if format.bits == 8 else 1.0
    largest = format.max_representable_value
    cast = np.clip(values / np.float32(scale), -largest, largest).astype(dtype).astype(np.float32)
    x = torch.from_numpy(values)
    assert sqnr(x, format, scale) == pytest.approx(decibels(values, cast * np.float32(scale)), abs=1e-9)
    assert values_used(x, format, scale) == len(np.unique(cast))


def test_sqnr_of_a_uniform_tensor_in_fixed_point_is_that_of_the_textbook() -> None:
    # A signal of variance 1/3 and noise of variance (1/127)**2 / 12.
    x = torch.linspace(-1, 1, 1_000_001)
    assert sqnr(x, E0M7, 128 / 127) == pytest.approx(10 * math.log10(4 * 127**2), abs=0.01)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, -2.0, 0.0], math.inf),
        ([3.0, 1000.0], 10 * math.log10(1_000_009 / 552**2)),
        ([], math.nan),
        ([0.0, -0.0], math.nan),
        ([1.0, math.nan], math.nan),
        ([1.0, math.inf], math.nan),
        ([0.0005], 0.0),
    ],
    ids=["exact", "saturated", "empty", "all zero", "nan", "infinite", "all lost"],
)
def test_sqnr_is_never_a_number_that_means_nothing(values: list[float], expected: float) -> None:
    assert sqnr(torch.tensor(values), E4M3, 1.0) == pytest.approx(expected, nan_ok=True)


def test_a_rounded_value_that_overflows_drowns_the_signal() -> None:
    assert sqnr(torch.tensor([3.4e38]), E4M3, 1e36) == -math.inf


@by_every_name
@given(power=st.integers(-20, 20), seed=st.integers(0, 1000))
def test_nothing_changes_when_data_and_scale_move_by_a_power_of_two(format: FP8Format, power: int, seed: int) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).laplace(size=64).astype(np.float32))
    scale = 1.1 if format.bits == 8 else 1.0
    moved, along = x * 2.0**power, scale * 2.0**power
    assert sqnr(moved, format, along) == sqnr(x, format, scale)
    assert values_used(moved, format, along) == values_used(x, format, scale)


@by_every_name
@given(seed=st.integers(0, 1000))
def test_normal_values_lose_at_most_half_a_rung_each(format: FP8Format, seed: int) -> None:
    # The last bit is worth 2**-M of a value's binade: 6 dB a bit, and 6 for rounding to the nearest.
    largest = math.frexp(format.max_representable_value)[1] - 1
    smallest = 1 - format.bias if format.exponent_bits else -1
    rng = np.random.default_rng(seed)
    exponents = rng.integers(max(smallest, -60), min(largest, 60), 64, endpoint=True)
    values = np.minimum(np.ldexp(rng.uniform(1, 2, 64), exponents), format.max_representable_value)
    x = torch.from_numpy(values.astype(np.float32))
    assert sqnr(x, format, 1.0) >= 20 * math.log10(2) * (format.significand_bits + 1) - 1e-9


def test_one_grid_under_two_names_loses_the_same() -> None:
    x = torch.from_numpy(heavy_tailed())
    assert sqnr(x, E0M7, 2.0**-3) == sqnr(x, E1M6, 2.0**-5)
    assert values_used(x, E0M7, 2.0**-3) == values_used(x, E1M6, 2.0**-5)


@by_name
def test_a_tensor_of_the_whole_grid_uses_every_value_and_loses_none(format: FP8Format) -> None:
    x = torch.from_numpy(grid(format)) * 4
    assert values_used(x, format, 4.0) == format.finite_values
    assert sqnr(x, format, 4.0) == math.inf


@pytest.mark.parametrize(
    ("values", "in_e4m3", "in_fp16"),
    [
        ([], 0, 0),
        ([0.0, -0.0, 1e-9, -1e-9], 1, 1),
        ([math.nan], 0, 0),
        ([1.0, 1.01, -1.0, math.nan], 2, 3),
        ([1e6, math.inf, -math.inf], 2, 2),
    ],
    ids=["empty", "zeros", "nan", "neighbours", "saturated"],
)
def test_values_are_counted_once_and_nan_is_none(values: list[float], in_e4m3: int, in_fp16: int) -> None:
    x = torch.tensor(values)
    assert (values_used(x, E4M3, 1.0), values_used(x, FP16, 1.0)) == (in_e4m3, in_fp16)


def test_each_channel_is_rounded_under_its_own_scale() -> None:
    x = torch.from_numpy(heavy_tailed(600)).view(3, 200)
    scales = torch.tensor([[0.5], [0.25], [0.125]])
    power = x.double().square().sum(-1)
    noise = [float(p) / 10 ** (sqnr(row, E4M3, s) / 10) for p, row, s in zip(power, x, scales, strict=True)]
    assert sqnr(x, E4M3, scales) == pytest.approx(10 * math.log10(float(power.sum()) / sum(noise)), abs=1e-9)


@pytest.mark.parametrize(
    "change",
    [torch.Tensor.t, torch.Tensor.requires_grad_, torch.Tensor.bfloat16, torch.Tensor.double],
    ids=["not contiguous", "with gradient", "bf16", "float64"],
)
def test_what_is_measured_is_the_values(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = torch.from_numpy(heavy_tailed(600)).view(3, 200).bfloat16().float()
    expected = sqnr(x, E4M3, 0.5), values_used(x, E4M3, 0.5)
    assert (sqnr(change(x), E4M3, 0.5), values_used(change(x), E4M3, 0.5)) == pytest.approx(expected, abs=1e-9)


def test_what_float64_loses_to_float32_counts() -> None:
    x = torch.tensor([1.0, 1 / 3], dtype=torch.float64)
    assert 150 < sqnr(x, FP32, 1.0) < 165
    assert sqnr(x.to(torch.float32), FP32, 1.0) == math.inf


@pytest.mark.parametrize("measure", [sqnr, values_used])
@pytest.mark.parametrize(
    ("x", "scale", "message"),
    [
        (torch.ones(2), 0.0, "scale must be positive"),
        (torch.ones(2), math.nan, "scale must be positive"),
        (torch.ones(2), torch.ones(3), "does not broadcast"),
        (torch.ones(2, dtype=torch.int32), 1.0, "must be floating point"),
    ],
    ids=["zero scale", "nan scale", "shape", "integers"],
)
def test_what_cannot_be_measured_is_refused(
    measure: Callable[..., float], x: torch.Tensor, scale: float | torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure(x, E4M3, scale)
