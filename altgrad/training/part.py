"""One stack of parameters with all that belongs to it: its codes, its optimizer, its observers.

Shapes: L lanes, n matrices of the stack.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from altgrad.quantization.formats import FP8Format
from altgrad.training.callbacks import FlipObserver
from altgrad.training.config import RunConfig
from altgrad.training.lane_optimizer import LaneNumbers, LaneOptimizer
from altgrad.training.metrics import DISCRETE
from altgrad.training.precision import WeightGrid
from altgrad.training.ranks import RankObserver
from altgrad.training.weights import Stack, lane_sum, per_lane

#: What `Part.move` measures of every matrix.
MOVED = (*DISCRETE, "scale")


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

    def take_gradient(self) -> Tensor:
        """Collect the gradient of the last backward pass; its sums of squares, float64 ``(n, L)``."""
        self.stack.take_gradient()
        return lane_sum(self.stack.gradient.square())

    def move(self, numbers: LaneNumbers, factor: Tensor) -> Tensor | None:
        """Clip, optimize, round, and count what that did to the codes.

        Args:
            numbers: of the optimizer, at this step.
            factor: what clipping multiplies the gradient by, ``(L,)``.

        Returns:
            `MOVED` of the matrices, float64 ``(len(MOVED), n, L)``, NaN where there are no codes; None for vectors.
        """
        stack = self.stack
        gradient = stack.gradient * per_lane(factor, stack.gradient)
        self.optimizer.step(stack, gradient, numbers)
        if self.grid is not None and self.flips is not None:
            columns = self.flips.observe(self.grid.round(stack), gradient)
            columns["scale"] = self.grid.frozen + self.flips.undefined
            return torch.stack([columns[name] for name in MOVED])
        if self.ranks is None:
            return None
        shape = len(MOVED), *stack.stored.shape[:2]
        return torch.full(shape, torch.nan, dtype=torch.float64, device=stack.stored.device)

    def rescale(self) -> Tensor | None:
        """Move on to the next step; codes that change with the scale, as `WeightGrid.rescale` has them."""
        if self.grid is None or self.flips is None:
            return None
        self.flips.turn()
        return self.grid.rescale(self.stack)

    def tensors(self) -> dict[str, Tensor]:
        """The state by parameter, lanes first: all that a later step depends on, and nothing that follows from it.

        Weights are ``codes`` where no lane has anything finer, else ``stored``.
        """
        if self.grid and self.grid.codes_are_weights:
            weights = {"codes": self.grid.codes(self.stack)}
        else:
            weights = {"stored": self.stack.stored}
        return by_name(self.stack.names, weights | self._beside_weights())

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the state that `tensors` gave, from among those of other parts too.

        Weights are welcome as ``stored`` too: they were, as long as another lane had masters.
        """
        for name, own in by_name(self.stack.names, self._beside_weights()).items():
            own.copy_(tensors[name])
        codes = [tensors.get(f"{name}/codes") for name in self.stack.names]
        if self.grid and all(of_matrix is not None for of_matrix in codes):
            self.grid.restore(self.stack, torch.stack([of_matrix for of_matrix in codes if of_matrix is not None]))
            return
        self.stack.stored.copy_(torch.stack([tensors[f"{name}/stored"] for name in self.stack.names]))
        if self.grid:
            self.grid.refresh(self.stack)

    def _beside_weights(self) -> dict[str, Tensor]:
        state = {**self.optimizer.state}
        if self.ranks:
            state |= {"left_vectors": self.ranks.left, "right_vectors": self.ranks.right}
        if self.grid and self.flips:
            state |= {"direction": self.flips.direction, **self.grid.scaler.tensors()}
        return state


def by_name(names: Sequence[str], stacked: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``{"x": (n, L, ...)}`` as ``{"<name>/x": (L, ...)}``."""
    return {f"{name}/{kind}": tensor[i] for kind, tensor in stacked.items() for i, name in enumerate(names)}
