"""The rounding expression against gfloat, torch's and ml_dtypes' casts, and the exact scalar code."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from grid_oracle import edge_values, gfloat_round, grid, hard_values, near_values, random_values, same_bits

from altgrad.quantization import kernels
from altgrad.quantization.formats import BF16, E4M3, E5M2, FORMAT_REGISTRY, FP8_FORMATS, FP16, FP32, FP8Format

by_name = pytest.mark.parametrize("format", FP8_FORMATS, ids=lambda format: format.name)
by_every_name = pytest.mark.parametrize("format", FORMAT_REGISTRY.values(), ids=lambda format: format.name)


def numbers(format: FP8Format) -> kernels.FormatNumbers:
    return kernels.format_numbers([format]).view()


def rounded(format: FP8Format, values: np.ndarray) -> np.ndarray:
    return kernels.round_nearest(torch.from_numpy(values), numbers(format)).numpy()


@by_name
def test_rounds_as_gfloat_does(format: FP8Format) -> None:
    values = hard_values(format)
    np.testing.assert_array_equal(rounded(format, values), gfloat_round(format, values))


@pytest.mark.parametrize(
    ("format", "dtype"),
    [
        (E4M3, torch.float8_e4m3fn),
        (E5M2, torch.float8_e5m2),
        (BF16, torch.bfloat16),
        (FP16, torch.float16),
        (FP32, torch.float32),
    ],
    ids=["E4M3", "E5M2", "bf16", "fp16", "fp32"],
)
def test_rounds_as_torch_casts(format: FP8Format, dtype: torch.dtype) -> None:
    values = torch.from_numpy(hard_values(E5M2))
    largest = format.max_representable_value
    limited = values if format is FP32 else values.clamp(-largest, largest)
    assert torch.equal(kernels.round_nearest(values, numbers(format)), limited.to(dtype).to(torch.float32))


@pytest.mark.parametrize(
    ("format", "dtype"),
    [(E4M3, ml_dtypes.float8_e4m3fn), (E5M2, ml_dtypes.float8_e5m2), (BF16, ml_dtypes.bfloat16)],
    ids=["E4M3", "E5M2", "bf16"],
)
def test_rounds_as_ml_dtypes_casts(format: FP8Format, dtype: type) -> None:
    values = hard_values(E4M3)
    largest = np.float32(format.max_representable_value)
    expected = np.clip(values, -largest, largest).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(rounded(format, values), expected)


@by_every_name
def test_rounds_as_the_exact_scalar_code(format: FP8Format) -> None:
    near = near_values(format if format.bits == 8 else E5M2, 3000)
    values = np.concatenate([edge_values(E5M2), random_values(3000, seed=1), near])
    expected = [format.to_real(format.to_bits(float(value))) for value in values]
    np.testing.assert_array_equal(rounded(format, values), np.array(expected, dtype=np.float32))


@by_every_name
def test_nan_stays_nan(format: FP8Format) -> None:
    values = torch.tensor([math.nan, -math.nan, 1.0])
    assert kernels.round_nearest(values, numbers(format)).isnan().tolist() == [True, True, False]
    for bits in (0, -1, 0x3FFFFF, -(2**31)):  # a carry must not take it out of the NaNs
        drawn = kernels.round_stochastic(values, numbers(format), torch.full((3,), bits, dtype=torch.int32))
        assert drawn.isnan().tolist() == [True, True, False]


@by_every_name
def test_zero_results_carry_no_sign(format: FP8Format) -> None:
    values = torch.tensor([0.0, -0.0])
    assert not kernels.round_nearest(values, numbers(format)).signbit().any()


def test_formats_side_by_side_compute_as_alone() -> None:
    # bf16 among them reaches so high that its lanes take a detour, on which the others must not be taken.
    formats = tuple(FORMAT_REGISTRY.values())
    values = torch.from_numpy(np.concatenate([random_values(10_000), near_values(E4M3, 10_000)]))
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


@by_name
def test_rungs_count_along_the_grid(format: FP8Format) -> None:
    values = torch.from_numpy(grid(format))
    rungs = kernels.value_to_rung(values, numbers(format))
    assert rungs.tolist() == list(range(-format.max_code, format.max_code + 1))
    assert torch.equal(kernels.rung_to_value(rungs, numbers(format)), values)


@pytest.mark.parametrize("format", [BF16, FP16], ids=lambda format: format.name)
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


@pytest.mark.parametrize("format", [FP32, BF16, FP16], ids=lambda format: format.name)
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


class TestStochasticRounding:
    @by_every_name
    def test_grid_values_stay(self, format: FP8Format) -> None:
        values = torch.from_numpy(grid(format if format.bits == 8 else E4M3))
        for bits in (0, 1, -1, 2**31 - 1, -(2**31)):
            q = kernels.round_stochastic(values, numbers(format), torch.full_like(values, bits, dtype=torch.int32))
            assert same_bits(q, values)

    @by_name
    def test_each_outcome_of_a_normal_value_has_exactly_its_share_of_the_random_bits(self, format: FP8Format) -> None:
        # Every pattern of the bits that are used, once: the mean is the value itself.
        n = numbers(format)
        every = torch.arange(1 << int(n.rest_bits), dtype=torch.int32)
        rng = np.random.default_rng(5)
        magnitudes = grid(format)[grid(format) >= 2.0 ** (1 - int(n.bias))]
        for at in rng.integers(0, len(magnitudes) - 1, 4):
            low, high = (float(magnitudes[at + i]) for i in (0, 1))
            value = np.float32(rng.uniform(low, high))
            drawn = kernels.round_stochastic(torch.full(every.shape, float(-value)), n, every)
            ups = int((drawn == -high).sum())
            assert int((drawn == -low).sum()) + ups == len(every)
            assert ups * (high - low) == (float(value) - low) * len(every)

    @by_name
    def test_goes_to_one_of_the_two_neighbours(self, format: FP8Format) -> None:
        values = np.concatenate([edge_values(format), near_values(format, 50_000)])
        ladder = grid(format)
        limited = np.clip(values, ladder[0], ladder[-1])
        below = ladder[np.searchsorted(ladder, limited, side="right") - 1]
        above = ladder[np.searchsorted(ladder, limited, side="left")]
        bits = kernels.random_bits(torch.tensor(7, dtype=torch.int32), len(values))
        q = kernels.round_stochastic(torch.from_numpy(values), numbers(format), bits).numpy()
        assert ((q == below) | (q == above)).all()
        assert ((q == below) & (below != above)).any()
        assert ((q == above) & (below != above)).any()

    @by_name
    def test_is_unbiased_in_value(self, format: FP8Format) -> None:
        # A z-score beyond 5 has a chance of 6e-7; at 8 formats x 32 values a false alarm has one of 1.5e-4.
        draws, starts = 40_000, np.resize(grid(format)[:-1][::8], 32)
        gaps = np.diff(grid(format))[::8]
        gaps = np.resize(gaps, 32)
        parts = np.linspace(0.02, 0.98, 32)
        values = torch.from_numpy((starts + parts * gaps).astype(np.float32))
        keys = torch.tensor(kernels.stream_keys(range(32), step=3, stream=1), dtype=torch.int32)
        bits = kernels.random_bits(keys, draws)
        q = kernels.round_stochastic(values[:, None].expand(-1, draws), numbers(format), bits)
        error = q.double().mean(-1) - values.double()
        up = (values.double() - torch.from_numpy(starts).double()) / torch.from_numpy(gaps).double()
        deviation = torch.from_numpy(gaps).double() * (up * (1 - up) / draws).sqrt()
        assert (error.abs() <= 5 * deviation).all()

    def test_does_not_depend_on_chunking(self) -> None:
        values = torch.from_numpy(near_values(E4M3, 1000))
        key = torch.tensor(1, dtype=torch.int32)
        whole = kernels.round_stochastic(values, numbers(E4M3), kernels.random_bits(key, 1000))
        parts = [
            kernels.round_stochastic(part, numbers(E4M3), kernels.random_bits(key, len(part), start=137 * i))
            for i, part in enumerate(values.split(137))
        ]
        assert same_bits(whole, torch.cat(parts))


class TestRandomNumbers:
    def test_are_finalized_counters(self) -> None:
        def mix(h: int) -> int:
            h = (h ^ h >> 16) * 0x7FEB352D & 0xFFFFFFFF
            h = (h ^ h >> 15) * 0x846CA68B & 0xFFFFFFFF
            return h ^ h >> 16

        key = -123456789
        expected = [mix((i * 0x9E3779B9 & 0xFFFFFFFF) ^ (key & 0xFFFFFFFF)) for i in range(1000)]
        bits = kernels.random_bits(torch.tensor(key, dtype=torch.int32), 1000)
        assert [b & 0xFFFFFFFF for b in bits.tolist()] == expected
        uniform = kernels.uniform_bits(torch.tensor(key, dtype=torch.int32), 1000)
        assert uniform.tolist() == [(h >> 8) * 2.0**-24 for h in expected]

    def test_look_uniform_and_independent_between_keys(self) -> None:
        # The mean of n uniform numbers deviates by 1/sqrt(12 n), a correlation by 1/sqrt(n): 5 deviations each.
        n = 200_000
        keys = torch.tensor(kernels.stream_keys(range(8), step=0, stream=0), dtype=torch.int32)
        u = kernels.uniform_bits(keys, n).double()
        assert u.min() >= 0
        assert u.max() < 1
        assert ((u.mean(-1) - 0.5).abs() < 5 / math.sqrt(12 * n)).all()
        assert ((u.var(-1) - 1 / 12).abs() < 5 * math.sqrt(1 / 180 / n)).all()
        between = torch.corrcoef(u) - torch.eye(8)
        assert between.abs().max() < 5 / math.sqrt(n)
        successive = torch.corrcoef(torch.stack([u[0, :-1], u[0, 1:]]))[0, 1]
        assert successive.abs() < 5 / math.sqrt(n)

    def test_depend_on_key_and_index_alone(self) -> None:
        keys = torch.tensor([5, -9, 2**31 - 1], dtype=torch.int32)
        u = kernels.uniform_bits(keys, 100)
        assert torch.equal(kernels.uniform_bits(keys.flip(0), 100), u.flip(0))
        assert torch.equal(kernels.uniform_bits(keys[1], 40), u[1, :40])

    def test_keys_differ_by_seed_step_and_stream(self) -> None:
        keys = [
            key
            for step in range(20)
            for stream in range(20)
            for key in kernels.stream_keys(range(20), step=step, stream=stream)
        ]
        assert all(-(2**31) <= key < 2**31 for key in keys)
        # 8000 keys of 32 bits collide 0.0075 times on average.
        assert len(set(keys)) >= len(keys) - 1
        assert kernels.stream_keys([3], 1, 2) == kernels.stream_keys([9, 3], 1, 2)[1:]
