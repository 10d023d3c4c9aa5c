"""Rounding to a format by integer arithmetic on float32 bit patterns: no float is added, no code of altgrad is used.

A float32 magnitude is ``s * 2**(e - 150)`` with a significand ``s < 2**24`` and an exponent field ``e >= 1``. A format
keeps the bits of ``s`` from its own spacing upward; the others are shifted out and decide which way it goes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.quantization.formats import FP8Format

#: The rung given to NaN, which has none.
NAN_RUNG = -128
NAN_PATTERN = 0x7FC00000
_INFINITY = 0x7F800000


class Rounded(NamedTuple):
    """What float32 patterns become in a format, int32 tensors."""

    #: float32 patterns: zero without a sign, NaN as 0x7FC00000.
    patterns: Tensor
    #: Signed codes; `NAN_RUNG` for NaN.
    rungs: Tensor


def round_by_integers(patterns: Tensor, format: FP8Format) -> Rounded:
    """Round int32 float32 patterns to the nearest of a format, ties to the even significand, saturating.

    Without mantissa bits every significand in the range of normal values is the odd 1, so that a tie goes to the
    larger magnitude, and half the smallest value goes to zero: the documented exception follows from the rule.

    >>> from altgrad.quantization.formats import E4M3
    >>> pattern = torch.tensor([0.3]).view(torch.int32)
    >>> values, rungs = round_by_integers(pattern, E4M3)
    >>> values.view(torch.float32), rungs
    (tensor([0.3125]), tensor([42], dtype=torch.int32))
    """
    magnitude = patterns & 0x7FFFFFFF
    is_nan = (_INFINITY - magnitude) >> 31  # masks of all ones or none: booleans would double the time
    magnitude.clamp_max_(largest_pattern(format))
    exponent = (magnitude >> 23).clamp_min_(1)
    below = (exponent - 1) << 23
    significand = magnitude.sub_(below)
    # Bits shifted out: as many as the format lacks, and one more for each binade below its smallest normal value.
    # All 24 and one more give zero, as any larger number of them would.
    lost = (151 - format.bias - format.mantissa_bits - exponent).clamp_(23 - format.mantissa_bits, 25)
    odd = (significand >> lost) & 1
    almost_half = (torch.ones_like(lost) << (lost - 1)).sub_(1)
    kept = significand.add_(almost_half).add_(odd) >> lost
    sign, is_zero = patterns >> 31, (kept - 1) >> 31
    # The new significand beside the old exponent: what carries out of it raises the exponent by itself.
    value = (kept << lost).add_(below).bitwise_or_(sign << 31).bitwise_and_(~is_zero)
    rung = (exponent + (format.bias - 128)).clamp_min_(0).mul_(1 << format.mantissa_bits).add_(kept)
    rung.bitwise_xor_(sign).sub_(sign)
    return Rounded(*(_replace(t, is_nan, by) for t, by in ((value, NAN_PATTERN), (rung, NAN_RUNG))))


def _replace(t: Tensor, mask: Tensor, by: int) -> Tensor:
    """``by`` where the mask is all ones."""
    return t.bitwise_and_(~mask).bitwise_or_(mask & by)


def largest_code(format: FP8Format) -> int:
    """The code of the largest finite value: all ones, less what infinity and NaN take."""
    all_ones = (1 << (format.exponent_bits + format.mantissa_bits)) - 1
    return all_ones - ((1 << format.mantissa_bits) if format.has_inf else int(format.has_nan))


def largest_pattern(format: FP8Format) -> int:
    """The float32 pattern of the largest finite value."""
    code = largest_code(format)
    field, mantissa = code >> format.mantissa_bits, code & ((1 << format.mantissa_bits) - 1)
    significand = mantissa + ((1 << format.mantissa_bits) if field else 0)
    lowest_bit = max(field, 1) - format.bias - format.mantissa_bits
    top_bit = significand.bit_length() - 1
    return ((lowest_bit + top_bit + 126) << 23) + (significand << (23 - top_bit))
