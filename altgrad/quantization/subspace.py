"""Largest singular values followed from step to step, by several vectors at once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from altgrad.quantization.kernels import largest_magnitudes

#: Added to the diagonal of correlations of unit vectors, so that dependent ones have a Cholesky factor in float32.
_RIDGE = 1e-6
#: Rows of stacks are worked on together, padded with zeros, where the longest are not longer than this times others.
_PADDED = 8


def subspace_step(
    stacks: Sequence[Tensor], vectors: Sequence[Tensor], others: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Estimate spectral norms from below, starting from the last answer; half of a subspace iteration.

    A single vector (power iteration, arXiv 1802.05957) stays with an old leading direction long after a new one has
    outgrown it. Among several, the new one is found while it is still second or third. The matrices are read once,
    however many vectors there are; what is done to the images of the vectors is done for all at once, as far as their
    lengths are comparable. The answer lies on the other side of the matrices, so the next step takes them transposed.

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
    images = _images(stacks, vectors)
    norms = dict(place for of in images for place in of.split(of.norms()))
    return torch.cat([norms[i] for i in range(len(stacks))]), _following(images, others)


def filter_subspace(
    stacks: Sequence[Tensor], vectors: Sequence[Tensor], others: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Come nearer to the leading singular vectors: four products that are worth seven and more of `subspace_step`.

    Chebyshev-filtered subspace iteration (Zhou, Saad, Tiago, Chelikowsky, J. Comput. Phys. 219, 2006) of degree 2:
    with ``A`` the matrices' squares on the side of ``vectors`` and ``b`` about the smallest of the eigenvalues that are
    followed, ``A^2 - b A + b^2 / 8`` is small for all below ``b`` and grows faster above it than any other square. The
    vectors are made orthonormal after every product, so that none is lost where one stands out.

    Args and shapes: as `subspace_step`.

    Returns:
        The rows to go on with on the side of ``vectors``, and those on the side of ``others``; where a matrix is zero
        or not finite, what was given.

    >>> matrix = torch.diag(torch.tensor([1.0, 3.0, 2.9])).unsqueeze(0)
    >>> right = left = torch.linalg.qr(torch.tensor([[1.0, 1.0], [1.0, 2.0], [1.0, 4.0]])).Q.mT.unsqueeze(0)
    >>> for _ in range(4):
    ...     (right,), (left,) = filter_subspace([matrix], [right], [left])
    >>> round(subspace_step([matrix], [right], [left])[0].item(), 4)
    3.0
    """
    back = [w.mT for w in stacks]
    first = _images(stacks, vectors)
    others = _following(first, others)
    second = _images(back, others)
    nearer = _following(second, vectors)
    third = _images(stacks, nearer)
    others = _following(third, others)
    triangles = zip(*map(_triangles, (first, second, third)), strict=True)
    rows = list(map(_filtered, back, others, nearer, vectors, triangles))
    return _following(_grouped(rows), nearer), others


class _Images(NamedTuple):
    """What vectors become under their matrices, of stacks whose rows are about as long."""

    #: Where the stacks stand among all, and how many matrices each has.
    places: list[int]
    counts: list[int]
    #: Rows of unit length, ``(B, k, length)``, padded with zeros; zero where there is nothing to normalise.
    units: Tensor
    #: What they were divided by: lengths ``(B, k, 1)``, and before that the largest magnitude of each matrix's rows,
    #: ``(B, 1, 1)``.
    lengths: Tensor
    largest: Tensor
    #: Products of the unit rows with one another, ``(B, k, k)``, and what makes them orthonormal, lower triangular.
    correlations: Tensor
    orthonormalizing: Tensor

    def split(self, values: Tensor) -> list[tuple[int, Tensor]]:
        """``(B, ...)`` by stack, each with its place."""
        return list(zip(self.places, values.split(self.counts), strict=True))

    def norms(self) -> Tensor:
        """Spectral norms ``(B,)``."""
        lengths, largest = self.lengths, self.largest
        norm = _largest_eigenvalue(self.correlations * lengths * lengths.mT).sqrt() * largest
        return torch.where(largest == 0, 0.0, torch.where(_usable(largest), norm, torch.nan)).flatten()


class _Triangle(NamedTuple):
    """What takes the images of one stack's vectors, measured in ``unit``, to orthonormal rows."""

    #: ``(B, k, k)``, lower triangular.
    matrix: Tensor
    #: ``(B, 1, 1)``.
    unit: Tensor


def _triangles(images: Sequence[_Images]) -> list[_Triangle]:
    """One of each stack, in order."""
    found: dict[int, _Triangle] = {}
    for of in images:
        matrices = of.split(of.orthonormalizing / _or_one(of.lengths > 0, of.lengths).mT)
        units = of.split(of.largest)
        found |= {place: _Triangle(matrix, unit) for (place, matrix), (_, unit) in zip(matrices, units, strict=True)}
    return [found[place] for place in sorted(found)]


def _filtered(
    back: Tensor, others: Tensor, nearer: Tensor, vectors: Tensor, triangles: tuple[_Triangle, _Triangle, _Triangle]
) -> Tensor:
    """Rows that span what the polynomial of `filter_subspace` makes of ``vectors``: ``(B, k, n)``.

    ``nearer`` are ``vectors`` after two products, ``others`` after three. What each product was divided by to become
    orthonormal divides the polynomial's lower terms too. All is in the unit of the third product, so nothing overflows;
    where that is 0 or not finite, rows are NaN.
    """
    k = vectors.shape[-2]
    (one, unit_one), (two, unit_two), (three, unit) = ((of.matrix[:, :k, :k], of.unit) for of in triangles)
    # The reciprocal of a triangle's diagonal tells how far each vector's image leads beyond those before it.
    edge = three.diagonal(dim1=-2, dim2=-1).amax(-1).square().reciprocal().view(-1, 1, 1)
    rows = torch.bmm(others / unit, back.mT)
    rows.baddbmm_(edge * three, nearer, alpha=-1)
    constant = edge.square() / 8 * (unit / unit_two) * (unit / unit_one)
    return rows.baddbmm_(constant * (three @ two @ one), vectors)


def _images(stacks: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[_Images]:
    return _grouped([torch.bmm(v, w.mT) for v, w in zip(vectors, stacks, strict=True)])


def _grouped(rows: Sequence[Tensor]) -> list[_Images]:
    return [_images_together([rows[i] for i in places], places) for places in _places([of.shape[-1] for of in rows])]


def _places(lengths: Sequence[int]) -> list[list[int]]:
    """Which stacks are worked on together."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if not groups or lengths[groups[-1][0]] > _PADDED * lengths[i]:
            groups.append([])
        groups[-1].append(i)
    return groups


def _images_together(stacks: Sequence[Tensor], places: list[int]) -> _Images:
    k, length = (max(rows.shape[axis] for rows in stacks) for axis in (-2, -1))
    rows = torch.cat([F.pad(rows, (0, length - rows.shape[-1], 0, k - rows.shape[-2])) for rows in stacks])
    largest = largest_magnitudes(rows, keepdim=True)
    rows = rows.div_(_or_one(_usable(largest), largest))
    lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    units = rows.div_(_or_one(lengths > 0, lengths))
    correlations = torch.bmm(units, units.mT)
    counts = [len(rows) for rows in stacks]
    return _Images(places, counts, units, lengths, largest, correlations, _orthonormalizing(correlations))


def _following(images: Sequence[_Images], others: Sequence[Tensor]) -> list[Tensor]:
    following = list(others)
    for of in images:
        orthonormal = torch.bmm(of.orthonormalizing, of.units)
        for (i, rows), (_, usable) in zip(of.split(orthonormal), of.split(_usable(of.largest)), strict=True):
            other = others[i]
            following[i] = torch.where(usable, rows[:, : other.shape[-2], : other.shape[-1]], other)
    return following


def _or_one(where: Tensor, divisor: Tensor) -> Tensor:
    return torch.where(where, divisor, 1.0)


def _usable(largest: Tensor) -> Tensor:
    return (largest > 0) & largest.isfinite()


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
