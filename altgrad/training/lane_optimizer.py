"""The optimizers of all lanes at once: the updates of `altgrad.training.optimizer`, each lane with its own numbers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from altgrad.quantization.diagnostics import exponent_stiffness
from altgrad.quantization.kernels import rung_spacing, rung_to_value
from altgrad.training.config import RunConfig
from altgrad.training.model import EMBEDDINGS
from altgrad.training.muon import MuonNumbers, muon_
from altgrad.training.optimizer import MAX_STIFFNESS, AdamNumbers, adam_numbers, adamw_, grid_rungs_
from altgrad.training.precision import WeightGrid
from altgrad.training.weights import Stack, per_lane

#: The farthest rung beyond a grid's ends that float32 can say in every 8-bit format (E7M0: 2**127).
_FARTHEST_RUNG = 190


class LaneNumbers:
    """The numbers of one step for every lane, as tensors that broadcast against any stack."""

    def __init__(self, configs: Sequence[RunConfig], step: int, device: torch.device) -> None:
        factors = [schedule(config, step) for config in configs]
        self.lr = [config.lr * factor for config, factor in zip(configs, factors, strict=True)]
        self._device = device
        self._decayed = self._adam(configs, step, decay=True)
        self._plain = self._adam(configs, step, decay=False)
        self._muon = MuonNumbers(
            self._tensor(self.lr), self._decayed.keep, self._tensor([c.muon_momentum for c in configs])
        )
        #: Rungs a step for each unit of learning rate.
        self.rungs_per_lr = self._tensor([c.rung_lr / c.lr for c in configs])
        self.grid_scale = self._tensor([c.grid_scale * f for c, f in zip(configs, factors, strict=True)])
        self.grid_momentum = self._tensor([c.grid_momentum for c in configs])
        self.rung_clip = self._tensor([float(c.rung_clip) for c in configs])
        self.weight_decay = self._tensor([c.weight_decay for c in configs])
        self.grad_clip = self._tensor([c.grad_clip or float("inf") for c in configs])

    def adam(self, stack: Stack) -> AdamNumbers:
        """Adam's numbers shaped for a stack; vectors do not decay."""
        numbers = self._decayed if stack.is_matrix else self._plain
        return AdamNumbers(*(per_lane(n, stack.stored) for n in numbers if isinstance(n, Tensor)))

    def muon(self, stack: Stack) -> MuonNumbers:
        """Muon's numbers shaped for a stack of matrices."""
        return MuonNumbers(*(per_lane(n, stack.stored) for n in self._muon if isinstance(n, Tensor)))

    def _adam(self, configs: Sequence[RunConfig], step: int, decay: bool) -> AdamNumbers:
        lanes = [
            adam_numbers(step, lr, (c.beta1, c.beta2), c.eps, c.weight_decay if decay else 0.0)
            for lr, c in zip(self.lr, configs, strict=True)
        ]
        return AdamNumbers(*(self._tensor(list(column)) for column in zip(*lanes, strict=True)))

    def _tensor(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device).unsqueeze(0)


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
        self.state = {name: torch.zeros_like(stack.stored) for name in names}

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
