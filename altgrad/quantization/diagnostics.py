"""How far a weight is from moving: stalls (a step too small for the grid) and stiffness (the grid's own step)."""

from typing import TypedDict

import torch
from torch import Tensor

from altgrad.quantization import kernels, ops
from altgrad.quantization.formats import FP8Format

#: An element whose gradient's magnitude is above this is meant to move: an update.
UPDATE_THRESHOLD = 1e-10


class StallStats(TypedDict):
    """What a `BitStallDetector` has seen since it began."""

    #: ``stall_count / total_count``; 0.0 before the first update.
    stall_rate: float
    #: Updates that changed no code.
    stall_count: int
    #: Updates.
    total_count: int
    #: Calls of ``update``.
    steps: int


def detect_bit_stall(
    weight: Tensor, grad: Tensor, lr: float, format: FP8Format, scale: float | Tensor
) -> tuple[int, int]:
    """Count the updates that a plain gradient step would lose to rounding.

    An element with ``|grad| > 1e-10`` stalls when ``weight - lr * grad`` has the same code as ``weight``.

    Args:
        weight: weights of any shape.
        grad: their gradients.
        lr: learning rate.
        format: the weights' number format.
        scale: the weights' scale.

    Returns:
        The stalled elements and the updated ones.

    Raises:
        ValueError: unlike shapes, or an invalid scale.

    >>> from altgrad.quantization.formats import E4M3
    >>> detect_bit_stall(torch.ones(3), torch.tensor([0.0, 0.1, 100.0]), 0.01, E4M3, 1.0)
    (1, 2)
    """
    if weight.shape != grad.shape:
        raise ValueError(f"weight and gradient differ in shape: {tuple(weight.shape)} and {tuple(grad.shape)}")
    moved = weight.detach().to(torch.float32) - lr * grad.detach().to(torch.float32)
    same = ops.grid_state(weight, format, scale) == ops.grid_state(moved, format, scale)
    updated = is_update(grad)
    return int((same & updated).sum()), int(updated.sum())


def is_update(grad: Tensor, dtype: torch.dtype = torch.bool) -> Tensor:
    """Which elements are meant to move, as booleans or as numbers 0 and 1 of another type.

    >>> is_update(torch.tensor([0.0, 1e-12, -1e-3]))
    tensor([False, False,  True])
    """
    # On CPUs PyTorch compares with SIMD only where the result is as wide as the operands.
    return grad.detach().abs().gt_(UPDATE_THRESHOLD).to(dtype)


class BitStallDetector:
    """Stalls counted over many steps and tensors.

    >>> from altgrad.quantization.formats import E4M3
    >>> detector = BitStallDetector()
    >>> detector.update(torch.tensor([1.0, 1.0]), torch.tensor([0.1, 10.0]), 0.1, E4M3, 1.0)
    (1, 2)
    >>> detector.get_stall_rate()
    0.5
    """

    def __init__(self) -> None:
        self.reset()

    def update(
        self, weight: Tensor, grad: Tensor, lr: float, format: FP8Format, scale: float | Tensor
    ) -> tuple[int, int]:
        """Count one tensor's step; arguments, result and errors are those of `detect_bit_stall`."""
        stalled, total = detect_bit_stall(weight, grad, lr, format, scale)
        self._stalled += stalled
        self._total += total
        self._steps += 1
        return stalled, total

    def get_stall_rate(self) -> float:
        """Share of all updates that stalled, in [0, 1]; 0.0 before the first."""
        return self._stalled / self._total if self._total else 0.0

    def get_stats(self) -> StallStats:
        """The rate and what it was made from."""
        return {
            "stall_rate": self.get_stall_rate(),
            "stall_count": self._stalled,
            "total_count": self._total,
            "steps": self._steps,
        }

    def reset(self) -> None:
        """Begin anew."""
        self._stalled = 0
        self._total = 0
        self._steps = 0


def stiffness(weight: Tensor, format: FP8Format, scale: float | Tensor = 1.0) -> Tensor:
    """The distance to the neighbouring rung at each weight, in the weight's own units; subnormals included.

    At a power of two, where the two neighbours differ, it is the larger distance. NaN where the weight is.

    Raises:
        ValueError: an invalid scale.

    >>> from altgrad.quantization.formats import E4M3
    >>> stiffness(torch.tensor([0.0, 1.0, 1.9, 448.0]), E4M3)
    tensor([1.9531e-03, 1.2500e-01, 1.2500e-01, 3.2000e+01])
    """
    factor = ops.checked_scale(weight, scale)
    v = weight.detach().to(torch.float32) / factor
    spacing = kernels.rung_spacing(v, ops.numbers(format, weight.device)) * factor
    return torch.where(v.isnan(), v, spacing).to(weight.dtype)


def exponent_stiffness(weight: Tensor, mantissa_bits: int | Tensor) -> Tensor:
    """``2**(floor(log2 |w|) - M)`` from the exponent bits: the spacing of an unbounded exponent. 1 for zero weights.

    Args:
        weight: weights of any shape, float32 subnormals included.
        mantissa_bits: M, a number or integers that broadcast against the weights (one a lane, say).

    Returns:
        The dtype of ``weight``; NaN where the weight is not finite.

    >>> exponent_stiffness(torch.tensor([0.0, 1.0, -3.0]), 2)
    tensor([1.0000, 0.2500, 0.5000])
    """
    w = weight.detach().to(torch.float32)
    _, exponent = torch.frexp(w)
    power = kernels.power_of_two((exponent - 1 - mantissa_bits).to(torch.int32))
    return torch.where(w == 0, 1.0, torch.where(w.isfinite(), power, torch.nan)).to(weight.dtype)
