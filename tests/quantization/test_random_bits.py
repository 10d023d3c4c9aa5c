"""The random numbers: what they are made of, and that they look like chance, in the low bits too.

They are a fixed function, so a test here passes or fails for good. What is stated is how often numbers that are truly
random would fail it.
"""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from altgrad.quantization import kernels, ops

COUNT = 1 << 17
#: Keys as a run makes them, of successive steps, and keys that differ by one bit, or hold none.
RUN = [key for step in range(4) for key in kernels.stream_keys([0, 1], step, stream=3)]
PLAIN = [0, 1, 2, 4, 1 << 16, 1 << 30, -(2**31), -1]


def bits_of(keys: list[int], count: int = COUNT, start: int = 0) -> Tensor:
    return kernels.random_bits(torch.tensor(keys, dtype=torch.int32), count, start)


def binary(words: Tensor) -> Tensor:
    """±1 for every bit of int32 words, in a new first dimension of 32."""
    places = torch.arange(32, dtype=torch.int32).view(-1, *[1] * words.dim())
    return ((words >> places) & 1).to(torch.float32) * 2 - 1


def chi_square(cells: Tensor, count: int) -> float:
    """The chance of counts as uneven as these, or as even, whichever is less."""
    expected = len(cells) / count
    statistic = float(((torch.bincount(cells, minlength=count) - expected) ** 2 / expected).sum())
    return min(stats.chi2.sf(statistic, count - 1), stats.chi2.cdf(statistic, count - 1))


def z_scores(signs: Tensor) -> Tensor:
    """The sum of ±1 over the last dimension, in standard deviations."""
    return signs.sum(-1) / math.sqrt(signs.shape[-1])


@pytest.mark.parametrize("keys", [RUN, PLAIN], ids=["keys of a run", "plain keys"])
class TestChance:
    def test_every_bit_is_set_half_the_time(self, keys: list[int]) -> None:
        # 2 x 32 bits x 8 keys beyond 6 deviations: 1e-6.
        assert z_scores(binary(bits_of(keys))).abs().max() < 6

    def test_no_bit_tells_another_of_the_same_number(self, keys: list[int]) -> None:
        # 2 x 496 pairs x 8 keys beyond 6.5 deviations: 6e-7.
        signs = binary(bits_of(keys)).transpose(0, 1)
        between = signs @ signs.mT / math.sqrt(COUNT)
        assert between.triu(diagonal=1).abs().max() < 6.5

    @pytest.mark.parametrize("distance", [1, 2, 3, 64, 1024])
    def test_no_bit_tells_one_of_a_later_number(self, keys: list[int], distance: int) -> None:
        # 2 x 5 distances x 1024 pairs x 8 keys beyond 6.5 deviations: 7e-6.
        signs = binary(bits_of(keys, COUNT + distance)).transpose(0, 1)
        between = signs[..., :COUNT] @ signs[..., distance:].mT / math.sqrt(COUNT)
        assert between.abs().max() < 6.5

    def test_no_bit_tells_one_under_another_key(self, keys: list[int]) -> None:
        # 2 x 28 pairs of keys x 1024 pairs of bits beyond 6.5 deviations: 5e-6.
        signs = binary(bits_of(keys)).transpose(0, 1)
        for i in range(len(keys)):
            between = signs[i] @ signs[i + 1 :].mT / math.sqrt(COUNT)
            assert i == len(keys) - 1 or between.abs().max() < 6.5

    @pytest.mark.parametrize("used", range(17, 24))
    def test_what_a_rounding_uses_is_uniform(self, keys: list[int], used: int) -> None:
        # The lowest bits, 23 - M of them, as a number: 2 x 7 widths x 8 keys x 2 sides beyond 1e-7: 2e-5.
        for words in bits_of(keys):
            assert chi_square(((words & ((1 << used) - 1)) >> (used - 8)).long(), 256) > 1e-7

    @pytest.mark.parametrize("place", [0, 8, 16, 24])
    def test_every_byte_is_uniform(self, keys: list[int], place: int) -> None:
        # 2 x 4 bytes x 8 keys x 2 sides beyond 1e-7: 1e-5.
        for words in bits_of(keys):
            assert chi_square(((words >> place) & 0xFF).long(), 256) > 1e-7

    def test_successive_low_bytes_are_independent(self, keys: list[int]) -> None:
        # 65536 cells, two numbers each: 2 x 8 keys x 2 sides beyond 1e-7: 3e-6.
        for words in bits_of(keys, 1 << 20):
            low = (words & 0xFF).long()
            assert chi_square(low[::2] * 256 + low[1::2], 1 << 16) > 1e-7

    def test_far_along_they_are_no_worse(self, keys: list[int]) -> None:
        # 2 x 32 bits x 8 keys beyond 6 deviations: 1e-6.
        assert z_scores(binary(bits_of(keys, start=(1 << 31) - COUNT))).abs().max() < 6


def test_uniform_numbers_have_the_moments_of_uniform_numbers() -> None:
    # The mean of n uniform numbers deviates by 1/sqrt(12 n), their variance by sqrt(1/180 n): beyond 5, 1e-5 in 16.
    u = kernels.uniform_bits(torch.tensor(RUN, dtype=torch.int32), COUNT).double()
    assert u.min() >= 0
    assert u.max() < 1
    assert ((u.mean(-1) - 0.5).abs() < 5 / math.sqrt(12 * COUNT)).all()
    assert ((u.var(-1) - 1 / 12).abs() < 5 * math.sqrt(1 / 180 / COUNT)).all()


def test_they_are_finalized_counters() -> None:
    def mix(h: int) -> int:
        h = (h ^ h >> 16) * 0x7FEB352D & 0xFFFFFFFF
        h = (h ^ h >> 15) * 0x846CA68B & 0xFFFFFFFF
        return h ^ h >> 16

    key = -123456789
    expected = [mix((i * 0x9E3779B9 & 0xFFFFFFFF) ^ (key & 0xFFFFFFFF)) for i in range(1000)]
    assert [word & 0xFFFFFFFF for word in bits_of([key], 1000)[0].tolist()] == expected
    uniform = kernels.uniform_bits(torch.tensor(key, dtype=torch.int32), 1000)
    assert uniform.tolist() == [(h >> 8) * 2.0**-24 for h in expected]


def test_they_depend_on_key_and_index_alone() -> None:
    keys = [5, -9, 2**31 - 1]
    words = bits_of(keys, 100)
    assert torch.equal(bits_of(keys[::-1], 100), words.flip(0))
    assert torch.equal(bits_of(keys, 30, start=70), words[:, 70:])
    assert torch.equal(kernels.random_bits(torch.tensor([[5], [-9]], dtype=torch.int32), 40)[1, 0], words[1, :40])
    uniform = kernels.uniform_bits(torch.tensor(-9, dtype=torch.int32), 40)
    assert torch.equal(uniform * 2**24, ((words[1, :40] >> 8) & 0xFFFFFF).float())


def test_a_tensor_takes_them_in_row_major_order() -> None:
    (key,) = kernels.stream_keys([3], step=4, stream=5)
    words = bits_of([key], 60)[0]
    assert torch.equal(ops.random_bits((3, 4, 5), seed=3, step=4, stream=5), words.view(3, 4, 5))
    assert torch.equal(ops.random_bits((), seed=3, step=4, stream=5), words[0])
    assert ops.random_bits((0, 4), seed=3, step=4).shape == (0, 4)


def test_keys_differ_by_seed_step_and_stream() -> None:
    keys = [
        key
        for step in range(20)
        for stream in range(20)
        for key in kernels.stream_keys(range(20), step=step, stream=stream)
    ]
    assert all(-(2**31) <= key < 2**31 for key in keys)
    # 8000 keys of 32 bits collide 0.0075 times on average; twice in one case of 35,000.
    assert len(set(keys)) >= len(keys) - 1
    assert kernels.stream_keys([3], 1, 2) == kernels.stream_keys([9, 3], 1, 2)[1:]
