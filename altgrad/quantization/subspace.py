"""Largest singular values followed from step to step, by several vectors at once."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: Added to the diagonal of correlations of unit vectors, so that dependent ones have a Cholesky factor in float32.
_RIDGE = 1e-6


def subspace_step(
    stacks: Sequence[Tensor], vectors: Sequence[Tensor], others: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Estimate spectral norms from below, starting from the last answer; half of a subspace iteration.

    A single vector (power iteration, arXiv 1802.05957) stays with an old leading direction long after a new one has
    outgrown it. Among several, the new one is found while it is still second or third. The matrices are read once,
    however many vectors there are; what is done to the small matrices of correlations is done for all at once. The
    answer lies on the other side of the matrices, so the next step takes them transposed.

    Args:
        stacks: float32 matrices, those of one shape together, each ``(B, m, n)``.
        vectors: for each stack orthonormal rows ``(B, k, n)``, ``k <= m, n``: at first random, then the last answer.
        others: for each stack rows ``(B, k, m)``: what was ``vectors`` of the last step, at first random too.

    Returns:
        The spectral norms of all matrices in order, and for each stack the rows ``(B, k, m)`` to go on with. Where a
        matrix is zero its norm is 0, where it is not finite NaN, and its rows are ``others``.

    >>> matrix = torch.diag(torch.tensor([1.0, 3.0, 2.0])).unsqueeze(0)
    >>> right = left = torch.linalg.qr(torch.tensor([[1.0, 1.0], [1.0, 2.0], [1.0, 4.0]])).Q.mT.unsqueeze(0)
    >>> for _ in range(20):
    ...     norms, (left,) = subspace_step([matrix], [right], [left])
    ...     matrix, right, left = matrix.mT, left, right
    >>> round(norms.item(), 4)
    3.0
    """
    k = max(v.shape[-2] for v in vectors)
    images = [_scaled(torch.bmm(v, w.mT)) for v, w in zip(vectors, stacks, strict=True)]
    lengths = [torch.linalg.vector_norm(rows, dim=-1, keepdim=True) for rows, _ in images]
    units = [rows / torch.where(of > 0, of, 1.0) for (rows, _), of in zip(images, lengths, strict=True)]
    correlations = _correlations(units, k)
    mixes = _orthonormalizing(correlations).split([len(v) for v in vectors])
    following = [
        torch.where(_usable(largest), torch.bmm(mix[:, : len(v[0]), : len(v[0])], unit), other)
        for mix, unit, v, other, (_, largest) in zip(mixes, units, vectors, others, images, strict=True)
    ]
    length = torch.cat([F.pad(of, (0, 0, 0, k - of.shape[-2])) for of in lengths])
    largest = torch.cat([of for _, of in images])
    norm = _largest_eigenvalue(correlations * length * length.mT).sqrt() * largest
    return torch.where(largest == 0, 0.0, torch.where(_usable(largest), norm, torch.nan)).flatten(), following


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


def _largest_eigenvalue(gram: Tensor) -> Tensor:
    """Of small positive matrices ``(B, k, k)``, from below, ``(B, 1, 1)``."""
    power, eye = gram, torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    for _ in range(3):
        power = power / (power * eye).sum((-1, -2), keepdim=True)
        for _ in range(3):
            power = torch.bmm(power, power)
    # A high power has the leading eigenvector in all its rows; the longest is the most exact.
    place = (power * eye).sum(-1).argmax(-1)
    row = power.gather(1, place.view(-1, 1, 1).expand(-1, 1, power.shape[-1]))
    return torch.bmm(torch.bmm(row, gram), row.mT) / torch.bmm(row, row.mT)
