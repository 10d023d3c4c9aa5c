"""One stack of parameters with all that belongs to it: its codes, its optimizer, its observers.

Shapes: L lanes, n matrices of the stack.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.quantization.formats import FP8Format
from altgrad.training.callbacks import SPECTRA, FlipObserver, RankObserver
from altgrad.training.compiling import compiled, is_compiled
from altgrad.training.config import RunConfig
from altgrad.training.lane_optimizer import LaneNumbers, LaneOptimizer
from altgrad.training.metrics import DISCRETE
from altgrad.training.precision import WeightGrid
from altgrad.training.weights import Stack, lane_sum, per_lane


class Part:
    """One stack of parameters: what a step does to it, and what is seen of that."""

    def __init__(self, stack: Stack, formats: Sequence[FP8Format], index: Sequence[int], configs: Sequence[RunConfig]):
        """``formats``: one a lane. ``index``: the matrices' places in the model; empty for vectors."""
        self.stack = stack
        has_codes = bool(index) and "weights" in configs[0].tensors and not all(f.is_identity for f in formats)
        #: Codes of the matrices, where any lane has some.
        self.grid = WeightGrid(stack, formats, index, configs) if has_codes else None
        self.optimizer = LaneOptimizer(stack, self.grid, configs[0])
        self.flips = FlipObserver(stack, self.grid) if self.grid else None
        self.ranks = RankObserver(stack) if stack.is_matrix else None
        self._rank_interval = configs[0].ranks.interval
        self._run = _COMPILED if is_compiled(configs[0], stack.stored.device) else _EAGER

    def take_gradient(self) -> Tensor:
        """Collect the gradient of the last backward pass; its sums of squares, float64 ``(n, L)``."""
        self.stack.take_gradient()
        return lane_sum(self.stack.gradient.square())

    def move(self, numbers: LaneNumbers, factor: Tensor, step: int) -> dict[str, Tensor]:
        """Take one optimizer step and round its result.

        Args:
            numbers: of the optimizer, at this step.
            factor: what clipping multiplies the gradient by, ``(L,)``.
            step: the step, from 1.

        Returns:
            The matrices' columns, float64 ``(n, L)``; none for vectors.
        """
        if self.grid is None or self.flips is None:
            self._run.optimize(self, numbers, factor)
            return self._columns({}, step) if self.ranks else {}
        self.grid.begin(step)
        scale = self.grid.scaler.scale.clone()
        columns = self._run.round(self, numbers, factor)
        self.flips.turn()
        undefined = columns["flips"] * 0.0
        rescale_flips = self.grid.rescale(self.stack, scale)
        columns |= {"scale": scale + undefined, "rescale_flips": rescale_flips + undefined}
        return self._columns(columns, step)

    def _columns(self, discrete: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Every column there is, NaN where a matrix has none or none was due."""
        assert self.ranks
        stored = self.stack.stored
        undefined = torch.full(stored.shape[:2], torch.nan, dtype=torch.float64, device=stored.device)
        iterations = self.ranks.iterations(step)
        # The early steps are too few to repay a program of their own.
        observe_ranks = self._run.observe_ranks if iterations == 1 else _EAGER.observe_ranks
        ranks = observe_ranks(self, iterations)
        columns = dict.fromkeys((*DISCRETE, "scale", *SPECTRA), undefined) | discrete | ranks
        return columns | self.ranks.spectra(self.stack) if step % self._rank_interval == 0 else columns

    def tensors(self) -> dict[str, Tensor]:
        """The state by parameter, lanes first: all that a later step depends on, and nothing that follows from it."""
        state = {**self.optimizer.state}
        if self.ranks:
            state["vectors"] = self.ranks.vectors
        if self.grid and self.flips:
            state |= {"direction": self.flips.direction, **self.grid.scaler.tensors()}
        if self.grid and self.grid.codes_are_weights:
            state["codes"] = self.grid.codes(self.stack)
        else:
            state["stored"] = self.stack.stored
        return by_name(self.stack.names, state)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the state that `tensors` gave, from among those of other parts too."""
        for name, own in self.tensors().items():
            own.copy_(tensors[name])
        if self.grid and self.grid.codes_are_weights:
            self.grid.restore(self.stack, torch.stack([tensors[f"{name}/codes"] for name in self.stack.names]))
        elif self.grid:
            self.grid.refresh(self.stack)


def _optimize(part: Part, numbers: LaneNumbers, factor: Tensor) -> Tensor:
    """Clip and optimize; the clipped gradient."""
    gradient = part.stack.gradient * per_lane(factor, part.stack.gradient)
    part.optimizer.step(part.stack, gradient, numbers)
    return gradient


def _round(part: Part, numbers: LaneNumbers, factor: Tensor) -> dict[str, Tensor]:
    """Clip, optimize, round and observe; the columns."""
    assert part.grid is not None
    assert part.flips is not None
    gradient = _optimize(part, numbers, factor)
    transition = part.grid.round(part.stack)
    return part.flips.observe(transition, gradient)


def _observe_ranks(part: Part, iterations: int) -> dict[str, Tensor]:
    assert part.ranks is not None
    return part.ranks.observe(part.stack, iterations)


class _Programs(NamedTuple):
    """What a part does at every step."""

    optimize: Callable[[Part, LaneNumbers, Tensor], Tensor]
    round: Callable[[Part, LaneNumbers, Tensor], dict[str, Tensor]]
    observe_ranks: Callable[[Part, int], dict[str, Tensor]]


_EAGER = _Programs(_optimize, _round, _observe_ranks)
_COMPILED = _Programs(compiled(_optimize), compiled(_round), compiled(_observe_ranks))


def by_name(names: Sequence[str], stacked: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``{"x": (n, L, ...)}`` as ``{"<name>/x": (L, ...)}``."""
    return {f"{name}/{kind}": tensor[i] for kind, tensor in stacked.items() for i, name in enumerate(names)}
