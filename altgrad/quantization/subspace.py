"""Largest singular values followed from step to step, by several vectors at once."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: Added to the diagonal of correlations of unit vectors, so that dependent ones have a Cholesky factor in float32.
_RIDGE = 1e-6


def subspace_iteration(
    stacks: Sequence[Tensor], vectors: Sequence[Tensor], steps: int = 1
) -> tuple[Tensor, list[Tensor]]:
    """Estimate spectral norms from below, starting from the last answer.

    A single vector (power iteration, arXiv 1802.05957) stays with an old leading direction long after a new one has
    outgrown it. Among several, the new one is found while it is still second or third. The matrices are read twice a
    step, however many vectors there are; what is done to the small matrices of correlations is done for all at once.

    Args:
        stacks: float32 matrices, those of one shape together, each ``(B, m, n)``.
        vectors: for each stack ``(B, k, n)`` with ``k <= n``: what the last call returned, or random ones at first.
        steps: iterations, at least 1.

    Returns:
        The spectral norms of all matrices in order, and the vectors for the next call. Where a matrix is zero its norm
        is 0, where it is not finite NaN, and its vectors are unchanged.

    Raises:
        ValueError: ``steps`` is less than 1.

    >>> matrix, start = torch.diag(torch.tensor([1.0, 3.0, 2.0])), torch.eye(3)[:2] + 0.1
    >>> norms, _ = subspace_iteration([matrix.unsqueeze(0)], [start.unsqueeze(0)], steps=5)
    >>> round(norms.item(), 4)
    3.0
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    vectors, k = list(vectors), max(v.shape[-2] for v in vectors)
    for _ in range(steps):
        left = [_scaled(torch.bmm(v, w.mT)) for v, w in zip(vectors, stacks, strict=True)]
        right = [_scaled(torch.bmm(rows, w)) for (rows, _), w in zip(left, stacks, strict=True)]
        lengths = [torch.linalg.vector_norm(rows, dim=-1, keepdim=True) for rows, _ in right]
        units = [rows / torch.where(of > 0, of, 1.0) for (rows, _), of in zip(right, lengths, strict=True)]
        correlations = _correlations(units, k)
        mixes = _orthonormalizing(correlations).split([len(v) for v in vectors])
        vectors = [
            torch.where(_usable(largest), torch.bmm(mix[:, : len(v[0]), : len(v[0])], unit), v)
            for mix, unit, v, (_, largest) in zip(mixes, units, vectors, left, strict=True)
        ]
    length = torch.cat([F.pad(of, (0, 0, 0, k - of.shape[-2])) for of in lengths])
    of_left, of_right = _correlations([rows for rows, _ in left], k), correlations * length * length.mT
    mix = _leading(of_left)
    squares = [torch.bmm(torch.bmm(mix, gram), mix.mT) for gram in (of_right, of_left)]
    largest, largest_right = (torch.cat([of for _, of in rows]) for rows in (left, right))
    norm = (squares[0] / squares[1]).sqrt() * largest_right
    return torch.where(largest == 0, 0.0, torch.where(_usable(largest), norm, torch.nan)).flatten(), vectors


def _usable(largest: Tensor) -> Tensor:
    return (largest > 0) & largest.isfinite()


def _scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``(B, k, n)`` divided by their largest magnitude, and that, ``(B, 1, 1)``."""
    largest = rows.abs().amax((-1, -2), keepdim=True)
    return rows / torch.where(_usable(largest), largest, 1.0), largest


def _correlations(stacks: Sequence[Tensor], k: int) -> Tensor:
    """Products of the rows of each ``(B, <=k, n)`` with one another, ``(sum of B, k, k)``, zero beyond the rows."""
    grams = [torch.bmm(rows, rows.mT) for rows in stacks]
    return torch.cat([F.pad(gram, (0, k - gram.shape[-1], 0, k - gram.shape[-1])) for gram in grams])


def _orthonormalizing(correlations: Tensor) -> Tensor:
    """What makes unit vectors with these correlations orthonormal, ``(B, k, k)``: the inverse of their Cholesky factor.

    Unlike a QR decomposition of the vectors it is a handful of batched products, and waits for no device. Dependent
    vectors come out short, which no estimate minds.
    """
    eye = torch.eye(correlations.shape[-1], dtype=correlations.dtype, device=correlations.device)
    factor, _ = torch.linalg.cholesky_ex(correlations + _RIDGE * eye)
    return torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)


def _leading(gram: Tensor) -> Tensor:
    """About the leading eigenvectors of small positive matrices ``(B, k, k)``, as rows ``(B, 1, k)`` of any length."""
    power, eye = gram, torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    for _ in range(3):
        power = power / (power * eye).sum((-1, -2), keepdim=True)
        for _ in range(3):
            power = torch.bmm(power, power)
    place = (power * eye).sum(-1).argmax(-1)
    return power.gather(1, place.view(-1, 1, 1).expand(-1, 1, power.shape[-1]))
