"""Every way to round, against gfloat: where rounding goes wrong first, and on ten million values of all sizes."""

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases import ROUNDED_FORMATS, by_every_name, by_name, by_rounded_name, needs_gpu, numbers
from grid_oracle import (
    edge_values,
    gfloat_codes,
    gfloat_decode,
    gfloat_round,
    near_values,
    random_values,
    same_bits,
    special_values,
)
from torch import Tensor

from altgrad.quantization import fused, kernels, ops
from altgrad.quantization.formats import E3M4, FP8_FORMATS, FP32, FP8Format

pytestmark = pytest.mark.usefixtures("honest_compilation")

Way = Callable[[Tensor, FP8Format], Tensor]


def scalar(x: Tensor, format: FP8Format) -> Tensor:
    return torch.tensor([format.to_real(format.to_bits(value)) for value in x.tolist()]) + 0.0


def through_codes(x: Tensor, format: FP8Format) -> Tensor:
    return ops.decode(ops.encode(x, format), format) + 0.0  # codes keep the sign of zero


def through_states(x: Tensor, format: FP8Format) -> Tensor:
    return fused.decode_states(ops.grid_state(x, format, 1.0), format, 1.0, out=torch.empty_like(x))


def through_rungs(x: Tensor, format: FP8Format) -> Tensor:
    n = numbers(format, x.device)
    return kernels.rung_to_value(kernels.round_to_rungs(x, n)[1], n)


def counted(x: Tensor, format: FP8Format) -> tuple[Tensor, Tensor]:
    """Values and states in one pass, checked to count the states that are not zero."""
    q, before = torch.empty_like(x), torch.zeros(x.shape, dtype=torch.int8, device=x.device)
    after = torch.empty_like(before)
    assert fused.quantize_and_count(x, format, 1.0, before, after, out=q) == after.count_nonzero()
    return q, after


@functools.cache
def compiled_quantize() -> Callable[..., Tensor]:
    return torch.compile(
        ops.quantize, fullgraph=True, backend="inductor" if fused.engine("cpu").name == "compiled" else "eager"
    )


def compiled(x: Tensor, format: FP8Format) -> Tensor:
    return compiled_quantize()(x, numbers(format, x.device), torch.ones((), device=x.device))


WAYS: dict[str, Way] = {
    "the kernel": lambda x, format: kernels.round_nearest(x, numbers(format, x.device)),
    "the kernel with rungs": lambda x, format: kernels.round_to_rungs(x, numbers(format, x.device))[0],
    "quantize": lambda x, format: ops.quantize(x, format, 1.0),
    "fused.quantize": lambda x, format: fused.quantize(x, format, 1.0, out=torch.empty_like(x)),
    "quantize, compiled by the caller": compiled,
}
WAYS_OF_EIGHT_BITS: dict[str, Way] = {
    "quantize_and_count": lambda x, format: counted(x, format)[0],
    "through codes": through_codes,
    "through rungs": through_rungs,
    "through states": through_states,
}
EVERY_WAY = {"scalar": scalar, **WAYS, **WAYS_OF_EIGHT_BITS}

by_way = pytest.mark.parametrize(
    ("format", "way"),
    [
        pytest.param(format, way, id=f"{format.name}-{way}")
        for format in ROUNDED_FORMATS
        for way in EVERY_WAY
        if format in FP8_FORMATS or way not in WAYS_OF_EIGHT_BITS
    ],
)

RUNGS: dict[str, Way] = {
    "scalar": lambda x, format: ops.rung(torch.tensor([format.to_bits(v) for v in x.tolist()]).to(torch.uint8)),
    "the kernel": lambda x, format: kernels.round_to_rungs(x, numbers(format, x.device))[1],
    "the kernel, of rounded values": lambda x, format: kernels.value_to_rung(
        ops.quantize(x, format, 1.0), numbers(format, x.device)
    ),
    "codes": lambda x, format: ops.rung(ops.encode(x, format)),
    "grid_state": lambda x, format: ops.grid_state(x, format, 1.0),
    "quantize_and_count": lambda x, format: counted(x, format)[1],
}


@functools.cache
def edges(format: FP8Format) -> tuple[Tensor, np.ndarray, Tensor]:
    """Hard inputs, what gfloat makes of them, and the same as float32 without the sign of zero."""
    values = np.concatenate([edge_values(format), near_values(format, 20_000)])
    rounded = gfloat_round(format, values)
    return torch.from_numpy(values), rounded, torch.from_numpy(rounded.astype(np.float32) + 0.0)


def codes_and_rungs(format: FP8Format, rounded: np.ndarray) -> tuple[Tensor, Tensor]:
    """gfloat's codes of rounded values, int32, and their signed magnitudes."""
    codes, sign = torch.from_numpy(gfloat_codes(format, rounded)), 1 << (format.bits - 1)
    return codes, torch.where(codes < sign, codes, sign - codes)


@by_way
def test_rounds_as_gfloat_where_it_is_hard(format: FP8Format, way: str) -> None:
    x, _, expected = edges(format)
    assert same_bits(EVERY_WAY[way](x, format), expected)


@by_name
@pytest.mark.parametrize("way", RUNGS)
def test_finds_gfloats_rungs_where_it_is_hard(format: FP8Format, way: str) -> None:
    x, rounded, _ = edges(format)
    assert torch.equal(RUNGS[way](x, format).int(), codes_and_rungs(format, rounded)[1])


@by_name
def test_encodes_as_gfloat_where_it_is_hard(format: FP8Format) -> None:
    x, rounded, _ = edges(format)
    expected, _ = codes_and_rungs(format, rounded)
    assert torch.equal(ops.encode(x, format).int(), expected)
    assert [format.to_bits(value) for value in x.tolist()] == expected.tolist()


@by_rounded_name
def test_rounds_as_gfloat_on_ten_million_values(format: FP8Format) -> None:
    # In pieces that stay in a cache, where gfloat is twice as fast, yet large enough for programs that use threads.
    n, out = numbers(format), torch.empty(100_000)
    for seed in range(100):
        values = random_values(100_000, seed)
        x, rounded = torch.from_numpy(values), gfloat_round(format, values)
        expected, (codes, rungs) = torch.from_numpy(rounded.astype(np.float32) + 0.0), codes_and_rungs(format, rounded)
        q, ours = kernels.round_to_rungs(x, n)
        assert same_bits(q, expected)
        assert torch.equal(ours, rungs)
        assert same_bits(fused.quantize(x, format, 1.0, out), expected)
        if format in FP8_FORMATS:
            states = counted(x, format)[1]
            assert torch.equal(states.int(), rungs)
            assert torch.equal(ops.encode(x, format).int(), codes)
            assert same_bits(fused.decode_states(states, format, 1.0, out), expected)


@by_rounded_name
def test_the_scalar_code_on_values_of_all_sizes(format: FP8Format) -> None:
    # A hundred thousand: it is two hundred times slower than the kernels, which are compared on ten million.
    x = torch.from_numpy(random_values(100_000, seed=11))
    assert same_bits(scalar(x, format), ops.quantize(x, format, 1.0))


@pytest.mark.parametrize("way", WAYS)
def test_float32_itself_is_left_alone(way: str) -> None:
    x = torch.from_numpy(np.concatenate([special_values(), random_values(1_000_000)]))
    assert same_bits(WAYS[way](x, FP32), x + 0.0)


@by_name
def test_every_code_decodes_as_in_gfloat(format: FP8Format) -> None:
    theirs = torch.from_numpy(gfloat_decode(format).astype(np.float32))
    codes = torch.arange(256, dtype=torch.uint8)
    for ours in (ops.decode(codes, format), torch.tensor([format.to_real(code) for code in range(256)])):
        assert same_bits(ours, theirs)
    assert ops.decode(codes, format).signbit().tolist() == [False] * 128 + [True] * 128


@by_name
def test_every_state_decodes_to_its_rung(format: FP8Format) -> None:
    rungs = torch.arange(-format.max_code, format.max_code + 1, dtype=torch.int8)
    expected = torch.tensor([math.copysign(1.0, rung) * format.to_real(abs(rung)) for rung in rungs.tolist()]) + 0.0
    assert same_bits(fused.decode_states(rungs, format, 1.0, torch.empty(rungs.shape)), expected)
    assert same_bits(kernels.rung_to_value(rungs, numbers(format)), expected)


@by_every_name
def test_nan_stays_nan_whatever_its_bits(format: FP8Format) -> None:
    payloads = torch.tensor([0x7FC00000, 0x7F800001, 0x7FFFFFFF, -0x400000, -0x7FFFFF, -1], dtype=torch.int32)
    x = torch.cat([payloads.view(torch.float32), torch.ones(27)])
    with_states = ("quantize_and_count", "through states") if format.bits == 8 else ()
    for way in (*WAYS, *with_states):
        assert EVERY_WAY[way](x, format).isnan().tolist() == [True] * 6 + [False] * 27, way


@by_name
def test_nan_encodes_or_is_an_error(format: FP8Format) -> None:
    x = torch.tensor([math.nan, -math.nan, 1.0])
    if format.has_nan:
        assert ops.encode(x, format).tolist()[:2] == [0x7F, 0xFF] == [format.to_bits(value) for value in x.tolist()[:2]]
        assert ops.decode(ops.encode(x, format), format).isnan().tolist() == [True, True, False]
    else:
        with pytest.raises(ValueError, match=f"{format.name} has no code for NaN, got 2 of 3 elements"):
            ops.encode(x, format)


@by_name
def test_nan_is_a_state_of_its_own(format: FP8Format) -> None:
    x = torch.tensor([math.nan, -math.nan, 1.0, -1e30])
    states = ops.grid_state(x, format, 1.0)
    assert states.tolist()[:2] == [ops.NAN_STATE] * 2
    assert states.tolist()[3] == -format.max_code
    assert torch.equal(counted(x, format)[1], states)


@needs_gpu
@by_rounded_name
def test_a_gpu_gives_the_same_bits(format: FP8Format) -> None:
    x = torch.cat([edges(format)[0], torch.from_numpy(random_values(1_000_000)), torch.tensor([math.nan])])
    for name, way in (WAYS | (WAYS_OF_EIGHT_BITS if format in FP8_FORMATS else {})).items():
        values = x if name != "through codes" or format.has_nan else x[:-1]
        assert same_bits(way(values.cuda(), format).cpu(), way(values, format)), name


@needs_gpu
@by_rounded_name
def test_a_gpu_divides_as_a_cpu_does(format: FP8Format) -> None:
    for scale in (0.1, 3.7e-5, 1234.5):
        x = torch.from_numpy(near_values(format, 1_000_000)) * scale
        expected, there = ops.quantize(x, format, scale), x.cuda()
        assert same_bits(ops.quantize(there, format, scale).cpu(), expected)
        assert same_bits(fused.quantize(there, format, scale, out=torch.empty_like(there)).cpu(), expected)


def test_the_one_exception_is_the_tie_without_mantissa_bits() -> None:
    # Everywhere else the tie goes to the even code; E7M0 has one even neighbour less and takes the larger magnitude.
    format = next(format for format in FP8_FORMATS if format.mantissa_bits == 0)
    ties = torch.tensor([1.5, 3.0, -6.0, 1.5 * 2.0**-62, -(2.0**-63), 2.0**-63])
    assert ops.quantize(ties, format, 1.0).tolist() == [2.0, 4.0, -8.0, 2.0**-61, 0.0, 0.0]
    assert ops.quantize(torch.tensor([1 + 2.0**-5, 1 + 3 * 2.0**-5]), E3M4, 1.0).tolist() == [1.0, 1.125]
