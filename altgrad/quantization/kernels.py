"""The one expression that rounds to every format, as tensor arithmetic.

Let ``v`` be the value clamped to the largest of the format, and ``u`` the format's spacing (ulp) in the binade of
``v``. Adding ``c = 1.5 * 2**23 * u`` moves ``v`` to where float32's own spacing is ``u``, so the addition rounds it,
nearest, ties to even; subtracting ``c`` brings it back, exactly. The integer difference of the bit patterns of
``v + c`` and ``c`` is the signed significand, from which the rung (the signed code) follows by adding the binade.
docs/formats.md derives it.

The numbers that make a format are tensors, so formats mix freely along a lane axis and one compiled graph serves all.
No function here converts or checks anything: see `altgrad.quantization.ops` for the public door.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.quantization.formats import FP8Format

_EXPONENT_FIELD = 0x7F800000
_SIGN = -0x80000000
#: All bits of a float32 but its sign. What they say as integers is in the order of the magnitudes.
MAGNITUDE = 0x7FFFFFFF
_HALF = 0x00400000
_ONE = 127 << 23
#: Exponents from which c could overflow (2**90), and how far such values are lowered (2**32).
_TALL, _LIFT = 217 << 23, 32 << 23


def largest_magnitudes(x: Tensor, keepdim: bool = False) -> Tensor:
    """Of float32 matrices ``(..., m, n)`` one each, ``(...)``; NaN where a matrix has any.

    >>> largest_magnitudes(torch.tensor([[1.0, -2.0], [0.0, 0.5]]))
    tensor(2.)
    """
    return (x.view(torch.int32) & MAGNITUDE).amax((-1, -2), keepdim).view(torch.float32)


class FormatNumbers(NamedTuple):
    """The numbers of one format a lane, each of shape ``(lanes,)`` (or a view that broadcasts against the data).

    Fixed point is told as the format with one exponent bit that has the same grid: E0M7 as E1M6 scaled by a quarter.
    """

    #: float32: the largest finite value.
    max_value: Tensor
    #: int32: rung of the largest finite value.
    max_rung: Tensor
    #: int32: the smallest magnitude of a code that is NaN; codes between the largest value and it are infinite.
    nan_code: Tensor
    #: int32: bits of the mantissa field.
    mantissa_bits: Tensor
    #: int32: exponent bias.
    bias: Tensor
    #: int32: float32's exponent field, or 0 where the format is float32 itself (then c = 0 and nothing is rounded).
    exponent_mask: Tensor
    #: int32: float32 exponent bits of the smallest normal value; below it the spacing is constant.
    min_exponent: Tensor
    #: int32: float32's mantissa bits that the format has not, ``23 - mantissa_bits``.
    rest_bits: Tensor
    #: int32: what makes c's bits of a binade's exponent bits, c being one and a half times a power of two.
    magic: Tensor
    #: Some lane reaches so high that c would overflow float32: bf16 alone, which so has a compiled graph of its own.
    tall: bool

    def view(self, *shape: int) -> "FormatNumbers":
        """The same numbers, each tensor reshaped."""
        return FormatNumbers._make([*(tensor.view(shape) for tensor in self[:-1]), self.tall])


def format_numbers(formats: Sequence[FP8Format], device: torch.device | str | None = None) -> FormatNumbers:
    """The numbers of a list of formats, one a lane, each tensor of shape ``(len(formats),)``.

    >>> from altgrad.quantization.formats import E4M3, E7M0
    >>> format_numbers([E4M3, E7M0]).max_rung
    tensor([126, 127], dtype=torch.int32)
    """

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    rounded = [not format.is_identity for format in formats]
    largest = [float("inf") if format.is_identity else format.max_representable_value for format in formats]
    mantissa_bits = [format.significand_bits for format in formats]
    biases = [format.bias + format.mantissa_bits - bits for format, bits in zip(formats, mantissa_bits, strict=True)]
    return FormatNumbers(
        max_value=torch.tensor(largest, dtype=torch.float32, device=device),
        max_rung=ints([format.max_code for format in formats]),
        nan_code=ints([format.max_code + 1 + format.has_inf for format in formats]),
        mantissa_bits=ints(mantissa_bits),
        bias=ints(biases),
        exponent_mask=ints([_EXPONENT_FIELD * keep for keep in rounded]),
        min_exponent=ints([((128 - bias) << 23) * keep for bias, keep in zip(biases, rounded, strict=True)]),
        rest_bits=ints([23 - bits for bits in mantissa_bits]),
        magic=ints([((23 - bits << 23) | _HALF) * keep for bits, keep in zip(mantissa_bits, rounded, strict=True)]),
        tall=any(1e30 < value < float("inf") for value in largest),
    )


def _binade(v: Tensor, n: FormatNumbers) -> Tensor:
    """float32 exponent bits (int32) of the binade whose spacing applies to each value."""
    return (v.view(torch.int32) & n.exponent_mask).clamp_min_(n.min_exponent)


def _clamped(v: Tensor, n: FormatNumbers) -> Tensor:
    """The values within the format's range, in memory of their own; NaN stays NaN.

    Not ``clamp``: with two tensors as bounds it is no SIMD loop.
    """
    return v.clamp_min(-n.max_value).clamp_max_(n.max_value)


class _Moved(NamedTuple):
    """Values where float32's spacing is the format's."""

    #: ``v + c`` and ``c``.
    moved: Tensor
    c: Tensor
    #: By how much exponents (bits) were lowered first; None where no lane has such.
    lift: Tensor | None

    def back(self, q: Tensor) -> Tensor:
        """``moved - c`` as the values they stand for."""
        return q if self.lift is None else q * (_ONE + self.lift).view(torch.float32)


def _moved(v: Tensor, n: FormatNumbers) -> _Moved:
    """Move values in the format's range; they are written over."""
    exponent, lift = _binade(v, n), None
    if n.tall:
        # Where c would overflow, the value is lowered by a power of two and the result raised again: both exact.
        lift = ~((exponent - _TALL) >> 31) & _LIFT
        v, exponent = v * (_ONE - lift).view(torch.float32), exponent - lift
    c = exponent.add_(n.magic).view(torch.float32)
    return _Moved(v.add_(c), c, lift)


def round_nearest(v: Tensor, n: FormatNumbers) -> Tensor:
    """Round float32 values (already divided by the scale) to the nearest on the grid; NaN stays NaN.

    >>> from altgrad.quantization.formats import E4M3, E7M0
    >>> round_nearest(torch.tensor([[0.3, 500.0], [0.3, 500.0]]), format_numbers([E4M3, E7M0]).view(-1, 1))
    tensor([[3.1250e-01, 4.4800e+02],
            [2.5000e-01, 5.1200e+02]])
    """
    return _rounded(_clamped(v, n), n)


def _rounded(v: Tensor, n: FormatNumbers) -> Tensor:
    """Values in the format's range, which are written over."""
    to = _moved(v, n)
    return to.back(to.moved.sub_(to.c))


class Edges(NamedTuple):
    """Thresholds of one format a lane, as bits of float32 magnitudes: int32, ``(lanes,)``.

    Bits of magnitudes are in the order of the magnitudes, and integers are compared and counted faster than floats.
    """

    #: The largest that rounds to zero.
    to_zero: Tensor
    #: The largest that does not round to the largest value.
    below_end: Tensor

    def view(self, *shape: int) -> "Edges":
        """The same, each tensor reshaped."""
        return Edges._make(tensor.view(shape) for tensor in self)


def format_edges(formats: Sequence[FP8Format], device: torch.device | str | None = None) -> Edges:
    """Where rounding gives zero, and where the largest value; what it says of float32 itself means nothing.

    >>> from altgrad.quantization.formats import E4M3
    >>> format_edges([E4M3]).to_zero.view(torch.float32)  # half of the smallest value, 2**-9
    tensor([0.0010])
    """
    return Edges(*torch.tensor([_edges(format) for format in formats], dtype=torch.int32, device=device).unbind(1))


@functools.cache
def _edges(format: FP8Format) -> tuple[int, int]:
    """Found by asking the rounding itself, which is monotonic."""
    numbers = format_numbers([format])

    def last(holds: Callable[[float], bool]) -> int:
        low, high = 0, _EXPONENT_FIELD
        while high - low > 1:
            middle = (low + high) // 2
            value = torch.tensor([middle], dtype=torch.int32).view(torch.float32)
            low, high = (middle, high) if holds(round_nearest(value, numbers).item()) else (low, middle)
        return low

    return last(lambda rounded: rounded == 0), last(lambda rounded: rounded < format.max_representable_value)


def round_and_count(
    v: Tensor, n: FormatNumbers, edges: Edges, count: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """`round_nearest`, how many values it puts on the last rung, and how many it rounds to zero though they are not.

    Of values that are not finite, and in float32 lanes, the counts mean nothing.

    Args:
        v: float32 values divided by the scale.
        n: the format's numbers.
        edges: its thresholds.
        count: how marks are counted: int32 of the shape of ``v``, 0, 1 or -1, to their sum along any dimensions.

    >>> from altgrad.quantization.formats import E4M3
    >>> v = torch.tensor([0.0, 0.0009, 0.3, -440.0])
    >>> round_and_count(v, format_numbers([E4M3]), format_edges([E4M3]), torch.sum)[1:]
    (tensor(1), tensor(1))
    """
    v = _clamped(v, n)
    magnitude = v.view(torch.int32) & MAGNITUDE
    # One after another: eagerly the marks of one count lie where those of the last one lay.
    at_end = -count((edges.below_end - magnitude).bitwise_right_shift_(31))
    lost = count((edges.to_zero - magnitude).bitwise_right_shift_(31)) + count(magnitude.clamp_max_(1))
    return _rounded(v, n), at_end, lost


def round_to_rungs(v: Tensor, n: FormatNumbers) -> tuple[Tensor, Tensor]:
    """`round_nearest`, and the rung (signed code, int32) of each result: 0 for both zeros.

    Rungs of NaN and of float32 lanes are undefined.

    >>> from altgrad.quantization.formats import E4M3
    >>> round_to_rungs(torch.tensor([0.3, -0.3]), format_numbers([E4M3]))
    (tensor([ 0.3125, -0.3125]), tensor([ 42, -42], dtype=torch.int32))
    """
    to = _moved(_clamped(v, n), n)
    c = to.c.view(torch.int32)
    significand = to.moved.view(torch.int32) - c
    exponent = c - (n.min_exponent + n.magic)
    binade = (exponent if to.lift is None else exponent + to.lift).bitwise_right_shift_(n.rest_bits)
    rungs = significand.addcmul_(significand.clamp(-1, 1), binade)
    return to.back(to.moved.sub_(to.c)), rungs


def value_to_rung(q: Tensor, n: FormatNumbers) -> Tensor:
    """The rung (int32) of values that lie on the grid; see `round_to_rungs`.

    >>> from altgrad.quantization.formats import E4M3
    >>> value_to_rung(torch.tensor([0.3125, 0.0, -448.0]), format_numbers([E4M3]))
    tensor([  42,    0, -126], dtype=torch.int32)
    """
    return round_to_rungs(q, n)[1]


def rung_to_value(rung: Tensor, n: FormatNumbers) -> Tensor:
    """The float32 value of rungs of formats up to eight bits; inverse of `value_to_rung`.

    >>> from altgrad.quantization.formats import E4M3
    >>> rung_to_value(torch.tensor([42, 0, -126]), format_numbers([E4M3]))
    tensor([ 3.1250e-01,  0.0000e+00, -4.4800e+02])
    """
    rung = rung.to(torch.int32)
    magnitude = rung.abs()
    binade = ((magnitude >> n.mantissa_bits) - 1).clamp_min(0)
    significand = torch.addcmul(rung, rung.clamp(-1, 1), binade << n.mantissa_bits, value=-1)
    power = ((binade + (128 - n.bias - n.mantissa_bits)) << 23).view(torch.float32)
    return significand.to(torch.float32) * power


def step_rungs(rung: Tensor, steps: Tensor, n: FormatNumbers) -> Tensor:
    """Rungs (int32) moved by whole steps of any integer dtype, up where positive, as far as the ends of the grid.

    >>> from altgrad.quantization.formats import E4M3
    >>> step_rungs(torch.tensor([0, 120], dtype=torch.int32), torch.tensor([-1, 10]), format_numbers([E4M3]))
    tensor([ -1, 126], dtype=torch.int32)
    """
    if steps.dtype not in (torch.int8, torch.uint8, torch.int16):  # no sum below leaves int32
        steps = steps.to(torch.int64).clamp(-(2**17), 2**17)
    return torch.minimum(torch.maximum(rung + steps.to(torch.int32), -n.max_rung), n.max_rung)


def round_stochastic(v: Tensor, n: FormatNumbers, bits: Tensor) -> Tensor:
    """Round to one of the two neighbours, outward with the probability that makes it unbiased in value.

    Random bits are added where the format has no bits left, and what carries goes up. For normal values each outcome
    has exactly its probability. Subnormal values are first rounded to what the random bits resolve, so that it is off
    by at most half of ``2**-rest_bits``.

    Args:
        v: float32 values divided by the scale.
        n: the format's numbers.
        bits: random int32 (`random_bits`) of the shape of ``v``, of which the low ``n.rest_bits`` bits are used.

    >>> from altgrad.quantization.formats import E4M3
    >>> bits = torch.tensor([0, -1], dtype=torch.int32)
    >>> round_stochastic(torch.tensor([0.3, 0.3]), format_numbers([E4M3]), bits)
    tensor([0.2812, 0.3125])
    """
    v = _clamped(v, n)
    pattern = v.view(torch.int32)
    subnormal = ((pattern & _EXPONENT_FIELD) - n.min_exponent) >> 31  # all ones, or zero
    # Beside the smallest normal value a subnormal one has its fixed spacing in the bits where a normal one has it.
    base = ((subnormal & n.min_exponent) | (pattern & _SIGN)).view(torch.float32)
    drawn = (v + base).view(torch.int32) + (bits & ((1 << n.rest_bits) - 1))
    q = ((drawn >> n.rest_bits) << n.rest_bits).view(torch.float32) - base
    return torch.minimum(q, v.abs() + math.inf)  # NaN, where a carry took it out of the NaNs


def rung_spacing(v: Tensor, n: FormatNumbers) -> Tensor:
    """The distance between neighbouring grid values (one rung) in the binade of each value, subnormals included.

    In a float32 lane it is float32's own spacing. Undefined for NaN.

    >>> from altgrad.quantization.formats import E4M3
    >>> rung_spacing(torch.tensor([0.0, 1.0, 300.0]), format_numbers([E4M3]))
    tensor([1.9531e-03, 1.2500e-01, 3.2000e+01])
    """
    v = _clamped(v, n)
    binade = (v.view(torch.int32) & _EXPONENT_FIELD).clamp_min_(n.min_exponent.clamp_min(1 << 23))
    return power_of_two(binade.bitwise_right_shift_(23).sub_(n.mantissa_bits + 127))


def power_of_two(exponent: Tensor) -> Tensor:
    """``2**exponent`` of int32 exponents in -252..254, exact on every device; out of float32's range it is 0 or inf.

    >>> power_of_two(torch.tensor([-149, 0, 10], dtype=torch.int32))
    tensor([1.4013e-45, 1.0000e+00, 1.0240e+03])
    """
    half = exponent >> 1
    return _small_power_of_two(exponent - half).mul_(_small_power_of_two(half))


def _small_power_of_two(exponent: Tensor) -> Tensor:
    """Of exponents in -126..127, which are written over."""
    return exponent.add_(127).bitwise_left_shift_(23).view(torch.float32)


def _mix(h: Tensor) -> Tensor:
    """A 32-bit finalizer, on int32 tensors with wrap-around: ``lowbias32`` of https://nullprogram.com/blog/2018/07/31.

    ``h`` is written over.
    """
    h = h.bitwise_xor_((h >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    h = h.bitwise_xor_((h >> 15).bitwise_and_(0x1FFFF)).mul_(-0x7B935975)
    return h.bitwise_xor_((h >> 16).bitwise_and_(0xFFFF))


def stream_keys(seeds: Sequence[int], step: int, stream: int) -> list[int]:
    """One int32 key for each seed, step and stream (which matrix, which use): what `random_bits` count from.

    >>> stream_keys([0, 1], step=7, stream=2) == [*stream_keys([0], 7, 2), *stream_keys([1], 7, 2)]
    True
    """

    def key(seed: int) -> int:
        h = 0x9E3779B97F4A7C15
        for word in (seed, step, stream):
            h = ((h ^ word) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            h ^= h >> 29
        return (h >> 32) - (1 << 31)

    return [key(seed) for seed in seeds]


def random_bits(keys: Tensor, count: int, start: int | Tensor = 0) -> Tensor:
    """Random int32, each a hash of its key and its index alone: independent of lane order, chunking and device.

    Args:
        keys: int32 keys, of any shape.
        count: numbers for each key.
        start: index of the first.

    Returns:
        int32 of shape ``(*keys.shape, count)``.

    >>> keys = torch.tensor([3, 5], dtype=torch.int32)
    >>> torch.equal(random_bits(keys, 100)[1, 40:], random_bits(keys[1], 60, start=40))
    True
    """
    index = torch.arange(count, dtype=torch.int32, device=keys.device) + start
    return _mix((index * -0x61C88647) ^ keys.unsqueeze(-1))


def uniform_bits(keys: Tensor, count: int) -> Tensor:
    """`random_bits` as float32 numbers in [0, 1), multiples of 2**-24.

    >>> uniform_bits(torch.tensor(3, dtype=torch.int32), 3)
    tensor([0.3279, 0.6223, 0.1254])
    """
    return (random_bits(keys, count) >> 8).bitwise_and_(0xFFFFFF).to(torch.float32).mul_(2.0**-24)
