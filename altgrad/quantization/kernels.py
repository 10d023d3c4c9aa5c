"""The one expression that rounds to every format, as tensor arithmetic.

Let ``v`` be the value clamped to the largest of the format, and ``u`` the format's spacing (ulp) in the binade of
``v``. Adding ``c = 1.5 * 2**23 * u`` moves ``v`` to where float32's own spacing is ``u``, so the addition rounds it,
nearest, ties to even; subtracting ``c`` brings it back, exactly. The integer difference of the bit patterns of
``v + c`` and ``c`` is the signed significand, from which the rung (the signed code) follows by adding the binade.

The numbers that make a format are tensors, so formats mix freely along a lane axis and a compiled graph serves all.
No function here converts or checks anything: see `altgrad.quantization.ops` for the public door.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.quantization.formats import FP8Format

_EXPONENT_FIELD = 0x7F800000
_HALF = 0x00400000


class FormatNumbers(NamedTuple):
    """The numbers of one format a lane, each of shape ``(lanes,)`` (or a view that broadcasts against the data)."""

    #: float32: the largest finite value.
    max_value: Tensor
    #: int32: rung of the largest finite value.
    max_rung: Tensor
    #: int32: bits of the mantissa field.
    mantissa_bits: Tensor
    #: int32: exponent bias.
    bias: Tensor
    #: int32: float32's exponent field, or 0 where the format is float32 itself (then c = 0 and nothing is rounded).
    exponent_mask: Tensor
    #: int32: float32 exponent bits of the smallest normal value; below it the spacing is constant.
    min_exponent: Tensor
    #: int32: what takes a value's exponent bits to those of c.
    magic_shift: Tensor
    #: int32: the bit that makes c one and a half times a power of two.
    magic_half: Tensor
    #: Some lane reaches so high that c would overflow float32.
    tall: bool

    def view(self, *shape: int) -> "FormatNumbers":
        """The same numbers, each tensor reshaped."""
        return FormatNumbers._make([*(tensor.view(shape) for tensor in self[:-1]), self.tall])


def format_numbers(formats: Sequence[FP8Format], device: torch.device | str | None = None) -> FormatNumbers:
    """The numbers of a list of formats, one a lane, each tensor of shape ``(len(formats),)``."""

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    rounded = [not format.is_identity for format in formats]
    largest = [float("inf") if format.is_identity else format.max_representable_value for format in formats]
    return FormatNumbers(
        max_value=torch.tensor(largest, dtype=torch.float32, device=device),
        max_rung=ints([format.max_code for format in formats]),
        mantissa_bits=ints([format.mantissa_bits for format in formats]),
        bias=ints([format.bias for format in formats]),
        exponent_mask=ints([_EXPONENT_FIELD * keep for keep in rounded]),
        min_exponent=ints([0 if format.is_identity else (128 - format.bias) << 23 for format in formats]),
        magic_shift=ints([0 if format.is_identity else (23 - format.mantissa_bits) << 23 for format in formats]),
        magic_half=ints([_HALF * keep for keep in rounded]),
        tall=any(1e30 < value < float("inf") for value in largest),
    )


def _binade(v: Tensor, n: FormatNumbers) -> Tensor:
    """float32 exponent bits (int32) of the binade whose spacing applies to each value."""
    return torch.maximum(v.view(torch.int32) & n.exponent_mask, n.min_exponent)


def _magic(v: Tensor, n: FormatNumbers) -> Tensor:
    """The constant c of each value."""
    return ((_binade(v, n) + n.magic_shift) | n.magic_half).view(torch.float32)


def _clamped(v: Tensor, n: FormatNumbers) -> Tensor:
    """The values within the format's range; NaN stays NaN. Not ``clamp``: with tensors as bounds it is no SIMD loop."""
    return torch.minimum(torch.maximum(v, -n.max_value), n.max_value)


def _lower(v: Tensor, n: FormatNumbers) -> Tensor | float:
    """A power of two for each value that keeps c finite; multiplying and dividing by it is exact.

    Only tall lanes reach the threshold: lowering a value of another lane could take it under its smallest normal.
    """
    return torch.where(v.abs() >= 2.0**90, 2.0**-32, 1.0) if n.tall else 1.0


def round_nearest(v: Tensor, n: FormatNumbers) -> Tensor:
    """Round float32 values (already divided by the scale) to the nearest on the grid; NaN stays NaN."""
    v = _clamped(v, n)
    if not n.tall:
        c = _magic(v, n)
        return (v + c) - c
    down = _lower(v, n)
    v = v * down
    c = _magic(v, n)
    return ((v + c) - c) / down


def round_stochastic(v: Tensor, n: FormatNumbers, uniform: Tensor) -> Tensor:
    """Round to one of the two neighbours, up with the probability that makes it unbiased in value.

    Args:
        v: float32 values divided by the scale.
        n: the format's numbers.
        uniform: random numbers in [0, 1), multiples of 2**-24, of the shape of ``v``.
    """
    v = _clamped(v, n)
    down = _lower(v, n)
    v = v * down
    c = _magic(v, n)
    nearest = (v + c) - c
    rest = v - nearest
    ulp = (c.view(torch.int32) + 1).view(torch.float32) - c
    return (nearest + torch.where(uniform * ulp < rest.abs(), torch.copysign(ulp, rest), 0.0)) / down


def value_to_rung(q: Tensor, n: FormatNumbers) -> Tensor:
    """The signed code (int32) of values that lie on the grid; 0 for both zeros. Undefined for NaN and float32 lanes."""
    low = q * _lower(q, n) if n.tall else q
    c = _magic(low, n)
    significand = (low + c).view(torch.int32) - c.view(torch.int32)
    binade = ((_binade(q, n) - n.min_exponent) >> 23) << n.mantissa_bits
    return significand + torch.sign(significand) * binade


def rung_to_value(rung: Tensor, n: FormatNumbers) -> Tensor:
    """The float32 value of signed codes of formats up to eight bits; inverse of `value_to_rung`."""
    magnitude = rung.to(torch.int32).abs()
    exponent = (magnitude >> n.mantissa_bits).clamp_min(1)
    significand = magnitude - ((exponent - 1) << n.mantissa_bits)
    power = ((exponent - n.bias - n.mantissa_bits + 127) << 23).view(torch.float32)
    return significand.to(torch.float32) * power * torch.sign(rung)


def power_of_two(exponent: Tensor) -> Tensor:
    """``2**exponent`` of int32 exponents in -252..254, exact on every device; out of float32's range it is 0 or inf."""
    half = exponent >> 1
    return ((half + 127) << 23).view(torch.float32) * ((exponent - half + 127) << 23).view(torch.float32)


def rung_spacing(v: Tensor, n: FormatNumbers) -> Tensor:
    """The distance between neighbouring grid values (one rung) in the binade of each value, subnormals included.

    In a float32 lane it is float32's own spacing. Undefined for NaN.
    """
    v = _clamped(v, n)
    binade = torch.maximum(v.view(torch.int32) & _EXPONENT_FIELD, n.min_exponent.clamp_min(1 << 23))
    return power_of_two((binade >> 23) - 127 - n.mantissa_bits)


def _mix(h: Tensor) -> Tensor:
    """The 32-bit finalizer of MurmurHash3, on int32 tensors with wrap-around."""
    h = (h ^ ((h >> 16) & 0xFFFF)) * -0x7A143595
    h = (h ^ ((h >> 13) & 0x7FFFF)) * -0x3D4D51CB
    return h ^ ((h >> 16) & 0xFFFF)


def stream_keys(seeds: Sequence[int], step: int, stream: int) -> list[int]:
    """One int32 key for each seed, step and stream (which matrix, which use): what `uniform_bits` is counted from."""

    def key(seed: int) -> int:
        h = 0x9E3779B97F4A7C15
        for word in (seed, step, stream):
            h = ((h ^ word) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            h ^= h >> 29
        return (h >> 32) - (1 << 31)

    return [key(seed) for seed in seeds]


def uniform_bits(keys: Tensor, count: int) -> Tensor:
    """Random numbers in [0, 1), multiples of 2**-24, each a hash of its key and its index alone.

    Args:
        keys: int32 keys, of any shape.
        count: numbers for each key.

    Returns:
        float32 of shape ``(*keys.shape, count)``: independent of lane order, chunking and device.
    """
    index = torch.arange(count, dtype=torch.int32, device=keys.device)
    h = _mix(_mix(index * -0x61C88647) ^ keys.unsqueeze(-1))
    return ((h >> 8) & 0xFFFFFF).to(torch.float32) * 2.0**-24
