"""Which fields of a run steer which optimizer, found by trying."""

from collections.abc import Mapping
from typing import Any

import torch

from altgrad.quantization.formats import FORMAT_REGISTRY
from altgrad.training.config import RunConfig
from altgrad.training.lane_optimizer import LaneNumbers, LaneOptimizer
from altgrad.training.optimizer import OPTIMIZERS
from altgrad.training.precision import WeightGrid
from altgrad.training.weights import Stack

#: A schedule short enough to be run to its end.
_BASE: Mapping[str, Any] = {"steps": 8, "warmup_steps": 2}
#: Fields without numbers that are tried too, and their values.
_CHOICES = {"precondition": ("gradient", "update")}


def optimizer_forms() -> dict[str, RunConfig]:
    """A run of every optimizer, and of both preconditioners of one that has them, by label."""
    forms = {}
    for name in OPTIMIZERS:
        storage = "nearest" if name == "grid" else "master"
        config = RunConfig.from_dict({"optimizer": name, "storage": storage, **_BASE})
        if "precondition" in steering_fields(config):
            for choice in _CHOICES["precondition"]:
                forms[f"{name}, {choice}"] = RunConfig.from_dict({**config.to_dict(), "precondition": choice})
        else:
            forms[name] = config
    return forms


def steering_fields(config: RunConfig, is_matrix: bool = True) -> set[str]:
    """Fields of a run that change what its optimizer does to a parameter over a few steps.

    Tried are the numbers and the preconditioner. Gradients are taken as they are: clipping comes before.

    Args:
        config: The run.
        is_matrix: The parameter is a quantized matrix, else a vector, which has no grid.
    """
    unchanged = _moved(config, is_matrix)
    changed = {name: _changed(config, name) for name in config.to_dict()}
    return {name for name, other in changed.items() if other is not None and _moved(other, is_matrix) != unchanged}


def _changed(config: RunConfig, name: str) -> RunConfig | None:
    """The run with another value of one field; None for fields that are not tried."""
    value = getattr(config, name)
    if name in _CHOICES:
        other: Any = next(choice for choice in _CHOICES[name] if choice != value)
    elif type(value) in (int, float):
        other = value + 1 if type(value) is int else value / 2
    else:
        return None
    return RunConfig.from_dict({**config.to_dict(), name: other})


def _moved(config: RunConfig, is_matrix: bool) -> bytes:
    """A parameter after a few steps of the optimizer, under gradients of every magnitude."""
    generator = torch.Generator().manual_seed(0)
    cpu = torch.device("cpu")
    stack = Stack(["w"], {"w": torch.randn(1, *([16, 16] if is_matrix else [256]), generator=generator)}, cpu)
    grid = WeightGrid(stack, [FORMAT_REGISTRY[config.format]], [0], [config]) if is_matrix else None
    optimizer = LaneOptimizer(stack, grid, config)
    magnitudes = torch.logspace(-9, 2, 256).view_as(stack.stored)
    for step in range(1, _BASE["steps"] + 1):
        stack.gradient.copy_(torch.randn(stack.stored.shape, generator=generator) * magnitudes)
        if grid is not None:
            grid.begin(step)
        optimizer.step(stack, stack.gradient, LaneNumbers([config], step, cpu))
        if grid is not None:
            grid.settle(stack)
    return stack.stored.numpy().tobytes()
