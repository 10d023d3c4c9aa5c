"""Ranks of all matrices: stable rank at every step, whole spectra at intervals.

Shapes: n matrices of a stack, L lanes, B = n * L, S matrices of the model.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.quantization.kernels import uniform_bits
from altgrad.quantization.rank_health import SpectralStats, spectral_stats
from altgrad.quantization.subspace import subspace_iteration, subspace_step
from altgrad.training.weights import Stack

#: Singular vectors that are followed. With these numbers stable rank is within 1 % at every step of a run of nanoGPT's
#: CPU size; with one vector it is up to 65 % too high while the first directions of learning outgrow the random start.
_VECTORS = 8
#: Whole iterations on the initial weights, and before the half one of each early step of training, in which the
#: directions are born; and how many steps are early.
_FIRST, _EARLY, EARLY_STEPS = 20, 4, 200

#: The columns of `RankObserver.spectra`, NaN between rank checks.
SPECTRA = (
    *("exact_stable_rank", "effective_rank", "spectral_norm"),
    *("quantized_stable_rank", "quantized_effective_rank", "quantized_spectral_norm"),
)


class Sides(NamedTuple):
    """The matrices of a stack, one after another, and what is known of their leading singular vectors."""

    #: ``(B, in, out)``.
    matrices: Tensor
    #: ``(B, k, in)``.
    left: Tensor
    #: ``(B, k, out)``.
    right: Tensor


class RankObserver:
    """What is known of the leading singular vectors of one stack."""

    def __init__(self, stack: Stack) -> None:
        rows, columns = stack.stored.shape[-2:]
        k = min(_VECTORS, rows, columns)
        #: About the leading left singular vectors, ``(n, L, k, in)``: set by odd steps, read by even ones.
        self.left = _orthonormal(k, rows, stack)
        #: About the right ones, ``(n, L, k, out)``: set by even steps, read by odd ones.
        self.right = _orthonormal(k, columns, stack)
        for _ in range(_FIRST):
            iterate([self.sides(stack)], from_right=True)

    def sides(self, stack: Stack) -> Sides:
        """Views without the lanes' axis."""
        return Sides(*(each.flatten(0, 1) for each in (stack.stored, self.left, self.right)))

    @staticmethod
    def spectra(stack: Stack) -> Tensor:
        """`SPECTRA`: exact ranks of the stored and of the working weights, float64 ``(len(SPECTRA), n, L)``."""
        stored = spectral_stats(stack.stored)
        working = stored if stack.working is stack.stored else spectral_stats(stack.working)
        return torch.stack([*_columns(stored), *_columns(working)])


def _columns(ranks: SpectralStats) -> list[Tensor]:
    return [each.double() for each in ranks]


def _orthonormal(count: int, length: int, stack: Stack) -> Tensor:
    """Random rows ``(n, L, count, length)``, the same for all matrices."""
    key = torch.zeros(1, dtype=torch.int32, device=stack.stored.device)
    rows = uniform_bits(key, count * length).view(length, count) - 0.5
    return torch.linalg.qr(rows).Q.mT.repeat(*stack.stored.shape[:2], 1, 1)


def iterations(step: int) -> int:
    """How often a step of training takes `iterate` before `stable_ranks`."""
    return _EARLY if step <= EARLY_STEPS else 0


def iterate(stacks: Sequence[Sides], from_right: bool) -> None:
    """A whole subspace iteration, for the vectors' sake."""
    matrices, vectors, _ = _turned(stacks, from_right)
    _keep(vectors, subspace_iteration(matrices, vectors))


def stable_ranks(stacks: Sequence[Sides], squares: Tensor, from_right: bool) -> Tensor:
    """Stable ranks (arXiv 1906.04659) from one step of the subspace iteration.

    Args:
        stacks: all matrices.
        squares: sums of squares of the same matrices, float64 of any shape with as many elements, in their order.
        from_right: whether it takes the right vectors to the left ones; every step goes back where the last came from.

    Returns:
        float64 of the shape of ``squares``.
    """
    matrices, vectors, others = _turned(stacks, from_right)
    norms, following = subspace_step(matrices, vectors, others)
    _keep(others, following)
    return squares / norms.view_as(squares).double().square()


def _turned(stacks: Sequence[Sides], from_right: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Matrices that take the vectors of one side to the others."""
    matrices, left, right = (list(each) for each in zip(*stacks, strict=True))
    return (matrices, right, left) if from_right else ([each.mT for each in matrices], left, right)


def _keep(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)
