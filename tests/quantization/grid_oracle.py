"""Outside opinions on the formats (gfloat), and the inputs on which rounding goes wrong first."""

import gfloat
import numpy as np
import torch
from gfloat.formats import format_info_ocp_e4m3, format_info_ocp_e5m2

from altgrad.quantization.formats import FP8Format


def gfloat_info(format: FP8Format) -> gfloat.FormatInfo:
    """The same format in gfloat's terms."""
    ready_made = {"E4M3": format_info_ocp_e4m3, "E5M2": format_info_ocp_e5m2}
    if format.name in ready_made:
        return ready_made[format.name]
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


def grid(format: FP8Format) -> np.ndarray:
    """All finite values, sorted, zero once."""
    positive = [format.to_real(code) for code in range(1, format.max_code + 1)]
    return np.array([-value for value in reversed(positive)] + [0.0] + positive, dtype=np.float32)


def edge_values(format: FP8Format) -> np.ndarray:
    """Grid values, midpoints, the float32 neighbours of both, and specials other than NaN."""
    values = grid(format)
    midpoints = (values[1:].astype(np.float64) + values[:-1]) / 2
    centres = np.concatenate([values, midpoints.astype(np.float32)])
    around = [np.nextafter(centres, np.float32(side), dtype=np.float32) for side in (-np.inf, np.inf)]
    tiny, huge = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    specials = np.array([0.0, -0.0, np.inf, -np.inf, tiny, -tiny, huge, -huge, 2.0**-126], dtype=np.float32)
    return np.concatenate([centres, *around, specials])


def random_values(count: int, seed: int = 0) -> np.ndarray:
    """float32 values of random bits (so log-uniform over the whole range), NaN left out."""
    bits = np.random.default_rng(seed).integers(0, 1 << 32, count, dtype=np.uint32)
    values = bits.view(np.float32)
    return values[~np.isnan(values)]


def near_values(format: FP8Format, count: int, seed: int = 0) -> np.ndarray:
    """float32 values log-uniform over the format's own range and a little beyond, of both signs."""
    rng = np.random.default_rng(seed)
    low, high = np.log2(format.min_positive_value) - 3, np.log2(format.max_representable_value) + 2
    return (np.exp2(rng.uniform(low, high, count)) * rng.choice([-1.0, 1.0], count)).astype(np.float32)


def hard_values(format: FP8Format) -> np.ndarray:
    """All of the above: what a rounding has to get right."""
    return np.concatenate([edge_values(format), random_values(100_000), near_values(format, 200_000)])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal shapes, dtypes and bits, the sign of zero included."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.int32), b.view(torch.int32))
