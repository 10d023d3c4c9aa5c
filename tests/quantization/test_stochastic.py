"""Stochastic rounding: which outcomes, with which probability, and from what they follow."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from cases import by_every_name, by_name, by_rounded_name, needs_gpu, numbers
from grid_oracle import edge_values, grid, near_values, same_bits

from altgrad.quantization import fused, kernels, ops
from altgrad.quantization.formats import E0M7, E1M6, E4M3, FP16, FP32, FP8Format
from altgrad.quantization.ops import quantize_stochastic

pytestmark = pytest.mark.usefixtures("honest_compilation")


def smallest_normal(format: FP8Format) -> float:
    """Below it spacing is constant. Fixed point has its largest binade only for one, as it has in E1M6."""
    return 2.0 ** (1 - int(numbers(format).bias))


def share_of_ups(format: FP8Format, value: float, low: float, high: float) -> Fraction:
    """How many of all patterns of the random bits that are used take a value up; the others must take it down."""
    n = numbers(format)
    every = torch.arange(1 << int(n.rest_bits), dtype=torch.int32)
    drawn = kernels.round_stochastic(torch.full(every.shape, value), n, every)
    ups, downs = int((drawn == high).sum()), int((drawn == low).sum())
    assert ups + downs == len(every)
    return Fraction(ups, len(every))


class TestProbability:
    """Not sampled: each pattern of the random bits is tried once."""

    @by_rounded_name
    def test_of_normal_values_is_exact(self, format: FP8Format) -> None:
        rng, ladder = np.random.default_rng(5), grid(format)
        ladder = ladder[ladder >= smallest_normal(format)]
        for at in (0, len(ladder) - 2, *rng.integers(0, len(ladder) - 1, 2)):
            low, high = (float(end) for end in ladder[at : at + 2])
            value = float(np.float32(rng.uniform(low, high)))
            exact = (Fraction(value) - Fraction(low)) / (Fraction(high) - Fraction(low))
            assert share_of_ups(format, value, low, high) == exact
            assert share_of_ups(format, -value, -low, -high) == exact

    @by_rounded_name
    def test_of_subnormal_values_errs_by_half_a_random_step_at_most(self, format: FP8Format) -> None:
        rng, ladder = np.random.default_rng(6), grid(format)
        ladder = ladder[(ladder >= 0) & (ladder <= smallest_normal(format))]
        bound = Fraction(1, 2 << int(numbers(format).rest_bits))
        for at in (0, len(ladder) - 2, *rng.integers(0, len(ladder) - 1, 1)):
            low, high = (float(end) for end in ladder[at : at + 2])
            value = float(np.float32(rng.uniform(low, high)))
            exact = (Fraction(value) - Fraction(low)) / (Fraction(high) - Fraction(low))
            assert abs(share_of_ups(format, value, low, high) - exact) <= bound
            assert abs(share_of_ups(format, -value, -low, -high) - exact) <= bound

    @by_rounded_name
    def test_of_half_a_rung_is_a_half(self, format: FP8Format) -> None:
        ladder = grid(format).astype(np.float64)
        for at in (len(ladder) // 2, len(ladder) - 2):
            low, high = ladder[at : at + 2].tolist()
            assert share_of_ups(format, (low + high) / 2, low, high) == Fraction(1, 2)

    @by_name
    def test_shows_in_the_mean_of_many_draws(self, format: FP8Format) -> None:
        # A z-score beyond 5 has a chance of 6e-7; at 8 formats x 48 values a false alarm has one of 2.2e-4.
        draws, ladder = 40_000, grid(format).astype(np.float64)
        near_zero, spread = len(ladder) // 2 + np.arange(-8, 8), np.linspace(0, len(ladder) - 2, 32).astype(int)
        at = np.concatenate([near_zero, spread])
        starts, gaps = ladder[at], ladder[at + 1] - ladder[at]
        values = (starts + np.linspace(0.02, 0.98, len(at)) * gaps).astype(np.float32)
        keys = torch.tensor(kernels.stream_keys(range(len(at)), step=3, stream=1), dtype=torch.int32)
        x = torch.from_numpy(values)[:, None].expand(-1, draws)
        mean = quantize_stochastic(x, format, 1.0, kernels.random_bits(keys, draws)).double().mean(-1).numpy()
        up = (values - starts) / gaps
        assert (np.abs(mean - values) <= 5 * gaps * np.sqrt(up * (1 - up) / draws)).all()


class TestOutcome:
    @by_name
    def test_is_one_of_the_two_neighbours(self, format: FP8Format) -> None:
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

    @by_every_name
    def test_of_grid_values_is_themselves(self, format: FP8Format) -> None:
        values = torch.from_numpy(grid(format if format is not FP32 else FP16))
        for bits in (0, 1, -1, 2**31 - 1, -(2**31)):
            q = kernels.round_stochastic(values, numbers(format), torch.full(values.shape, bits, dtype=torch.int32))
            assert same_bits(q, values)

    @by_every_name
    def test_of_nan_is_nan_and_of_infinity_the_largest(self, format: FP8Format) -> None:
        payloads = torch.tensor([0x7FC00000, 0x7F800001, 0x7FFFFFFF, -0x400000, -0x7FFFFF, -1], dtype=torch.int32)
        x = torch.cat([payloads.view(torch.float32), torch.tensor([math.inf, -math.inf])])
        largest = math.inf if format is FP32 else format.max_representable_value
        for bits in (0, -1, 0x3FFFFF, 0x7FFFFF, -(2**31)):  # a carry must not take it out of the NaNs
            q = kernels.round_stochastic(x, numbers(format), torch.full(x.shape, bits, dtype=torch.int32))
            assert q[:6].isnan().all()
            assert q[6:].tolist() == [largest, -largest]

    def test_is_the_same_in_e0m7_and_in_e1m6(self) -> None:
        x = torch.from_numpy(np.concatenate([edge_values(E0M7), near_values(E0M7, 50_000)]))
        bits = kernels.random_bits(torch.tensor(7, dtype=torch.int32), len(x))
        fixed = kernels.round_stochastic(x, numbers(E0M7), bits)
        assert same_bits(4 * fixed, kernels.round_stochastic(4 * x, numbers(E1M6), bits))

    @by_name
    def test_does_not_depend_on_bits_that_are_not_used(self, format: FP8Format) -> None:
        x = torch.from_numpy(near_values(format, 10_000))
        bits = kernels.random_bits(torch.tensor(7, dtype=torch.int32), len(x))
        used = bits & ((1 << int(numbers(format).rest_bits)) - 1)
        assert same_bits(*(kernels.round_stochastic(x, numbers(format), some) for some in (bits, used)))


def drawn(x: torch.Tensor, seed: int = 0, step: int = 0, stream: int = 0) -> torch.Tensor:
    return quantize_stochastic(x, E4M3, 0.1, ops.random_bits(x.shape, seed, step, stream, x.device))


class TestReproducibility:
    x = torch.from_numpy(near_values(E4M3, 1000))

    def test_the_same_seed_step_and_stream_draw_the_same(self) -> None:
        assert same_bits(drawn(self.x, 5, 6, 7), drawn(self.x, 5, 6, 7))
        assert same_bits(drawn(self.x.view(10, 100), 5, 6, 7).flatten(), drawn(self.x, 5, 6, 7))

    @pytest.mark.parametrize("other", [(6, 6, 7), (5, 7, 7), (5, 6, 8), (6, 5, 7), (7, 6, 5)], ids=str)
    def test_another_seed_step_or_stream_draws_otherwise(self, other: tuple[int, int, int]) -> None:
        assert (drawn(self.x, *other) != drawn(self.x, 5, 6, 7)).sum() > 100

    @pytest.mark.parametrize("size", [1, 137, 999])
    def test_chunks_draw_as_the_whole(self, size: int) -> None:
        key = torch.tensor(kernels.stream_keys([5], 6, 7)[0], dtype=torch.int32)
        parts = [
            quantize_stochastic(part, E4M3, 0.1, kernels.random_bits(key, len(part), start=torch.tensor(size * i)))
            for i, part in enumerate(self.x.split(size))
        ]
        assert same_bits(torch.cat(parts), drawn(self.x, 5, 6, 7))

    def test_lanes_draw_as_each_alone_in_whatever_order(self) -> None:
        seeds, x = [4, 9, 2, 7, 0], self.x.view(5, 200)
        alone = torch.stack([drawn(lane, seed, 6, 7) for lane, seed in zip(x, seeds, strict=True)])
        for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [3]):
            keys = torch.tensor(kernels.stream_keys([seeds[i] for i in order], 6, 7), dtype=torch.int32)
            expected, lanes = alone[order], x[order]
            assert same_bits(quantize_stochastic(lanes, E4M3, 0.1, kernels.random_bits(keys, 200)), expected)
            assert same_bits(fused.quantize_stochastic(lanes, E4M3, 0.1, keys, torch.empty_like(lanes)), expected)

    @needs_gpu
    @by_name
    def test_a_gpu_draws_the_same(self, format: FP8Format) -> None:
        x = torch.from_numpy(near_values(format, 100_000))
        bits = ops.random_bits(x.shape, 5, 6, 7)
        assert torch.equal(ops.random_bits(x.shape, 5, 6, 7, device="cuda").cpu(), bits)
        expected = quantize_stochastic(x, format, 0.1, bits)
        assert same_bits(quantize_stochastic(x.cuda(), format, 0.1, bits.cuda()).cpu(), expected)
        key = torch.tensor(kernels.stream_keys([5], 6, 7)[0], dtype=torch.int32, device="cuda")
        assert same_bits(fused.quantize_stochastic(x.cuda(), format, 0.1, key, x.cuda()).cpu(), expected)
