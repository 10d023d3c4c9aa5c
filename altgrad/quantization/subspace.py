"""Largest singular values followed from step to step, by several vectors at once."""

import torch
from torch import Tensor

#: Added to the diagonal of correlations of unit vectors, so that dependent ones have a Cholesky factor in float32.
_RIDGE = 1e-6


def subspace_iteration(matrices: Tensor, vectors: Tensor, steps: int = 1) -> tuple[Tensor, Tensor]:
    """Estimate spectral norms from below, starting from the last answer.

    A single vector (`power_iteration`) stays with an old leading direction long after a new one has outgrown it. Among
    several, the new one is found while it is still second or third. The matrices are read twice a step, however many
    vectors there are.

    Args:
        matrices: float32, ``(B, m, n)``.
        vectors: ``(B, k, n)`` with ``k <= n``: what the last call returned, or random ones at first.
        steps: iterations, at least 1.

    Returns:
        The spectral norms ``(B,)`` and the vectors for the next call. Where a matrix is zero its norm is 0, where it is
        not finite NaN, and its vectors are unchanged.

    Raises:
        ValueError: ``steps`` is less than 1.

    >>> matrix, start = torch.diag(torch.tensor([1.0, 3.0, 2.0])), torch.eye(3)[:2] + 0.1
    >>> norm, _ = subspace_iteration(matrix.unsqueeze(0), start.unsqueeze(0), steps=5)
    >>> norm
    tensor([3.])
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    for _ in range(steps):
        left = torch.bmm(vectors, matrices.mT)
        largest = left.abs().amax((-1, -2), keepdim=True)
        usable = (largest > 0) & largest.isfinite()
        left = left / torch.where(usable, largest, 1.0)
        right = torch.bmm(left, matrices)
        vectors = torch.where(usable, _orthonormal(right), vectors)
    mix = _leading(torch.bmm(left, left.mT))
    norm = _length(torch.bmm(mix, right)) / _length(torch.bmm(mix, left))
    norm = torch.where(largest == 0, 0.0, torch.where(usable, norm, torch.nan))
    return norm.flatten(), vectors


def _orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows that span the same, from the Cholesky factor of their correlations.

    Unlike a QR decomposition it is a handful of batched products, and waits for no device. Dependent rows come out
    short, which no estimate minds.
    """
    unit = rows / rows.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    unit = unit / torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    ridge = _RIDGE * torch.eye(unit.shape[-2], dtype=unit.dtype, device=unit.device)
    factor, _ = torch.linalg.cholesky_ex(torch.bmm(unit, unit.mT) + ridge)
    return torch.linalg.solve_triangular(factor, unit, upper=False)


def _leading(gram: Tensor) -> Tensor:
    """About the leading eigenvectors of small positive matrices ``(B, k, k)``, as rows ``(B, 1, k)`` of any length."""
    power, eye = gram, torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    for _ in range(3):
        power = power / (power * eye).sum((-1, -2), keepdim=True)
        for _ in range(3):
            power = torch.bmm(power, power)
    place = (power * eye).sum(-1).argmax(-1)
    return power.gather(1, place.view(-1, 1, 1).expand(-1, 1, power.shape[-1]))


def _length(rows: Tensor) -> Tensor:
    """``(B, 1, n)`` to ``(B, 1, 1)``, safe from overflow."""
    largest = rows.abs().amax(-1, keepdim=True)
    safe = torch.where(largest > 0, largest, 1.0)
    return torch.linalg.vector_norm(rows / safe, dim=-1, keepdim=True) * safe
