"""Spectral norms by several vectors at once, against singular value decompositions."""

import math

import pytest
import torch
from torch import Tensor

from altgrad.quantization import subspace

SHAPES = [(8, 16), (40, 40), (96, 32), (65, 128), (128, 512), (512, 128)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def start(matrices: Tensor, vectors: int = 8) -> Tensor:
    return normal(matrices.shape[0], vectors, matrices.shape[-1], seed=7)


def subspace_iteration(matrices: Tensor, vectors: Tensor, steps: int = 1) -> tuple[Tensor, Tensor]:
    """Of one stack."""
    found, (following,) = subspace.subspace_iteration([matrices], [vectors], steps)
    return found, following


def norms(matrices: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrices.double(), 2).float()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_converges_to_the_spectral_norm(shape: tuple[int, int]) -> None:
    matrices = normal(3, *shape)
    found, vectors = subspace_iteration(matrices, start(matrices), steps=40)
    torch.testing.assert_close(found, norms(matrices), rtol=1e-3, atol=0)
    eye = torch.eye(8).expand(3, 8, 8)
    torch.testing.assert_close(torch.bmm(vectors, vectors.mT), eye, rtol=0, atol=1e-4)


def test_is_never_above() -> None:
    matrices = normal(4, 40, 60)
    vectors = start(matrices)
    for _ in range(10):
        found, vectors = subspace_iteration(matrices, vectors)
        assert (found <= norms(matrices) * (1 + 1e-6)).all()


def test_a_new_direction_is_seen_as_it_takes_the_lead() -> None:
    """One vector goes on to tell of the old direction; this is how a matrix learns from a random start."""
    matrix, one = normal(64, 128) * 0.1, normal(64, 1, seed=1) @ normal(1, 128, seed=2) / 90
    _, single = subspace_iteration(matrix[None], start(matrix[None], vectors=1), steps=100)
    _, vectors = subspace_iteration(matrix[None], start(matrix[None]), steps=20)
    worst_of_one = worst = 0.0
    for i in range(1, 41):
        moved = matrix + 0.1 * i * one
        of_one, single = subspace_iteration(moved[None], single)
        found, vectors = subspace_iteration(moved[None], vectors, steps=2)
        true = norms(moved[None])
        worst_of_one, worst = max(worst_of_one, float(1 - of_one / true)), max(worst, float(1 - found / true))
    assert worst < 0.01 < 0.05 < worst_of_one


@pytest.mark.parametrize("norm", [1e-36, 1e-20, 1.0, 1e20, 1e36])
def test_rank_one_at_any_norm(norm: float) -> None:
    """All vectors become one, and nothing overflows."""
    u, v = normal(1, 40, 1, seed=1), normal(1, 1, 60, seed=2)
    matrix = u / u.norm() * norm @ (v / v.norm())
    vectors = start(matrix)
    for _ in range(5):
        found, vectors = subspace_iteration(matrix, vectors)
        assert found.item() == pytest.approx(norm, rel=1e-4)


def test_zero_and_not_finite_matrices_keep_their_vectors_and_touch_no_other() -> None:
    matrices = normal(4, 16, 32)
    before = start(matrices)
    alone = subspace_iteration(matrices[3:], before[3:], steps=2)
    matrices[0] = 0.0
    matrices[1, 2, 3] = math.nan
    matrices[2, 0, 0] = math.inf
    found, vectors = subspace_iteration(matrices, before, steps=2)
    assert found[0] == 0
    assert found[1:3].isnan().all()
    assert torch.equal(vectors[:3], before[:3])
    assert torch.equal(found[3:], alone[0])
    assert torch.equal(vectors[3:], alone[1])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_the_batch(shape: tuple[int, int], threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        matrices = normal(5, *shape)
        together = subspace_iteration(matrices, start(matrices), steps=3)
        for part in (slice(0, 1), slice(4, 5), slice(1, 4)):
            alone = subspace_iteration(matrices[part], start(matrices)[part], steps=3)
            assert torch.equal(alone[0], together[0][part])
            assert torch.equal(alone[1], together[1][part])
    finally:
        torch.set_num_threads(before)


def test_no_steps_are_an_error() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        subspace_iteration(torch.eye(2)[None], torch.eye(2)[None], steps=0)


def test_stacks_of_different_shapes_go_together_as_alone() -> None:
    """Also where one has so few rows that it has fewer vectors."""
    stacks = [normal(3, 40, 60), normal(1, 4, 16), normal(2, 64, 32)]
    vectors = [start(stacks[0]), start(stacks[1], vectors=4), start(stacks[2])]
    found, following = subspace.subspace_iteration(stacks, vectors, steps=3)
    for i, (stack, before) in enumerate(zip(stacks, vectors, strict=True)):
        first = sum(map(len, stacks[:i]))
        alone, after = subspace_iteration(stack, before, steps=3)
        torch.testing.assert_close(found[first : first + len(stack)], alone, rtol=1e-6, atol=0)
        torch.testing.assert_close(following[i], after, rtol=1e-3, atol=1e-5)
