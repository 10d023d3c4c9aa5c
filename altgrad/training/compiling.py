"""How the programs of the trainer are compiled, and when that pays."""

import typing
from collections.abc import Callable
from typing import Any, TypeVar

import torch

_F = TypeVar("_F", bound=Callable[..., Any])

_SETTINGS: dict[str, Any] = {
    # A shape is a program: on CPUs loops with bounds known beforehand are a third faster.
    "dynamic": False,
    # What one function may be compiled for: stacks differ in shape, packs in lanes, sweeps in optimizers.
    "recompile_limit": 256,
    # As many threads as PyTorch has when a program runs, not as many as it had when that was compiled.
    "options": {"cpp.dynamic_threads": True},
    "fullgraph": True,
}


def compiled(function: _F) -> _F:
    """A function under `torch.compile`. Formats, learning rates and seeds are tensors: other ones compile nothing."""
    return typing.cast(_F, torch.compile(function, **_SETTINGS))
