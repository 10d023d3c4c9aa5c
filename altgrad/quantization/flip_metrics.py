"""Which weights changed their code: flips, and the stalls that are their absence."""

from typing import NamedTuple

from torch import Tensor

from altgrad.quantization import diagnostics, ops
from altgrad.quantization.formats import FP8Format


class _Pending(NamedTuple):
    """What a snapshot knows beside the states themselves."""

    format: FP8Format
    #: Which elements are meant to move; None is all of them.
    updated: Tensor | None
    updates: int


class WeightFlipTracker:
    """Counts, by name, the weights whose code changes over optimizer steps.

    Take a snapshot before the step and count after it, both under the scale frozen before the step: a code that
    changes because its scale did is no flip. Counts accumulate over steps, so a rate may exceed 1.

    >>> import torch
    >>> from altgrad.quantization.formats import E4M3
    >>> tracker = WeightFlipTracker()
    >>> tracker.snapshot_pre_step("w", torch.tensor([1.0, 1.0]), E4M3, 1.0)
    >>> tracker.compute_flips_post_step("w", torch.tensor([1.01, 2.0]), E4M3, 1.0)
    1
    >>> tracker.get_flip_rates(), tracker.get_stall_ratios()
    ({'w': 0.5}, {'w': 0.5})
    """

    def __init__(self) -> None:
        #: States (see `altgrad.quantization.ops.grid_state`) of the snapshots not yet used.
        self.prev_quantized: dict[str, Tensor] = {}
        #: Flips so far.
        self.flip_counts: dict[str, int] = {}
        #: Updates so far, those of a pending snapshot included.
        self.update_counts: dict[str, int] = {}
        #: Elements of each tensor.
        self.total_weights: dict[str, int] = {}
        self._updated_flips: dict[str, int] = {}
        self._pending: dict[str, _Pending] = {}

    def snapshot_pre_step(
        self, name: str, weight: Tensor, format: FP8Format, scale: float | Tensor, grad: Tensor | None = None
    ) -> None:
        """Remember a tensor's codes; a snapshot not yet used is replaced, its updates uncounted.

        Args:
            name: the tensor's name.
            weight: the tensor before the step.
            format: its number format.
            scale: its scale.
            grad: its gradient: elements with ``|grad| > 1e-10`` count as updated. Without it all of them do.

        Raises:
            ValueError: unlike shapes, or an invalid scale.
        """
        if grad is not None and grad.shape != weight.shape:
            raise ValueError(f"{name}: weight and gradient differ in shape: {weight.shape} and {grad.shape}")
        updated = None if grad is None else diagnostics.is_update(grad)
        updates = weight.numel() if updated is None else int(updated.sum())
        self.prev_quantized[name] = ops.grid_state(weight, format, scale)
        replaced = self._pending[name].updates if name in self._pending else 0
        self._pending[name] = _Pending(format, updated, updates)
        self.update_counts[name] = self.update_counts.get(name, 0) - replaced + updates
        self.total_weights[name] = weight.numel()
        self.flip_counts.setdefault(name, 0)
        self._updated_flips.setdefault(name, 0)

    def compute_flips_post_step(self, name: str, weight: Tensor, format: FP8Format, scale: float | Tensor) -> int:
        """Count the elements whose code differs from the snapshot's; the snapshot is dropped.

        Raises:
            KeyError: there is no snapshot of that name.
            ValueError: another shape or format than the snapshot's, or an invalid scale.
        """
        if name not in self._pending:
            raise KeyError(f"No pre-step snapshot of {name!r}: call snapshot_pre_step before the optimizer step")
        pending, before = self._pending[name], self.prev_quantized[name]
        if format != pending.format or weight.shape != before.shape:
            was, now = (pending.format.name, tuple(before.shape)), (format.name, tuple(weight.shape))
            raise ValueError(f"{name}: the snapshot is of format and shape {was}, got {now}")
        flipped = before != ops.grid_state(weight, format, scale)
        flips = int(flipped.sum())
        self.flip_counts[name] += flips
        self._updated_flips[name] += flips if pending.updated is None else int((flipped & pending.updated).sum())
        del self._pending[name], self.prev_quantized[name]
        return flips

    def get_flip_counts(self) -> dict[str, int]:
        """Flips so far, by name."""
        return dict(self.flip_counts)

    def get_flip_rates(self) -> dict[str, float]:
        """Flips so far over the number of elements, by name; 0.0 for an empty tensor."""
        return {name: flips / max(self.total_weights[name], 1) for name, flips in self.flip_counts.items()}

    def get_update_counts(self) -> dict[str, int]:
        """Updates so far, by name."""
        return dict(self.update_counts)

    def get_stall_ratios(self) -> dict[str, float]:
        """``1 - |flip and update| / |update|`` over the steps so far, in [0, 1], by name."""
        stepped = {name: count - self._waiting(name) for name, count in self.update_counts.items()}
        return {name: compute_stall_ratio(self._updated_flips[name], updates) for name, updates in stepped.items()}

    def reset(self) -> None:
        """Forget counts and snapshots."""
        for kept in (self.prev_quantized, self.flip_counts, self.update_counts, self.total_weights):
            kept.clear()
        self._updated_flips.clear()
        self._pending.clear()

    def _waiting(self, name: str) -> int:
        """Updates of a snapshot whose step is still to come."""
        return self._pending[name].updates if name in self._pending else 0


def compute_flip_rate(prev: Tensor, curr: Tensor) -> float:
    """Share of elements that differ between two tensors of codes or quantized values; 0.0 for empty ones.

    NaN before and after is no difference.

    Raises:
        ValueError: unlike shapes.

    >>> import torch
    >>> compute_flip_rate(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5]))
    0.25
    """
    if prev.shape != curr.shape:
        raise ValueError(f"tensors differ in shape: {tuple(prev.shape)} and {tuple(curr.shape)}")
    changed = (prev != curr) & ~(prev.isnan() & curr.isnan())
    return int(changed.sum()) / max(changed.numel(), 1)


def compute_stall_ratio(flips: int, updates: int) -> float:
    """``1 - flips / updates``: 1 when nothing that should move did; 0.0 where nothing was updated.

    Args:
        flips: flips among the updated elements.
        updates: updated elements.

    >>> compute_stall_ratio(25, 100)
    0.75
    """
    return 1.0 - flips / updates if updates else 0.0
