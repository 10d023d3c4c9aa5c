"""Quantize, dequantize, encode, decode: the public door to the kernels, with checks and straight-through gradients.

Every function computes in float32 and returns its input's dtype; a float64 input is rounded to float32 first. A scale
is a positive finite number or a tensor that broadcasts against the data: one a tensor, a channel, a lane.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from altgrad.quantization import kernels
from altgrad.quantization.formats import FP8Format
from altgrad.quantization.kernels import FormatNumbers

#: `grid_state` of NaN in an 8-bit format: the one int8 that is no rung.
_NAN_STATE = -128


def quantize(x: Tensor, format: FP8Format, scale: float | Tensor) -> Tensor:
    """Round ``x / scale`` to the nearest value of a format and bring it back to the original axis.

    Ties go to the even significand; beyond the largest value it saturates, infinities too; NaN stays NaN. The gradient
    is that of the identity (straight-through, arXiv 1308.3432). Equal to
    ``dequantize(quantize(x / scale, format, 1), scale)`` bit for bit.

    Args:
        x: floating-point values of any shape.
        format: the number format.
        scale: what one unit of the format is worth, > 0 and finite.

    Returns:
        A tensor of the shape and dtype of ``x``. A narrow dtype may be unable to hold what a wide format can.

    Raises:
        ValueError: the scale is zero, negative or not finite, or does not broadcast to the shape of ``x``; or ``x`` is
            not floating point.

    >>> from altgrad.quantization.formats import E4M3
    >>> quantize(torch.tensor([0.3, 1000.0]), E4M3, 1.0)
    tensor([3.1250e-01, 4.4800e+02])
    """
    return QuantizeFunc.apply(x, format, scale)


def dequantize(q: Tensor, scale: float | Tensor) -> Tensor:
    """``q * scale``, from the format's own axis to the original one; the gradient is ``grad * scale``.

    Raises:
        ValueError: as in `quantize`.
    """
    return DequantizeFunc.apply(q, scale)


class QuantizeFunc(torch.autograd.Function):
    """Rounding with the straight-through gradient; none flows to the format or the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, format: FP8Format, scale: float | Tensor) -> Tensor:
        """See `quantize`."""
        factor = checked_scale(x, scale)
        q = kernels.round_nearest(_float32(x) / factor, numbers(format, x.device))
        return (q * factor).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the identity."""
        return grads[0], None, None


class DequantizeFunc(torch.autograd.Function):
    """Multiplication by a scale that takes no gradient itself."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, scale: float | Tensor) -> Tensor:
        """See `dequantize`."""
        factor = checked_scale(q, scale)
        ctx.save_for_backward(factor)
        return (_float32(q) * factor).to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """``grad * scale``."""
        (factor,) = ctx.saved_tensors
        return (grads[0].to(torch.float32) * factor).to(grads[0].dtype), None


def encode(x: Tensor, format: FP8Format, scale: float | Tensor = 1.0) -> Tensor:
    """The 8-bit codes (sign and magnitude) of ``x / scale`` rounded to the nearest.

    The sign bit is that of ``x``, also where the magnitude rounds to zero. Infinities saturate.

    Returns:
        uint8 of the shape of ``x``.

    Raises:
        ValueError: the format is not 8 bits wide, ``x`` holds NaN and the format does not, or the scale is invalid.

    >>> from altgrad.quantization.formats import E5M2
    >>> encode(torch.tensor([0.0, 1.0, -1.0]), E5M2)
    tensor([  0,  60, 188], dtype=torch.uint8)
    """
    _require_eight_bits(format)
    v = _float32(x) / checked_scale(x, scale)
    n = numbers(format, x.device)
    magnitude = kernels.value_to_rung(kernels.round_nearest(v, n), n).abs()
    nan = v.isnan()
    if format.has_nan:
        magnitude = torch.where(nan, 0x7F, magnitude)
    elif nan.any():
        raise ValueError(f"{format.name} has no code for NaN, got {int(nan.sum())} of {nan.numel()} elements")
    return (magnitude | (v.signbit().to(torch.int32) << 7)).to(torch.uint8)


def decode(codes: Tensor, format: FP8Format, scale: float | Tensor = 1.0) -> Tensor:
    """The float32 values of 8-bit codes, times ``scale``; codes of NaN and infinity included.

    Raises:
        ValueError: the format is not 8 bits wide, the codes are not uint8, or the scale is invalid.

    >>> from altgrad.quantization.formats import E5M2
    >>> decode(torch.tensor([60, 0x7B, 0x7C], dtype=torch.uint8), E5M2)
    tensor([1.0000e+00, 5.7344e+04,        inf])
    """
    _require_eight_bits(format)
    _require_codes(codes)
    return _code_values(format, codes.device)[codes.to(torch.int32)] * checked_scale(codes, scale)


def rung(codes: Tensor) -> Tensor:
    """Where codes stand on the ladder of values: their signed magnitude, 0 for both zeros.

    A larger value has a larger rung and neighbouring values have neighbouring rungs, whatever the 8-bit format. Codes
    of infinity and NaN stand beyond the largest value and mean nothing.

    Returns:
        int16 of the shape of ``codes``, -127..127.

    Raises:
        ValueError: the codes are not uint8.

    >>> rung(torch.tensor([0x00, 0x01, 0x7F, 0x80, 0x81], dtype=torch.uint8))
    tensor([  0,   1, 127,   0,  -1], dtype=torch.int16)
    """
    _require_codes(codes)
    magnitude = (codes & 0x7F).to(torch.int16)
    return torch.where(codes >= 0x80, -magnitude, magnitude)


def grid_state(x: Tensor, format: FP8Format, scale: float | Tensor) -> Tensor:
    """What a quantized weight is, as an integer: equal exactly where the quantized values are the same.

    Both zeros are one state and NaN is one more, so that a diverged weight can be followed like any other.

    Returns:
        int8 rungs for 8-bit formats, -128 for NaN; int32 bit patterns of the rounded values for wider formats.

    Raises:
        ValueError: the scale is invalid.
    """
    n = numbers(format, x.device)
    q = kernels.round_nearest(_float32(x.detach()) / checked_scale(x, scale), n)
    if format.bits != 8:
        return torch.where(q.isnan(), torch.nan, q).view(torch.int32)
    return torch.where(q.isnan(), _NAN_STATE, kernels.value_to_rung(q, n)).to(torch.int8)


@functools.cache
def numbers(format: FP8Format, device: torch.device) -> FormatNumbers:
    """The 0-d numbers of one format on a device, made once."""
    with torch.inference_mode(False):
        return kernels.format_numbers([format], device).view()


@functools.cache
def _code_values(format: FP8Format, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor([format.to_real(code) for code in range(256)], dtype=torch.float32, device=device)


def checked_scale(x: Tensor, scale: float | Tensor) -> Tensor:
    """The scale as a float32 tensor beside ``x``: dividing by a number would multiply by its reciprocal on a GPU.

    Raises:
        ValueError: the scale is not positive and finite in float32, or does not broadcast to the shape of ``x``.
    """
    factor = torch.as_tensor(scale, dtype=torch.float32).detach()
    valid = (factor > 0) & factor.isfinite()
    if not valid.all():
        raise ValueError(f"scale must be positive and finite in float32, got {factor[~valid][0].item()}")
    pairs = zip(reversed(factor.shape), reversed(x.shape), strict=False)
    if factor.dim() > x.dim() or any(size not in (1, limit) for size, limit in pairs):
        raise ValueError(f"a scale of shape {tuple(factor.shape)} does not broadcast to {tuple(x.shape)}")
    return factor.to(x.device)


def _float32(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise ValueError(f"values must be floating point, got {x.dtype}")
    return x.to(torch.float32)


def _require_eight_bits(format: FP8Format) -> None:
    if format.bits != 8:
        raise ValueError(f"codes are 8 bits wide, got {format.name} of {format.bits} bits")


def _require_codes(codes: Tensor) -> None:
    if codes.dtype != torch.uint8:
        raise ValueError(f"codes must be uint8, got {codes.dtype}")
