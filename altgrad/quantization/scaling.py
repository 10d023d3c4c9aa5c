"""Fitting a tensor to its format's range: scales from the largest magnitude (amax) of a window of steps."""

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from altgrad.quantization import kernels
from altgrad.quantization.formats import FP8Format


@dataclass(frozen=True)
class ScalingConfig:
    """How scales follow the data.

    Raises:
        ValueError: a field is not positive.
    """

    #: Steps whose largest magnitude sets the scale.
    history_len: int = 16
    #: No scale is smaller than this.
    scale_min: float = 1e-10

    def __post_init__(self) -> None:
        _require_positive("history_len", self.history_len)
        _require_positive("scale_min", self.scale_min)


def compute_scale(amax: float | Tensor, format: FP8Format, scale_min: float = 1e-10) -> float:
    """The scale under which ``amax`` becomes the largest value of a format: ``amax / max``, at least ``scale_min``.

    NaN gives NaN, which `quantize` refuses.

    Raises:
        ValueError: ``amax`` is negative.

    >>> from altgrad.quantization.formats import E4M3
    >>> compute_scale(896.0, E4M3), compute_scale(0.0, E4M3)
    (2.0, 1e-10)
    """
    value = float(amax)
    if value < 0:
        raise ValueError(f"amax must not be negative, got {value}")
    return value if math.isnan(value) else max(value / format.max_representable_value, scale_min)


class AmaxHistory:
    """The largest magnitudes of the last ``history_len`` steps (delayed scaling, arXiv 2209.05433).

    >>> history = AmaxHistory(history_len=2)
    >>> for amax in (8.0, 1.0, 2.0):
    ...     history.update(amax)
    >>> history.get_amax(), len(history)
    (2.0, 2)
    """

    def __init__(self, history_len: int = 16) -> None:
        """An empty history.

        Raises:
            ValueError: ``history_len`` is not positive.
        """
        _require_positive("history_len", history_len)
        self.history_len = history_len
        self._window: deque[float] = deque(maxlen=history_len)

    def update(self, amax: float | Tensor) -> None:
        """Record a magnitude, or the largest magnitude in a tensor.

        Raises:
            ValueError: the tensor is empty.
        """
        if isinstance(amax, Tensor):
            if amax.numel() == 0:
                raise ValueError(f"a tensor of shape {tuple(amax.shape)} has no largest magnitude")
            amax = amax.detach().abs().max().item()
        self._window.append(abs(amax))

    def get_amax(self) -> float:
        """The largest of the window: 1.0 when empty, NaN while the window holds one."""
        if any(map(math.isnan, self._window)):
            return math.nan
        return max(self._window, default=1.0)

    def reset(self) -> None:
        """Forget everything."""
        self._window.clear()

    def __len__(self) -> int:
        return len(self._window)


def amax_scale(amax: Tensor, max_value: Tensor, scale_min: float = 1e-10) -> Tensor:
    """`compute_scale` for many tensors at once: ``amax / max_value``, at least ``scale_min``; NaN stays NaN.

    Args:
        amax: float32 largest magnitudes, of any shape: one element a tensor and lane.
        max_value: the largest values of the formats, broadcastable. Where it is infinite (float32 itself) there is
            nothing to fit and the scale is 1.
        scale_min: the smallest scale.

    >>> amax_scale(torch.tensor([896.0, 0.0]), torch.tensor(448.0))
    tensor([2.0000e+00, 1.0000e-10])
    """
    return torch.where(max_value.isinf(), 1.0, (amax / max_value).clamp_min(scale_min))


def power_of_two_scale(amax: Tensor, max_value: Tensor, previous: Tensor, scale_min: float = 1e-10) -> Tensor:
    """Power-of-two scales with hysteresis: they move rarely, and moving they touch no mantissa.

    The ideal is the smallest power of two ``s`` with ``amax / s <= max_value``. The scale grows to the ideal at once,
    stays while the ideal is itself or its half, and shrinks to the ideal when that is a quarter of it or less.
    Computed from exponents and mantissas, so formats whose largest values differ by a power of two get scales that
    differ by exactly that power (unless the floor holds one of them).

    Elements never touch one another. Where ``amax`` is NaN the previous scale stays, and what is NaN in the tensor
    stays NaN when it is quantized; without a previous scale the scale is NaN. Where ``amax`` is infinite, or so large
    that the ideal overflows, the scale is infinite, which makes the whole tensor NaN instead of plausibly saturated.

    Args:
        amax: float32 largest magnitudes, of any shape: one element a tensor and lane.
        max_value: float32 largest values of the formats, broadcastable; where infinite (float32) the scale is 1.
        previous: the scales in use, powers of two; zero or less where there is none yet.
        scale_min: no scale is smaller than the smallest power of two that is at least this.

    Returns:
        float32 scales of the broadcast shape.

    >>> power_of_two_scale(torch.tensor([900.0, 900.0]), torch.tensor(448.0), previous=torch.tensor([0.0, 8.0]))
    tensor([4., 8.])
    """
    amax_mantissa, amax_exponent = torch.frexp(amax)
    max_mantissa, max_exponent = torch.frexp(max_value)
    exponent = amax_exponent - max_exponent + (amax_mantissa > max_mantissa).to(torch.int32)
    floor_mantissa, floor_exponent = math.frexp(scale_min)
    floor = floor_exponent - (floor_mantissa == 0.5)
    ideal = kernels.power_of_two(torch.where(amax > 0, exponent, floor).clamp_min(floor))
    ideal = torch.where(amax.isinf(), torch.inf, ideal)
    has_previous = previous > 0
    keep = has_previous & ((ideal == previous) | (ideal == previous * 0.5))
    scale = torch.where(keep, previous, ideal)
    scale = torch.where(amax.isnan(), torch.where(has_previous, previous, torch.nan), scale)
    return torch.where(max_value.isinf(), 1.0, scale)


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
