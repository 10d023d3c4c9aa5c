"""Ranks of all matrices: stable rank at every step, whole spectra at intervals.

Shapes: n matrices of a stack, L lanes, B = n * L, S matrices of the model.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.quantization.kernels import uniform_bits
from altgrad.quantization.rank_health import SpectralStats, spectral_stats
from altgrad.quantization.subspace import filter_subspace, subspace_step
from altgrad.training.weights import Stack, lane_sum

#: Singular vectors that are followed. With these numbers stable rank is within 1 % at every step of a run of nanoGPT's
#: CPU size; with one vector it is up to 65 % too high while the first directions of learning outgrow the random start.
_VECTORS = 8
#: Filters of the vectors with the initial weights, and how many steps of training are early: the directions are born in
#: them, so each has a filter before its product.
_FIRST, EARLY_STEPS = 5, 200

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
        #: About the leading left singular vectors, ``(n, L, k, in)``.
        self.left = _orthonormal(k, rows, stack)
        #: About the right ones, ``(n, L, k, out)``.
        self.right = _orthonormal(k, columns, stack)
        #: Views of the stored weights and of both, without the lanes' axis.
        self.sides = Sides(*(each.flatten(0, 1) for each in (stack.stored, self.left, self.right)))
        for _ in range(_FIRST):
            sharpen([self.sides], from_right=True)

    @staticmethod
    def spectra(stack: Stack) -> Tensor:
        """Exact ranks of the stored and of the working weights, float64 ``(len(SPECTRA), n, L)`` in that order."""
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


def sharpen(stacks: Sequence[Sides], from_right: bool) -> None:
    """Four products for the vectors' sake, two there and two back, from the right singular vectors or the left ones."""
    matrices, vectors, others = _turned(stacks, from_right)
    for kept, found in zip((vectors, others), filter_subspace(matrices, vectors, others), strict=True):
        _keep(kept, found)


def stable_ranks(stacks: Sequence[Sides], from_right: bool) -> Tensor:
    """Stable ranks (arXiv 1906.04659) of all matrices in order, float64, from one product.

    It goes from the right singular vectors to the left ones, or back; the next step's goes the other way.
    """
    matrices, vectors, others = _turned(stacks, from_right)
    norms, following = subspace_step(matrices, vectors, others)
    _keep(others, following)
    squares = torch.cat([lane_sum(of.matrices.unsqueeze(1).square()) for of in stacks])
    return squares.flatten() / norms.double().square()


def _turned(stacks: Sequence[Sides], from_right: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Matrices that take the vectors of one side to the others."""
    matrices, left, right = (list(each) for each in zip(*stacks, strict=True))
    return (matrices, right, left) if from_right else ([each.mT for each in matrices], left, right)


def _keep(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)
