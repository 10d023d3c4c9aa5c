"""How well formats keep tensors of known distributions, fitted to each format's range by their largest magnitude."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

from altgrad.quantization.fidelity import sqnr, values_used
from altgrad.quantization.formats import FP8Format
from altgrad.quantization.scaling import compute_scale

#: Elements of each tensor. The larger a tensor, the farther out its largest element, the coarser a uniform grid that
#: reaches it: docs/formats.md says what that does to the figures.
ELEMENTS = 1_800_000
#: Quantile functions below the median, of distributions that are symmetric around zero.
_LOWER_HALF: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gaussian": ndtri,
    "laplace": lambda p: np.log(2 * p),
    "student_t3": lambda p: stdtrit(3, p),
}


def tensors(elements: int = ELEMENTS) -> dict[str, Tensor]:
    """A float32 tensor for each distribution, its elements the quantiles at ``(i + 1/2) / elements``.

    So a tensor has the shape of its distribution without the luck of a draw. The lognormal one is the exponential of
    the Gaussian one.

    >>> tensors(4)["laplace"]
    tensor([-1.3863, -0.2877,  0.2877,  1.3863])
    """
    p = (np.arange(elements // 2) + 0.5) / elements
    lower = {name: quantiles(p) for name, quantiles in _LOWER_HALF.items()}
    both = {name: np.concatenate([half, -half[::-1]]) for name, half in lower.items()}
    both["lognormal"] = np.exp(both["gaussian"])
    return {name: torch.from_numpy(values.astype(np.float32)) for name, values in both.items()}


def fidelity(format: FP8Format, data: dict[str, Tensor]) -> dict[str, Any]:
    """Values that a Gaussian tensor uses, and the SQNR of every tensor in dB, None where nothing is lost."""
    noise = {name: sqnr(x, format, _scale(x, format)) for name, x in data.items()}
    gaussian = data["gaussian"]
    return {
        "values_used": values_used(gaussian, format, _scale(gaussian, format)),
        "sqnr_db": {name: None if math.isinf(value) else value for name, value in noise.items()},
    }


def _scale(x: Tensor, format: FP8Format) -> float:
    """Eight-bit formats are fitted to the largest magnitude; wide ones take data as it is, as in training."""
    return compute_scale(x.abs().max(), format, scale_min=0.0) if format.bits == 8 else 1.0
