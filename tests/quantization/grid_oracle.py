"""Outside opinions on the formats (gfloat), and the inputs on which rounding goes wrong first."""

import gfloat
import numpy as np
import torch
from gfloat.formats import (
    format_info_bfloat16,
    format_info_binary16,
    format_info_ocp_e4m3,
    format_info_ocp_e5m2,
)

from altgrad.quantization.formats import FP8Format

_READY_MADE = {
    "E4M3": format_info_ocp_e4m3,
    "E5M2": format_info_ocp_e5m2,
    "bf16": format_info_bfloat16,
    "fp16": format_info_binary16,
}


def gfloat_info(format: FP8Format) -> gfloat.FormatInfo:
    """The same format in gfloat's terms."""
    if format.name in _READY_MADE:
        return _READY_MADE[format.name]
    return gfloat.FormatInfo(
        format.name,
        k=8,
        # Fixed point has no implicit leading one: its seven bits are all mantissa.
        precision=format.mantissa_bits + 1,
        bias=format.bias,
        is_signed=True,
        domain=gfloat.Domain.Finite,
        has_nz=True,
        num_high_nans=0,
        has_subnormals=True,
        is_twos_complement=False,
    )


def gfloat_round(format: FP8Format, values: np.ndarray) -> np.ndarray:
    """gfloat's rounding: ties to even, saturating.

    At M=0 ties go to the larger magnitude instead, but half the smallest value to zero.
    """
    values = values.astype(np.float64)
    if format.mantissa_bits:
        return gfloat.round_ndarray(gfloat_info(format), values, gfloat.RoundMode.TiesToEven, sat=True)
    away = gfloat.round_ndarray(gfloat_info(format), values, gfloat.RoundMode.TiesToAway, sat=True)
    return np.where(np.abs(values) * 2 == format.min_positive_value, np.copysign(0.0, values), away)


def gfloat_codes(format: FP8Format, rounded: np.ndarray) -> np.ndarray:
    """gfloat's codes (int32) of what `gfloat_round` returned."""
    return gfloat.encode_ndarray(gfloat_info(format), rounded).astype(np.int32)


def gfloat_decode(format: FP8Format) -> np.ndarray:
    """gfloat's value of every code."""
    return gfloat.decode_ndarray(gfloat_info(format), np.arange(1 << format.bits))


def grid(format: FP8Format) -> np.ndarray:
    """All finite values, sorted, zero once."""
    positive = [format.to_real(code) for code in range(1, format.max_code + 1)]
    return np.array([-value for value in reversed(positive)] + [0.0] + positive, dtype=np.float32)


def edge_values(format: FP8Format) -> np.ndarray:
    """Grid values, midpoints (one beyond the largest too), the float32 neighbours of both, and specials but NaN."""
    values = grid(format).astype(np.float64)
    beyond = 2 * values[-1] - values[-2]
    ladder = np.concatenate([[-beyond], values, [beyond]])
    midpoints = (ladder[1:] + ladder[:-1]) / 2
    centres = np.concatenate([values, midpoints]).astype(np.float32)
    around = [np.nextafter(centres, np.float32(side), dtype=np.float32) for side in (-np.inf, np.inf)]
    return np.concatenate([centres, *around, special_values()])


def special_values() -> np.ndarray:
    """Zeros, infinities, the ends of float32, and its subnormals at and beside every power of two."""
    powers = 1 << np.arange(24, dtype=np.int32)
    tiny = np.concatenate([powers, powers + 1, powers - 1]).view(np.float32)
    positive = np.concatenate([tiny, np.array([0.0, np.inf, np.finfo(np.float32).max], dtype=np.float32)])
    return np.concatenate([positive, -positive])


def random_values(count: int, seed: int = 0) -> np.ndarray:
    """Finite float32 values of random bits, so log-uniform over the whole range, subnormals and both signs included."""
    rng = np.random.default_rng(seed)
    magnitudes = rng.integers(0, 0x7F800000, count, dtype=np.uint32)
    return (magnitudes | (rng.integers(0, 2, count, dtype=np.uint32) << 31)).view(np.float32)


def near_values(format: FP8Format, count: int, seed: int = 0) -> np.ndarray:
    """float32 values log-uniform over the format's own range and a little beyond, of both signs."""
    rng = np.random.default_rng(seed)
    low, high = np.log2(format.min_positive_value) - 3, min(np.log2(format.max_representable_value) + 2, 127.9)
    return (np.exp2(rng.uniform(low, high, count)) * rng.choice([-1.0, 1.0], count)).astype(np.float32)


def hard_values(format: FP8Format) -> np.ndarray:
    """All of the above: what a rounding has to get right."""
    return np.concatenate([edge_values(format), random_values(100_000), near_values(format, 200_000)])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal shapes, dtypes and bits, the sign of zero included; any NaN is like any other."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return bool(((a.view(whole) == b.view(whole)) | (a.isnan() & b.isnan())).all())
