"""AdamW, ManifoldAdamW, Muon and GridOptim: one functional update each, for public optimizers and the lane trainer.

The updates work in place on tensors of any shape. Their numbers are floats, or tensors that broadcast against the
parameters, so that every lane has its own.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from altgrad.quantization.diagnostics import exponent_stiffness, is_update
from altgrad.quantization.kernels import stream_keys, uniform_bits
from altgrad.training.muon import MuonNumbers, muon_

#: Upper bound of the stiffness that multiplies gradients.
MAX_STIFFNESS = 1e6

Number = float | Tensor


class AdamNumbers(NamedTuple):
    """What one step of Adam needs, bias corrections included; floats or tensors."""

    #: lr / (1 - beta1**step)
    step_size: Number
    #: sqrt(1 - beta2**step)
    root_correction: Number
    #: 1 - lr * weight_decay
    keep: Number
    #: 1 - beta1
    gain1: Number
    beta2: Number
    #: 1 - beta2
    gain2: Number
    eps: Number


def adam_numbers(step: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> AdamNumbers:
    """The numbers of step ``step`` (from 1) of one optimizer."""
    beta1, beta2 = betas
    return AdamNumbers(
        step_size=lr / (1 - beta1**step),
        root_correction=math.sqrt(1 - beta2**step),
        keep=1 - lr * weight_decay,
        gain1=1 - beta1,
        beta2=beta2,
        gain2=1 - beta2,
        eps=eps,
    )


def adamw_(
    param: Tensor, grad: Tensor, mean: Tensor, square: Tensor, n: AdamNumbers, spacing: Tensor | None = None
) -> None:
    """One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101), in place.

    With ``spacing`` the normalised step is multiplied by it, element by element: a learning rate in rungs a step.
    """
    param.mul_(n.keep)
    mean.lerp_(grad, n.gain1)
    square.mul_(n.beta2).add_(grad * grad * n.gain2)
    update = mean / ((square.sqrt() / n.root_correction).add_(n.eps))
    if spacing is not None:
        update.mul_(spacing)
    param.sub_(update.mul_(n.step_size))


def grid_rungs_(
    velocity: Tensor, grad: Tensor, uniform: Tensor, momentum: Number, scale: Number, rung_clip: Tensor
) -> Tensor:
    """Accumulate momentum in place and return the whole rungs to descend, int32 in ``[-rung_clip, rung_clip]``.

    ``floor(v + u)`` with ``u`` uniform in [0, 1) rounds ``v`` stochastically, unbiased in rungs. Meaningless where the
    velocity is NaN: the caller's weight is NaN there. ``uniform`` is written over.
    """
    velocity.mul_(momentum).add_(grad)
    wanted = (velocity * scale).clamp_min_(-rung_clip).clamp_max_(rung_clip)
    # Adding u in float32 could round up to the next whole number, past the clip.
    whole = torch.floor(wanted)
    missing = wanted.sub_(whole).neg_().add_(1)
    return whole.add_(uniform.ge_(missing)).to(torch.int32)


class AdamW(torch.optim.Optimizer):
    """AdamW, equal to `torch.optim.AdamW`.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; a closure is evaluated first, with gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, group)
        return loss

    def _extend(self, numbers: dict[str, Any]) -> None:
        """Numbers that a kind of AdamW has beside the others; a group's own are kept."""
        self.defaults |= numbers
        for group in self.param_groups:
            group |= self.defaults | group

    def _state_of(self, param: Tensor) -> dict[str, Any]:
        state = self.state[param]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}
        state["step"] += 1
        return state

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any], spacing: Tensor | None = None) -> None:
        state = self._state_of(param)
        n = adam_numbers(state["step"], group["lr"], group["betas"], group["eps"], group["weight_decay"])
        adamw_(param, grad, state["exp_avg"], state["exp_avg_sq"], n, spacing)


class ManifoldAdamW(AdamW):
    """AdamW that knows the spacing of the grid its weights live on.

    ``precondition="gradient"`` multiplies the gradient by the stiffness ``S = 2**(floor(log2|w|) - mantissa_bits)``
    before the moments. Adam's normalisation undoes most of that. ``precondition="update"`` multiplies the normalised
    step by the spacing instead, so that ``lr`` counts rungs a step. Each group may have its own of every number.

    Args:
        params: parameters or groups of them.
        lr: learning rate; in rungs with ``precondition="update"``, except at zero, where the spacing is taken as 1.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay.
        manifold_aware: False is plain AdamW.
        mantissa_bits: of the grid.
        max_stiffness: upper bound of S.
        precondition: what the spacing multiplies.

    Raises:
        ValueError: another ``precondition``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        manifold_aware: bool = True,
        mantissa_bits: int = 2,
        max_stiffness: float = MAX_STIFFNESS,
        precondition: Literal["gradient", "update"] = "gradient",
    ) -> None:
        if precondition not in ("gradient", "update"):
            raise ValueError(f"precondition must be 'gradient' or 'update', got {precondition!r}")
        super().__init__(params, lr, betas, eps, weight_decay)
        self._extend(
            {
                "manifold_aware": manifold_aware,
                "mantissa_bits": mantissa_bits,
                "max_stiffness": max_stiffness,
                "precondition": precondition,
            }
        )

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any], spacing: Tensor | None = None) -> None:
        if group["manifold_aware"]:
            stiffness = exponent_stiffness(param, group["mantissa_bits"]).clamp_max(group["max_stiffness"])
            grad, spacing = (grad * stiffness, None) if group["precondition"] == "gradient" else (grad, stiffness)
        super()._update(param, grad, group, spacing)


class Muon(AdamW):
    """Orthogonalised momentum for matrices, AdamW for everything else; step sizes match, so one lr serves both.

    Muon is for matrices that map one space to another. Embeddings and the head belong into a group with
    ``"orthogonal": False``, which AdamW moves.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: AdamW's decay of the two moments.
        eps: AdamW's, added to the root of the second moment.
        weight_decay: decoupled decay.
        momentum: decay of Muon's momentum.
        orthogonal: False leaves all of them to AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        orthogonal: bool = True,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
        self._extend({"momentum": momentum, "orthogonal": orthogonal})

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any], spacing: Tensor | None = None) -> None:
        if param.dim() != 2 or not group["orthogonal"]:
            super()._update(param, grad, group, spacing)
            return
        state = self.state[param]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(param)
        n = MuonNumbers(group["lr"], 1 - group["lr"] * group["weight_decay"], group["momentum"])
        muon_(param, grad, state["momentum_buffer"], n)


class GridOptim(torch.optim.Optimizer):
    """Momentum descent in whole rungs: weights never leave the grid of an 8-bit format.

    ``velocity = momentum * velocity + grad + weight_decay * weight``; a weight descends
    ``floor(clamp(velocity * scale, +-rung_clip) + u)`` rungs, ``u`` uniform in [0, 1), and stops at the grid's ends.
    Masters start on the rung nearest to the weights given. A gradient that is not a number makes its weight NaN.

    Args:
        params: parameters.
        scale: rungs a unit of velocity.
        momentum: decay of the velocity.
        weight_decay: added to the gradient, times the weight.
        rung_clip: most rungs a weight moves in a step.
        fp8_dtype: the grid, a float8 dtype of torch; ``torch.float8_e4m3fn`` by default.
        device: where the grid lives; the parameters' own by default.
        seed: of the stochastic rounding, which is a function of seed, step and element alone.

    Attributes:
        grid: sorted finite values, float32.
        master_p: current weights in float32, one tensor a parameter.
        velocity: one tensor a parameter.

    Raises:
        ValueError: ``scale`` or ``rung_clip`` is out of its range, or a weight is NaN.
    """

    def __init__(
        self,
        params: Iterable[Any],
        scale: float = 6.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        rung_clip: int = 10,
        fp8_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> None:
        if not scale > 0 or rung_clip < 1:
            raise ValueError(f"scale must be above zero and rung_clip at least 1, got {scale=}, {rung_clip=}")
        super().__init__(
            params, {"scale": scale, "momentum": momentum, "weight_decay": weight_decay, "rung_clip": rung_clip}
        )
        weights = self._weights()
        if any(bool(p.isnan().any()) for p in weights):
            raise ValueError("a weight is NaN, which no grid has")
        self.grid = _grid_values(fp8_dtype or torch.float8_e4m3fn).to(device or weights[0].device)
        middles = (self.grid[1:] + self.grid[:-1]) / 2
        self._rungs = [torch.searchsorted(middles, p.detach().float().contiguous()) for p in weights]
        self.master_p = [self.grid[rungs] for rungs in self._rungs]
        self.velocity = [torch.zeros_like(master) for master in self.master_p]
        self._seed, self._steps = seed, 0
        self._show()

    @torch.no_grad()
    def step(self, current_scale: float | None = None) -> tuple[int, int]:  # type: ignore[override]
        """Take one step; ``current_scale`` replaces every group's scale, as a schedule does.

        Returns:
            (flips, updates): elements whose rung changed, and elements whose gradient arrived.
        """
        self._steps += 1
        flips = updates = 0
        params = [(param, group) for group in self.param_groups for param in group["params"]]
        for i, (param, group) in enumerate(params):
            if param.grad is None:
                continue
            updates += int(torch.count_nonzero(is_update(param.grad)))
            grad = param.grad.float() + group["weight_decay"] * self.master_p[i]
            key = torch.tensor(stream_keys([self._seed], self._steps, i), dtype=torch.int32, device=self.grid.device)
            uniform = uniform_bits(key, param.numel()).view(param.shape)
            scale = group["scale"] if current_scale is None else current_scale
            clip = torch.tensor(float(group["rung_clip"]), device=self.grid.device)
            down = grid_rungs_(self.velocity[i], grad, uniform, group["momentum"], scale, clip)
            lost = self.velocity[i].isnan()
            moved = torch.where(lost, self._rungs[i], (self._rungs[i] - down).clamp(0, len(self.grid) - 1))
            flips += int(torch.count_nonzero(moved != self._rungs[i]))
            self._rungs[i] = moved
            self.master_p[i] = torch.where(lost, torch.nan, self.grid[moved])
        self._show()
        return flips, updates

    def state_dict(self) -> dict[str, Any]:
        """The state of `torch.optim.Optimizer`, and under ``grid`` what this one has beside it."""
        own = {"rungs": list(self._rungs), "velocity": list(self.velocity), "steps": self._steps, "seed": self._seed}
        return super().state_dict() | {"grid": own}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; the parameters become the weights of that state.

        Raises:
            ValueError: the state is of other parameters.
        """
        own = state_dict["grid"]
        shapes = [[tuple(x.shape) for x in tensors] for tensors in (self._rungs, own["rungs"], own["velocity"])]
        if shapes[1] != shapes[0] or shapes[2] != shapes[0]:
            raise ValueError(f"the state is of parameters of shapes {shapes[1]}, these are {shapes[0]}")
        super().load_state_dict(state_dict)
        device = self.grid.device
        self._rungs = [x.to(device, copy=True) for x in own["rungs"]]
        self.velocity = [x.to(device, copy=True) for x in own["velocity"]]
        self._steps, self._seed = own["steps"], own["seed"]
        pairs = zip(self._rungs, self.velocity, strict=True)
        self.master_p = [torch.where(velocity.isnan(), torch.nan, self.grid[rungs]) for rungs, velocity in pairs]
        self._show()

    def _weights(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    @torch.no_grad()
    def _show(self) -> None:
        """Give the parameters the values of the masters."""
        for param, master in zip(self._weights(), self.master_p, strict=True):
            param.copy_(master)


def _grid_values(dtype: torch.dtype) -> Tensor:
    """Sorted finite values of a float8 dtype, zero once."""
    values = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype).float()
    return torch.unique(values[torch.isfinite(values)])


#: Optimizers by name. The lane trainer runs the same updates (`altgrad.training.lane_optimizer`).
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": AdamW,
    "manifold_adamw": ManifoldAdamW,
    "muon": Muon,
    "grid": GridOptim,
}
