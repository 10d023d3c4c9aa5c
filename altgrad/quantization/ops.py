"""Quantize, dequantize, encode, decode: the public door to the kernels, with checks and straight-through gradients.

Every function computes in float32 and returns its input's dtype; a float64 input is rounded to float32 first. A scale
is a positive finite number or a tensor that broadcasts against the data: one a tensor, a channel, a lane.

A format is an `FP8Format` or, for rounding, `FormatNumbers`: tensors, so that each lane may have a format of its own,
and a function under `torch.compile` that takes them as an argument is compiled once for every format.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from altgrad.quantization import kernels
from altgrad.quantization.formats import FP8Format
from altgrad.quantization.kernels import FormatNumbers, format_numbers

#: `grid_state` of NaN in an 8-bit format: the one int8 that is no rung.
NAN_STATE = -128


def quantize(x: Tensor, format: FP8Format | FormatNumbers, scale: float | Tensor) -> Tensor:
    """Round ``x / scale`` to the nearest value of a format and bring it back to the original axis.

    Ties go to the even significand; beyond the largest value it saturates, infinities too; NaN stays NaN. The gradient
    is that of the identity (straight-through, arXiv 1308.3432). Equal to
    ``dequantize(quantize(x / scale, format, 1), scale)`` bit for bit.

    Args:
        x: floating-point values of any shape.
        format: the number format, or the numbers of one format a lane.
        scale: what one unit of the format is worth, > 0 and finite.

    Returns:
        A tensor of the shape and dtype of ``x``. A narrow dtype may be unable to hold what a wide format can.

    Raises:
        ValueError: the scale is zero, negative or not finite, or does not broadcast to the shape of ``x``; or ``x`` is
            not floating point. In a compiled graph a bad scale tensor is an assertion that fails when the graph runs.

    >>> from altgrad.quantization.formats import E4M3
    >>> quantize(torch.tensor([0.3, 1000.0]), E4M3, 1.0)
    tensor([3.1250e-01, 4.4800e+02])
    """
    return QuantizeFunc.apply(x, format, scale)


def quantize_stochastic(x: Tensor, format: FP8Format | FormatNumbers, scale: float | Tensor, bits: Tensor) -> Tensor:
    """Round ``x / scale`` to one of its two neighbours in a format, at random and unbiased in value.

    Random bits are an argument: equal bits give equal results, on every device (Croci et al., arXiv 2103.13445).

    Args:
        x: floating-point values of any shape.
        format: the number format, or the numbers of one format a lane.
        scale: what one unit of the format is worth, > 0 and finite.
        bits: int32 of the shape of ``x``, as `random_bits` makes them.

    Returns:
        A tensor of the shape and dtype of ``x``; its gradient is that of the identity.

    Raises:
        ValueError: as in `quantize`, or the bits are not int32 of the shape of ``x``.

    >>> from altgrad.quantization.formats import E4M3
    >>> x = torch.full((8,), 0.3)
    >>> quantize_stochastic(x, E4M3, 1.0, random_bits(x.shape, seed=0, step=1))
    tensor([0.3125, 0.3125, 0.2812, 0.3125, 0.2812, 0.3125, 0.2812, 0.3125])
    """
    if bits.dtype != torch.int32 or bits.shape != x.shape:
        raise ValueError(f"bits must be int32 of shape {tuple(x.shape)}, got {bits.dtype} of {tuple(bits.shape)}")
    return QuantizeFunc.apply(x, format, scale, bits)


def random_bits(
    shape: torch.Size | tuple[int, ...], seed: int, step: int, stream: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Random int32 for every element of a tensor, from the seed, the step, the stream and the element's index alone.

    Args:
        shape: of the tensor; elements are counted in row-major order.
        seed: of the run.
        step: of the run.
        stream: what the numbers are for: another tensor, or another use, takes another stream.
        device: where to make them; every device makes the same.

    >>> bool((random_bits((2, 3), seed=0, step=7) == random_bits((6,), seed=0, step=7).view(2, 3)).all())
    True
    """
    key = torch.tensor(kernels.stream_keys([seed], step, stream)[0], dtype=torch.int32, device=device)
    return kernels.random_bits(key, torch.Size(shape).numel()).view(shape)


def dequantize(q: Tensor, scale: float | Tensor) -> Tensor:
    """``q * scale``, from the format's own axis to the original one; the gradient is ``grad * scale``.

    Raises:
        ValueError: as in `quantize`.

    >>> dequantize(torch.tensor([1.5, -448.0]), 0.5)
    tensor([   0.7500, -224.0000])
    """
    return DequantizeFunc.apply(q, scale)


class QuantizeFunc(torch.autograd.Function):
    """Rounding with the straight-through gradient; none flows to the format, the scale or the random bits."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, format: FP8Format | FormatNumbers, scale: float | Tensor, bits: Tensor | None = None
    ) -> Tensor:
        """See `quantize` and `quantize_stochastic`."""
        factor = checked_scale(x, scale)
        v, n = _float32(x) / factor, checked_numbers(x, format)
        q = kernels.round_nearest(v, n) if bits is None else kernels.round_stochastic(v, n, bits)
        return (q * factor).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of the identity."""
        return grads[0], None, None, None


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
    magnitude = kernels.round_to_rungs(v.abs(), numbers(format, x.device))[1]
    nan = v.isnan()
    if not format.has_nan:
        _require(
            ~nan.any(), lambda: f"{format.name} has no code for NaN, got {int(nan.sum())} of {nan.numel()} elements"
        )
    magnitude = torch.where(nan, 0x7F, magnitude)
    return (magnitude | ((v.view(torch.int32) >> 24) & 0x80)).to(torch.uint8)


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
    n = numbers(format, codes.device)
    code = codes.to(torch.int32)
    magnitude = code & 0x7F
    beyond = torch.where(magnitude < n.nan_code, torch.inf, torch.nan)
    value = torch.where(magnitude <= n.max_rung, kernels.rung_to_value(magnitude, n), beyond)
    signed = (value.view(torch.int32) | ((code & 0x80) << 24)).view(torch.float32)
    return signed * checked_scale(codes, scale)


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


def step_rungs(codes: Tensor, rungs: Tensor, format: FP8Format) -> Tensor:
    """Move codes up the ladder of values by whole rungs (down where negative), as far as its ends.

    Arithmetic on codes: no value is computed and no table searched. Codes of infinity and NaN stay where they are.

    Args:
        codes: uint8 codes of any shape.
        rungs: integers that broadcast against the codes.
        format: an 8-bit format.

    Returns:
        uint8 of the shape of ``codes``.

    Raises:
        ValueError: the format is not 8 bits wide, the codes are not uint8, or the rungs are not integers.

    >>> from altgrad.quantization.formats import E4M3
    >>> codes = encode(torch.tensor([1.0, -1.0, 448.0]), E4M3)
    >>> decode(step_rungs(codes, torch.tensor([1, -8, 100]), E4M3), E4M3)
    tensor([  1.1250,  -2.0000, 448.0000])
    """
    _require_eight_bits(format)
    _require_codes(codes)
    require_integers(rungs)
    _require_broadcast("rungs", rungs, codes)
    here = rung(codes).to(torch.int32)
    there = kernels.step_rungs(here, rungs, numbers(format, codes.device))
    moved = (there.abs() | ((there >> 24) & 0x80)).to(torch.uint8)
    return torch.where((here.abs() > format.max_code) | (rungs == 0), codes, moved)


def grid_state(x: Tensor, format: FP8Format, scale: float | Tensor) -> Tensor:
    """What a quantized weight is, as an integer: equal exactly where the quantized values are the same.

    Both zeros are one state and NaN is one more, so that a diverged weight can be followed like any other.

    Returns:
        int8 rungs for 8-bit formats, -128 for NaN; int32 bit patterns of the rounded values for wider formats.

    Raises:
        ValueError: the scale is invalid.

    >>> from altgrad.quantization.formats import E4M3
    >>> grid_state(torch.tensor([0.0, -0.0, 1.0, -1.0, float("nan")]), E4M3, 1.0)
    tensor([   0,    0,   56,  -56, -128], dtype=torch.int8)
    """
    v, n = _float32(x.detach()) / checked_scale(x, scale), numbers(format, x.device)
    if format.bits != 8:
        q = kernels.round_nearest(v, n)
        return torch.where(q.isnan(), torch.nan, q).view(torch.int32)
    return torch.where(v.isnan(), NAN_STATE, kernels.round_to_rungs(v, n)[1]).to(torch.int8)


def numbers(format: FP8Format | FormatNumbers, device: torch.device) -> FormatNumbers:
    """The numbers of a format on a device as 0-d tensors, made once; numbers are passed through.

    >>> from altgrad.quantization.formats import E4M3
    >>> numbers(E4M3, torch.device("cpu")).max_value
    tensor(448.)
    """
    return format if isinstance(format, FormatNumbers) else _numbers_of(format, device)


def _numbers_of(format: FP8Format, device: torch.device) -> FormatNumbers:
    return _scalar_numbers(format, device)


# What torch.compiler.assume_constant_result does, which would import the whole compiler.
_numbers_of._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _scalar_numbers(format: FP8Format, device: torch.device) -> FormatNumbers:
    with torch.inference_mode(False):
        return format_numbers([format], device).view()


def checked_scale(x: Tensor, scale: float | Tensor) -> Tensor:
    """The scale as a float32 tensor beside ``x``: dividing by a number would multiply by its reciprocal on a GPU.

    Raises:
        ValueError: the scale is not positive and finite in float32, or does not broadcast to the shape of ``x``.

    >>> checked_scale(torch.zeros(2, 3), torch.ones(3))
    tensor([1., 1., 1.])
    >>> checked_scale(torch.zeros(2, 3), 0.0)
    Traceback (most recent call last):
        ...
    ValueError: scale must be positive and finite in float32, got 0.0
    """
    factor = torch.as_tensor(scale, dtype=torch.float32).detach()
    valid = (factor > 0) & factor.isfinite()
    _require(valid.all(), lambda: f"scale must be positive and finite in float32, got {factor[~valid][0].item()}")
    _require_broadcast("a scale", factor, x)
    return factor.to(x.device, non_blocking=x.is_cuda)


def checked_numbers(x: Tensor, format: FP8Format | FormatNumbers) -> FormatNumbers:
    """The numbers of a format beside ``x``.

    Raises:
        ValueError: there is one for each lane, and the lanes are not those of ``x``.

    >>> from altgrad.quantization.formats import E4M3, E5M2
    >>> checked_numbers(torch.zeros(2, 3), format_numbers([E4M3, E5M2]).view(-1, 1)).mantissa_bits.tolist()
    [[3], [2]]
    """
    n = numbers(format, x.device)
    _require_broadcast("a format for each lane", n.max_value, x)
    return n


def _require_broadcast(what: str, values: Tensor, x: Tensor) -> None:
    pairs = zip(reversed(values.shape), reversed(x.shape), strict=False)
    if values.dim() > x.dim() or any(size not in (1, limit) for size, limit in pairs):
        raise ValueError(f"{what} of shape {tuple(values.shape)} does not broadcast to {tuple(x.shape)}")


def _require(condition: Tensor, message: Callable[[], str]) -> None:
    """Raise `ValueError` where a 0-d condition is false; a compiled graph can only assert it."""
    if torch.compiler.is_compiling():
        assert condition, "a value that altgrad.quantization does not accept"
    elif not condition:
        raise ValueError(message())


def require_floating(x: Tensor) -> None:
    """Refuse values that are not floating point.

    >>> require_floating(torch.zeros(2, dtype=torch.int8))
    Traceback (most recent call last):
        ...
    ValueError: values must be floating point, got torch.int8
    """
    if not x.is_floating_point():
        raise ValueError(f"values must be floating point, got {x.dtype}")


def require_integers(rungs: Tensor) -> None:
    """Refuse rungs that are not whole.

    >>> require_integers(torch.zeros(2))
    Traceback (most recent call last):
        ...
    ValueError: rungs must be integers, got torch.float32
    """
    if rungs.is_floating_point() or rungs.is_complex():
        raise ValueError(f"rungs must be integers, got {rungs.dtype}")


def _float32(x: Tensor) -> Tensor:
    require_floating(x)
    return x.to(torch.float32)


def _require_eight_bits(format: FP8Format) -> None:
    if format.bits != 8:
        raise ValueError(f"codes are 8 bits wide, got {format.name} of {format.bits} bits")


def _require_codes(codes: Tensor) -> None:
    if codes.dtype != torch.uint8:
        raise ValueError(f"codes must be uint8, got {codes.dtype}")
