"""The kernels on their own: lanes side by side, rungs, spacing, steps. What they round to is in test_exactness.py."""

import numpy as np
import pytest
import torch
from cases import by_every_name, by_name, name_of, numbers
from grid_oracle import grid, hard_values, near_values, random_values, same_bits, special_values

from altgrad.quantization import kernels
from altgrad.quantization.formats import BF16, E4M3, E5M2, E7M0, FORMAT_REGISTRY, FP16, FP32, FP8Format


@by_every_name
def test_zero_results_carry_no_sign(format: FP8Format) -> None:
    rounded = kernels.round_nearest(torch.from_numpy(hard_values(E5M2)), numbers(format))
    assert not rounded[rounded == 0].signbit().any()
    assert len(rounded[rounded == 0]) > 2


def test_formats_side_by_side_compute_as_alone() -> None:
    # bf16 among them reaches so high that its lanes take a detour, on which the others must not be taken.
    formats = tuple(FORMAT_REGISTRY.values())
    values = torch.from_numpy(np.concatenate([special_values(), random_values(10_000), near_values(E4M3, 10_000)]))
    bits = kernels.random_bits(torch.tensor(0, dtype=torch.int32), len(values))
    lanes = kernels.format_numbers(formats).view(-1, 1)
    stack = values.expand(len(formats), -1)
    nearest = kernels.round_nearest(stack, lanes)
    stochastic = kernels.round_stochastic(stack, lanes, bits)
    rungs = kernels.value_to_rung(nearest, lanes)
    spacing = kernels.rung_spacing(stack, lanes)
    for i, format in enumerate(formats):
        n = numbers(format)
        assert same_bits(nearest[i], kernels.round_nearest(values, n)), format.name
        assert same_bits(stochastic[i], kernels.round_stochastic(values, n, bits)), format.name
        assert torch.equal(spacing[i], kernels.rung_spacing(values, n)), format.name
        assert format is FP32 or torch.equal(rungs[i], kernels.value_to_rung(nearest[i], n)), format.name


def test_counts_are_of_what_rounding_did() -> None:
    """With all formats side by side; of float32 they mean nothing."""
    formats = [format for format in FORMAT_REGISTRY.values() if format is not FP32]
    values = [hard_values(E4M3), hard_values(BF16), *(near_values(format, 10_000) for format in formats)]
    v = torch.from_numpy(np.concatenate([each[np.isfinite(each)] for each in values])).expand(len(formats), -1)
    lanes, edges = kernels.format_numbers(formats).view(-1, 1), kernels.format_edges(formats).view(-1, 1)
    q, at_end, lost = kernels.round_and_count(v, lanes, edges, count=lambda marks: marks)
    assert same_bits(q, kernels.round_nearest(v, lanes))
    assert torch.equal(at_end.bool(), q.abs() == lanes.max_value)
    assert torch.equal(lost.bool(), (q == 0) & (v != 0))
    for marks in (at_end, lost):
        assert marks.amin() == 0
        assert (marks.amax(-1) == 1).all()
    below, above = (kernels.round_nearest((edges.to_zero + i).view(torch.float32), lanes) for i in (0, 1))
    assert (below == 0).all()
    assert (above != 0).all()
    below, above = (kernels.round_nearest((edges.below_end + i).view(torch.float32), lanes) for i in (0, 1))
    assert (below < lanes.max_value).all()
    assert (above == lanes.max_value).all()


@by_name
def test_rungs_count_along_the_grid(format: FP8Format) -> None:
    values = torch.from_numpy(grid(format))
    rungs = kernels.value_to_rung(values, numbers(format))
    assert rungs.tolist() == list(range(-format.max_code, format.max_code + 1))
    assert torch.equal(kernels.rung_to_value(rungs, numbers(format)), values)


@pytest.mark.parametrize("format", [BF16, FP16], ids=name_of)
def test_rungs_of_wide_formats_are_their_bits(format: FP8Format) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[format.name]
    codes = torch.arange(format.max_code + 1, dtype=torch.int32)
    values = codes.to(torch.int16).view(dtype).to(torch.float32)
    for sign in (1, -1):
        assert torch.equal(kernels.value_to_rung(sign * values, numbers(format)), sign * codes)


@by_name
def test_spacing_is_the_distance_to_the_next_rung_outward(format: FP8Format) -> None:
    values = grid(format)
    magnitudes = values[values >= 0]
    inside = torch.from_numpy(magnitudes[:-1])
    expected = torch.from_numpy(np.diff(magnitudes))
    for sign in (1, -1):
        assert torch.equal(kernels.rung_spacing(sign * inside, numbers(format)), expected)


@pytest.mark.parametrize("format", [FP32, BF16, FP16], ids=name_of)
def test_spacing_of_wide_formats(format: FP8Format) -> None:
    values = torch.tensor([0.0, 2.0**-149, 1.0, 1.5, 3.0])
    step, smallest = 2.0**-format.mantissa_bits, format.min_positive_value
    expected = torch.tensor([smallest, smallest, step, step, 2 * step])
    assert torch.equal(kernels.rung_spacing(values, numbers(format)), expected)


def test_power_of_two_is_exact() -> None:
    exponents = torch.arange(-252, 255, dtype=torch.int32)
    expected = np.array([2.0**e for e in exponents.tolist()])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(kernels.power_of_two(exponents).numpy(), expected.astype(np.float32))


class TestSteps:
    ends = pytest.mark.parametrize("format", [E4M3, E7M0, FP16, BF16], ids=name_of)

    @ends
    @pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int64, torch.uint8], ids=str)
    def test_of_every_integer_dtype_stop_at_the_ends(self, format: FP8Format, dtype: torch.dtype) -> None:
        self.check(format, dtype)

    @ends
    def test_of_int32_stop_at_the_ends_too(self, format: FP8Format) -> None:
        self.check(format, torch.int32)

    @staticmethod
    def check(format: FP8Format, dtype: torch.dtype) -> None:
        facts = torch.iinfo(dtype)
        steps = torch.tensor([0, 1, 100, facts.max, facts.max - 1, facts.min, facts.min + 1], dtype=dtype)
        for here in (-format.max_code, -1, 0, 5, format.max_code):
            moved = kernels.step_rungs(torch.full(steps.shape, here, dtype=torch.int32), steps, numbers(format))
            sums = [here + step for step in steps.tolist()]
            assert moved.tolist() == [min(max(total, -format.max_code), format.max_code) for total in sums]
