"""The optimizers of all lanes at once: the updates of `altgrad.training.optimizer`, each lane with its own numbers."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from altgrad.quantization.diagnostics import exponent_stiffness
from altgrad.quantization.kernels import rung_spacing, rung_to_value
from altgrad.training.config import RunConfig
from altgrad.training.data import sent
from altgrad.training.muon import MuonNumbers, muon_
from altgrad.training.optimizer import MAX_STIFFNESS, AdamNumbers, adam_numbers, adamw_, grid_rungs_
from altgrad.training.precision import WeightGrid
from altgrad.training.shapes import EMBEDDINGS
from altgrad.training.weights import Stack, per_lane

#: The farthest rung beyond a grid's ends that float32 can say in every 8-bit format (E7M0: 2**127).
_FARTHEST_RUNG = 190


class LaneNumbers:
    """The numbers of one step for every lane, as tensors ``(1, L)`` that broadcast against any stack."""

    def __init__(self, configs: Sequence[RunConfig], step: int, device: torch.device) -> None:
        #: Learning rates, float64 ``(L,)``, on the CPU.
        self.lr = torch.tensor([c.lr * schedule(c, step) for c in configs], dtype=torch.float64)
        lanes = torch.tensor([_numbers(c, step) for c in configs], dtype=torch.float64)
        numbers = iter(sent(lanes.float(), device).t().unsqueeze(1).unbind())
        adam = len(AdamNumbers._fields)
        self._decayed, self._plain = (AdamNumbers(*itertools.islice(numbers, adam)) for _ in range(2))
        self._muon = MuonNumbers(*itertools.islice(numbers, len(MuonNumbers._fields)))
        #: Rungs a step for each unit of learning rate.
        self.rungs_per_lr, self.grid_scale, self.grid_momentum, self.rung_clip, self.weight_decay, self.grad_clip = (
            numbers
        )

    def adam(self, stack: Stack) -> AdamNumbers:
        """Adam's numbers shaped for a stack; vectors do not decay."""
        numbers = self._decayed if stack.is_matrix else self._plain
        return AdamNumbers(*(per_lane(n, stack.stored) for n in numbers if isinstance(n, Tensor)))

    def muon(self, stack: Stack) -> MuonNumbers:
        """Muon's numbers shaped for a stack of matrices."""
        return MuonNumbers(*(per_lane(n, stack.stored) for n in self._muon if isinstance(n, Tensor)))


def _numbers(c: RunConfig, step: int) -> list[Any]:
    """The numbers of one lane, in the order in which `LaneNumbers` takes them."""
    factor = schedule(c, step)
    decayed, plain = (adam_numbers(step, c.lr * factor, (c.beta1, c.beta2), c.eps, d) for d in (c.weight_decay, 0.0))
    muon = MuonNumbers(c.lr * factor, 1 - c.lr * factor * c.weight_decay, c.muon_momentum)
    grid = c.grid_scale * factor, c.grid_momentum, float(c.rung_clip), c.weight_decay
    return [*decayed, *plain, *muon, c.rung_lr / c.lr, *grid, c.grad_clip or math.inf]


def schedule(config: RunConfig, step: int) -> float:
    """Learning rate at a step (from 1) as a share of the peak: linear warm-up, then a cosine to ``min_lr_ratio``."""
    if step <= config.warmup_steps:
        return step / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class LaneOptimizer:
    """One optimizer for one stack of all lanes: its state, and the update that its public twin makes too."""

    def __init__(self, stack: Stack, grid: WeightGrid | None, config: RunConfig) -> None:
        # A matrix without a grid has no spacing: float32's own would push every gradient far below eps.
        aware = config.optimizer == "manifold_adamw" and grid is not None
        self._precondition = config.precondition if aware else None
        self._grid = grid
        self._orthogonal = config.optimizer == "muon" and stack.is_matrix and stack.names[0] not in EMBEDDINGS
        formats = grid.formats if grid else ()
        rungs = [config.optimizer == "grid" and f.bits == 8 for f in formats] or [False]
        self._rungs_anywhere, self._rungs_everywhere = any(rungs), all(rungs)
        device = stack.stored.device
        self._on_rungs = torch.tensor(rungs, device=device).view(-1, 1, 1)
        self._identity = torch.tensor([f.is_identity for f in formats] or [True], device=device).view(-1, 1, 1)
        bits = [f.significand_bits for f in formats]
        self._significand_bits = torch.tensor(bits, dtype=torch.int32, device=device).view(-1, 1, 1)
        names = ["momentum_buffer"] if self._orthogonal else [] if self._rungs_everywhere else ["exp_avg", "exp_avg_sq"]
        names += ["velocity"] if self._rungs_anywhere else []
        #: Tensors of the shape of the stack.
        self.state = {name: stack.zeros() for name in names}

    def step(self, stack: Stack, gradient: Tensor, numbers: LaneNumbers) -> None:
        """Move ``stack.stored`` by one step; ``gradient``, of the same shape, is clipped already."""
        descended = self._descended(stack, gradient, numbers) if self._rungs_anywhere else None
        if self._orthogonal:
            muon_(stack.stored, gradient, self.state["momentum_buffer"], numbers.muon(stack))
        elif not self._rungs_everywhere:
            self._adam(stack, gradient, numbers)
        if descended is not None:
            kept = descended if self._rungs_everywhere else torch.where(self._on_rungs, descended, stack.stored)
            stack.stored.copy_(kept)

    def _adam(self, stack: Stack, grad: Tensor, numbers: LaneNumbers) -> None:
        spacing = None
        if self._precondition == "gradient":
            stiffness = exponent_stiffness(stack.stored, self._significand_bits).clamp_max(MAX_STIFFNESS)
            grad = grad * torch.where(self._identity, 1.0, stiffness)
        elif self._precondition == "update":
            assert self._grid is not None
            scale = per_lane(self._grid.scaler.scale, stack.stored)
            rung = rung_spacing(stack.stored / scale, self._grid.numbers) * scale
            spacing = torch.where(self._identity, 1.0, rung * per_lane(numbers.rungs_per_lr, stack.stored))
        adamw_(stack.stored, grad, self.state["exp_avg"], self.state["exp_avg_sq"], numbers.adam(stack), spacing)

    def _descended(self, stack: Stack, gradient: Tensor, n: LaneNumbers) -> Tensor:
        """Where the rung optimizer takes the weights; beyond the grid's ends it says how far, and rounding stops it."""
        assert self._grid is not None
        grad = gradient + per_lane(n.weight_decay, stack.stored) * stack.stored
        uniform = self._grid.uniform()
        momentum, scale, clip = (per_lane(x, stack.stored) for x in (n.grid_momentum, n.grid_scale, n.rung_clip))
        down = grid_rungs_(self.state["velocity"], grad, uniform, momentum, scale, clip)
        rungs = (self._grid.rungs.to(torch.int32) - down).clamp(-_FARTHEST_RUNG, _FARTHEST_RUNG)
        value = rung_to_value(rungs, self._grid.numbers) * per_lane(self._grid.scaler.scale, stack.stored)
        return torch.where(self.state["velocity"].isnan(), torch.nan, value)
