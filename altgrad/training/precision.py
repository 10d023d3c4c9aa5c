"""The one place where tensors are quantized.

Shapes: n matrices of a stack, L lanes, S matrices of the model.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from altgrad.quantization.formats import FP8Format
from altgrad.quantization.kernels import (
    FormatNumbers,
    format_edges,
    format_numbers,
    largest_magnitudes,
    random_bits,
    round_and_count,
    round_nearest,
    round_stochastic,
    round_to_rungs,
    rung_to_value,
    stream_keys,
    uniform_bits,
    value_to_rung,
)
from altgrad.quantization.ops import NAN_STATE
from altgrad.quantization.scaling import amax_scale, power_of_two_scale
from altgrad.training.config import RunConfig
from altgrad.training.data import sent
from altgrad.training.weights import Stack, copy_whole, count, per_lane

#: Which random numbers are drawn: stochastic rounding of weights, and the rung optimizer.
ROUNDING_STREAM, GRID_STREAM = 0, 1


class Scaler:
    """Scales of n tensors by L lanes, from a window of largest magnitudes.

    Eight-bit formats are scaled to their range; wide ones hold any weight as it is and keep a scale of one.
    """

    def __init__(self, formats: Sequence[Sequence[FP8Format]], config: RunConfig, device: torch.device) -> None:
        """``formats[i][lane]``: the format of each tensor and lane."""
        limits = [[f.max_representable_value for f in lanes] for lanes in formats]
        fitted = [[f.bits == 8 and config.scaling != "none" for f in lanes] for lanes in formats]
        self._limit = torch.tensor(limits, dtype=torch.float64).float().to(device)
        self._fitted = torch.tensor(fitted, device=device)
        self._powers = config.scaling == "power_of_two"
        #: The scale in use, ``(n, L)``.
        self.scale = torch.ones(len(limits), len(limits[0]), device=device)
        #: Largest magnitudes of the last steps, ``(n, L, history)``.
        self.history = torch.zeros(*self.scale.shape, config.amax_history, device=device)
        #: Whether ``scale`` was ever set from data, as 0 or 1, ``(n, L)``.
        self.started = torch.zeros_like(self.scale)

    def slot(self, step: int) -> Tensor:
        """Where in the window a step's magnitudes go."""
        return sent(torch.tensor([step % self.history.shape[-1]]), self.history.device)

    def observe(self, amax: Tensor, slot: Tensor) -> Tensor:
        """Take in the magnitudes of a step, ``(n, L)``, and return the scales that follow."""
        self.history.index_copy_(-1, slot, amax.unsqueeze(-1))
        window = self.history.amax(-1)
        if self._powers:
            scale = power_of_two_scale(window, self._limit, self.scale * self.started)
        else:
            scale = amax_scale(window, self._limit)
        self.scale.copy_(torch.where(self._fitted, scale, 1.0))
        self.started.fill_(1.0)
        return self.scale

    def tensors(self) -> dict[str, Tensor]:
        """The state, ``(n, L, ...)``."""
        return {"scale": self.scale, "history": self.history, "started": self.started}


class Transition(NamedTuple):
    """What one step did to the codes of a stack, under the scale that the forward pass used.

    Tensors ``(n, L, in, out)`` where nothing else is said.
    """

    #: Rungs that the forward pass used.
    before: Tensor
    #: Rungs after the optimizer's step, int32.
    after: Tensor
    #: The optimizer's result in units of the scale, before rounding.
    unrounded: Tensor
    #: Its largest magnitude, ``(n, L)``; where that is not finite the rungs mean nothing.
    amax: Tensor


class WeightGrid:
    """The codes of a stack of matrices, and the working weights they stand for."""

    def __init__(
        self, stack: Stack, formats: Sequence[FP8Format], index: Sequence[int], configs: Sequence[RunConfig]
    ) -> None:
        """``formats``: one a lane. ``index``: each matrix's place in the model, which names its random stream."""
        device = stack.stored.device
        numbers = format_numbers(formats, device)
        #: Per lane, shaped to broadcast against the stack.
        self.numbers: FormatNumbers = numbers.view(-1, 1, 1)
        self.formats = tuple(formats)
        self.index = tuple(index)
        self._seeds = [config.seed for config in configs]
        on_grid = [c.storage != "master" and not f.is_identity for c, f in zip(configs, formats, strict=True)]
        stochastic = [grid and c.storage == "stochastic" for grid, c in zip(on_grid, configs, strict=True)]
        self._draws_rungs = configs[0].optimizer == "grid"
        self._all_on_grid, self._any_on_grid, self._any_stochastic = all(on_grid), any(on_grid), any(stochastic)
        self._on_grid = torch.tensor(on_grid, device=device).view(-1, 1, 1)
        self._stochastic = torch.tensor(stochastic, device=device).view(-1, 1, 1)
        narrow = all(f.bits == 8 or f.is_identity for f in formats)
        #: No lane has masters, and a byte says all of a weight: beside the scales its code is all that is kept.
        self.codes_are_weights = self._all_on_grid and narrow
        self.scaler = Scaler([formats] * len(index), configs[0], device)
        if not self._all_on_grid:
            stack.use_own_working_weights()
        #: Signed codes of the working weights; one byte each unless a lane has a 16-bit format.
        self.rungs = stack.zeros(torch.int8 if narrow else torch.int16)
        self._next_rungs = stack.zeros(self.rungs.dtype)
        #: The scale of the step, ``(n, L)``.
        self.frozen: Tensor
        self.scaler.observe(largest_magnitudes(stack.stored), self.scaler.slot(0))
        self._project(stack)
        self.begin(0)

    def begin(self, step: int) -> None:
        """Start a step: its random numbers, its place in the window of magnitudes, and the scale that it keeps."""
        self._slot = self.scaler.slot(step)
        self.frozen = self.scaler.scale.clone()
        if self._any_stochastic:
            self._rounding_keys = self._keys(step, ROUNDING_STREAM)
        if self._draws_rungs:
            self._rung_keys = self._keys(step, GRID_STREAM)

    def round(self, stack: Stack) -> Transition:
        """Round what the optimizer left in ``stack.stored`` under the step's scale, set the working weights, and choose
        the scale of the next step."""
        scale = per_lane(self.frozen, stack.stored)
        amax = largest_magnitudes(stack.stored)
        v = stack.stored / scale
        q, after = self._rounded(v)
        copy_whole(self._next_rungs, after)
        self._keep(stack, q.mul_(scale))
        self.scaler.observe(amax, self._slot)
        return Transition(self.rungs, after, v, amax)

    def rescale(self, stack: Stack) -> Tensor | None:
        """Move on to the scale of the next step.

        Returns:
            How many codes change because of it, float64 ``(n, L)``; None where no scale moved (on GPUs nobody waits to
            know).
        """
        self.rungs, self._next_rungs = self._next_rungs, self.rungs
        if not stack.stored.is_cuda and torch.equal(self.frozen, self.scaler.scale):
            return None
        self._next_rungs.copy_(self.rungs)
        self._project(stack)
        return count(self._next_rungs != self.rungs)

    def settle(self, stack: Stack) -> None:
        """`round` and `rescale`, for who watches nothing."""
        self.round(stack)
        self.rescale(stack)

    def codes(self, stack: Stack) -> Tensor:
        """The codes of weights that live on their grid: all that there is to say of them beside the scales, int8."""
        return torch.where(stack.stored.isnan(), NAN_STATE, self.rungs)

    def restore(self, stack: Stack, codes: Tensor) -> None:
        """Set the weights from their codes, the scales being set."""
        value = rung_to_value(codes, self.numbers) * per_lane(self.scaler.scale, stack.stored)
        stack.stored.copy_(torch.where(codes == NAN_STATE, torch.nan, value))
        self.rungs.copy_(codes)

    def refresh(self, stack: Stack) -> None:
        """Derive working weights and rungs from stored weights and scales, as after loading them."""
        self._project(stack)

    def uniform(self) -> Tensor:
        """Random numbers in [0, 1) for every element, from each lane's seed, the step and the matrix alone."""
        shape = self.rungs.shape
        return uniform_bits(self._rung_keys, shape[2:].numel()).view(shape)

    def _keys(self, step: int, stream: int) -> Tensor:
        keys = [stream_keys(self._seeds, step, 2 * i + stream) for i in self.index]
        return sent(torch.tensor(keys, dtype=torch.int32), self.rungs.device)

    def _rounded(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Values on the grid and their rungs (int32)."""
        nearest, rungs = round_to_rungs(v, self.numbers)
        if not self._any_stochastic:
            return nearest, rungs
        bits = random_bits(self._rounding_keys, v.shape[2:].numel()).view(v.shape)
        q = torch.where(self._stochastic, round_stochastic(v, self.numbers, bits), nearest)
        return q, value_to_rung(q, self.numbers)

    def _project(self, stack: Stack) -> None:
        """Round the stored weights to nearest under a new scale: working weights and rungs follow."""
        scale = per_lane(self.scaler.scale, stack.stored)
        q, rungs = round_to_rungs(stack.stored / scale, self.numbers)
        self.rungs.copy_(rungs)
        self._keep(stack, q.mul_(scale))

    def _keep(self, stack: Stack, value: Tensor) -> None:
        """Set the working weights; lanes without masters store them too, and nothing finer."""
        stack.working.copy_(value)
        if self._any_on_grid and not self._all_on_grid:
            stack.stored.copy_(torch.where(self._on_grid, value, stack.stored))


class _StraightThrough(torch.autograd.Function):
    """The quantized value forward, the gradient unchanged backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor) -> Tensor:
        return quantized

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _QuantizeGradient(torch.autograd.Function):
    """The value unchanged forward, the gradient quantized backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, flow: "Flow") -> Tensor:
        ctx.flow = flow
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.flow.quantize(gradient), None


#: What is told of a tensor that flowed: the share of its elements on the last rung, and of those rounded to zero.
FLOW_SHARES = ("saturated", "underflowed")


class Flow:
    """Quantization of what flows through one matrix: activations entering it, or gradients leaving it."""

    def __init__(self, formats: Sequence[FP8Format], config: RunConfig, device: torch.device) -> None:
        """``formats``: one a lane; float32 where nothing is to be done."""
        self.scaler = Scaler([formats], config, device)
        self._numbers = format_numbers(formats, device).view(-1, 1, 1)
        self._edges = format_edges(formats, device).view(-1, 1, 1)
        self._idle = all(f.is_identity for f in formats)
        undefined = torch.tensor([f.is_identity for f in formats], device=device)
        self._undefined = torch.where(undefined, float("nan"), 0.0).double()
        #: `FLOW_SHARES` of the last training pass, float64 ``(2, L)``; NaN for float32, and where anything was not
        #: finite.
        self.shares = self._undefined.new_full((len(FLOW_SHARES), len(formats)), torch.nan)
        self.begin(self.scaler.slot(0), training=False)

    def begin(self, slot: Tensor, training: bool) -> None:
        """Start a forward pass; only training passes move scales and are counted.

        Args:
            slot: where in the window a training pass's magnitudes go.
            training: whether it is one.
        """
        self._slot, self._training = slot, training

    def enter(self, x: Tensor) -> Tensor:
        """Quantize an activation ``(L, N, C)`` on its way into the matrix."""
        return x if self._idle else _StraightThrough.apply(x, self.quantize(x.detach()))

    def leave(self, x: Tensor) -> Tensor:
        """Quantize, on the way back, the gradient of the matrix's output."""
        return x if self._idle else _QuantizeGradient.apply(x, self)

    def quantize(self, x: Tensor) -> Tensor:
        """Round ``(L, N, C)`` onto each lane's grid."""
        if not self._training:
            scale = self.scaler.scale.view(-1, 1, 1)
            return round_nearest(x / scale, self._numbers).mul_(scale)
        amax = largest_magnitudes(x)
        undefined = torch.where(amax.isfinite(), self._undefined, torch.nan)
        scale = self.scaler.observe(amax.unsqueeze(0), self._slot).view(-1, 1, 1)
        q, at_end, lost = round_and_count(x / scale, self._numbers, self._edges, count)
        size = float(x[0].numel())
        self.shares.copy_(torch.stack([at_end, lost]) / size + undefined)
        return q.mul_(scale)
