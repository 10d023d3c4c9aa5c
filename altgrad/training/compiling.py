"""How the programs of the trainer are compiled, and when that pays."""

import functools
import logging
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from altgrad.quantization.fused import engine, exact_options
from altgrad.training.config import RunConfig

_F = TypeVar("_F", bound=Callable[..., Any])
_LOG = logging.getLogger(__name__)

_SETTINGS: dict[str, Any] = {
    # A shape is a program: on CPUs loops with bounds known beforehand are a third faster.
    "dynamic": False,
    # What one function may be compiled for: stacks differ in shape, packs in lanes, sweeps in optimizers.
    "recompile_limit": 256,
    "fullgraph": True,
}
#: As many threads as PyTorch has when a program runs, not as many as it had when that was compiled.
_THREADS = {"cpp.dynamic_threads": True}

#: What compilation costs with an empty cache: whatever the model, and for every layer.
_COST, _COST_A_LAYER = 40.0, 6.0
#: What it saves in a step: whatever the model, and for every element of weights and activations.
_SAVED, _SAVED_AN_ELEMENT = 2e-3, 1.9e-9


def compiled(function: _F, **options: Any) -> _F:
    """A function under `torch.compile`, with further options of its compiler where given.

    What a lane has of its own is a tensor: other 8-bit formats compile nothing.

    Where the compiler fails, before anything has run, the function goes on eagerly and says so once.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # two seconds to import

    program = torch.compile(function, **_SETTINGS, options=_THREADS | exact_options() | options)
    failed = False

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        nonlocal failed
        if not failed:
            try:
                return program(*arguments)
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                failed = True
                reason = " ".join(str(error).split())[:200]
                _LOG.warning("%s is not compiled but run eagerly: the compiler failed (%s)", function.__name__, reason)
        return function(*arguments)

    return typing.cast(_F, run)


def is_compiled(config: RunConfig, device: torch.device) -> bool:
    """Whether a run is compiled: where it says so, or where it is long enough to repay compilation.

    What one lane alone would do decides, so that a lane's numbers do not depend on its pack. On GPUs nothing was
    measured yet, so there it is compiled only where it says so.
    """
    if config.compile != "auto":
        return config.compile == "always"
    if device.type != "cpu" or config.steps * saved_seconds(config) < compile_seconds(config):
        return False
    return engine("cpu").name == "compiled"


def compile_seconds(config: RunConfig) -> float:
    """About what compiling a run takes on two cores with an empty cache (docs/measurements.md)."""
    return _COST + _COST_A_LAYER * config.model.n_layer


def saved_seconds(config: RunConfig) -> float:
    """About what compiling saves in a step of one lane on two cores (docs/measurements.md)."""
    model = config.model
    weights = 12 * model.n_layer * model.n_embd**2
    activations = 20 * model.n_layer * model.n_embd * model.block_size * config.batch_size
    return _SAVED + _SAVED_AN_ELEMENT * (weights + activations)
