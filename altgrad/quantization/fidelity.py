"""How well a format keeps a tensor: the noise that rounding adds, and how many of its values are put to use."""

import torch
from torch import Tensor

from altgrad.quantization import ops
from altgrad.quantization.formats import FP8Format


def sqnr(x: Tensor, format: FP8Format, scale: float | Tensor) -> float:
    """Signal to quantization noise, ``10 log10(sum(x**2) / sum((quantize(x) - x)**2))``, in dB.

    Infinite where nothing is lost. NaN where there is no signal to compare with (no elements, or all zero) and where
    ``x`` holds NaN or infinities. Squares are summed in float64.

    Args:
        x: floating-point values of any shape.
        format: the number format.
        scale: what one unit of the format is worth, > 0 and finite; a tensor broadcasts against ``x``.

    Raises:
        ValueError: as in `ops.quantize`.

    >>> from altgrad.quantization.formats import E4M3, FP32
    >>> x = torch.linspace(-1.0, 1.0, 1001)
    >>> round(sqnr(x, E4M3, 1 / 448), 1), sqnr(x, FP32, 1.0), sqnr(torch.zeros(3), E4M3, 1.0)
    (31.9, inf, nan)
    """
    kept = ops.quantize(x.detach(), format, scale).to(torch.float64)
    signal = x.detach().to(torch.float64)
    return float(10 * torch.log10(signal.square().sum() / (kept - signal).square().sum()))


def values_used(x: Tensor, format: FP8Format, scale: float | Tensor) -> int:
    """How many different values of a format the elements of ``x`` become; +0 and -0 are one value, NaN is none.

    Args:
        x: floating-point values of any shape.
        format: the number format; it has ``format.finite_values`` of them.
        scale: what one unit of the format is worth, > 0 and finite; a tensor broadcasts against ``x``.

    Raises:
        ValueError: as in `ops.quantize`.

    >>> from altgrad.quantization.formats import E2M5, E7M0
    >>> x = torch.linspace(-1.0, 1.0, 1001)
    >>> values_used(x, E2M5, 1 / 8), values_used(x, E7M0, 2.0**-64)
    (255, 21)
    """
    states = ops.grid_state(x, format, scale).unique()
    nan = ops.grid_state(torch.tensor(torch.nan), format, 1.0)
    return int((states != nan).sum())
