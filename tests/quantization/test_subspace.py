"""Spectral norms by several vectors at once, against singular value decompositions."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from altgrad.quantization.subspace import filter_subspace, subspace_step

SHAPES = [(8, 16), (40, 40), (96, 32), (65, 128), (128, 512), (512, 128)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Sides(NamedTuple):
    """Vectors on both sides of the matrices of a stack."""

    right: Tensor
    left: Tensor


def start(matrices: Tensor, vectors: int = 8) -> Sides:
    rows, columns = (normal(len(matrices), size, vectors, seed=7) for size in matrices.shape[-2:])
    return Sides(torch.linalg.qr(columns).Q.mT, torch.linalg.qr(rows).Q.mT)


#: A turn of one stack: its norms, and the vectors to go on with.
Turn = Callable[[Tensor, Sides], tuple[Tensor, Sides]]


def there_and_back(matrices: Tensor, sides: Sides) -> tuple[Tensor, Sides]:
    """Once to the left and once back to the right."""
    _, (left,) = subspace_step([matrices], [sides.right], [sides.left])
    norms, (right,) = subspace_step([matrices.mT], [left], [sides.right])
    return norms, Sides(right, left)


def filtered(matrices: Tensor, sides: Sides) -> tuple[Tensor, Sides]:
    """A filter from the right, and once to the left."""
    (right,), (left,) = filter_subspace([matrices], [sides.right], [sides.left])
    norms, (left,) = subspace_step([matrices], [right], [left])
    return norms, Sides(right, left)


@pytest.fixture(params=[there_and_back, filtered])
def turn(request: pytest.FixtureRequest) -> Turn:
    return request.param


def followed(turn: Turn, matrices: Tensor, sides: Sides, turns: int = 1) -> tuple[Tensor, Sides]:
    """So many turns of one stack."""
    for _ in range(turns):
        norms, sides = turn(matrices, sides)
    return norms, sides


def norms(matrices: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrices.double(), 2).float()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_converges_to_the_spectral_norm(shape: tuple[int, int], turn: Turn) -> None:
    matrices = normal(3, *shape)
    found, sides = followed(turn, matrices, start(matrices), turns=40)
    torch.testing.assert_close(found, norms(matrices), rtol=1e-3, atol=0)
    for vectors in sides:
        torch.testing.assert_close(torch.bmm(vectors, vectors.mT), torch.eye(8).expand(3, 8, 8), rtol=0, atol=1e-4)


def test_is_never_above(turn: Turn) -> None:
    matrices = normal(4, 40, 60)
    sides = start(matrices)
    for _ in range(10):
        found, sides = followed(turn, matrices, sides)
        assert (found <= norms(matrices) * (1 + 1e-6)).all()


def test_a_new_direction_is_seen_as_it_takes_the_lead(turn: Turn) -> None:
    """One vector goes on to tell of the old direction; this is how a matrix learns from a random start."""
    matrix, one = normal(64, 128) * 0.1, normal(64, 1, seed=1) @ normal(1, 128, seed=2) / 90
    _, single = followed(there_and_back, matrix[None], start(matrix[None], vectors=1), turns=100)
    _, sides = followed(turn, matrix[None], start(matrix[None]), turns=20)
    worst_of_one = worst = 0.0
    for i in range(1, 41):
        moved = matrix + 0.1 * i * one
        of_one, single = followed(there_and_back, moved[None], single)
        found, sides = followed(turn, moved[None], sides, turns=2)
        true = norms(moved[None])
        worst_of_one, worst = max(worst_of_one, float(1 - of_one / true)), max(worst, float(1 - found / true))
    assert worst < 0.01 < 0.05 < worst_of_one


@pytest.mark.parametrize("norm", [1e-36, 1e-20, 1.0, 1e20, 1e36])
def test_rank_one_at_any_norm(norm: float, turn: Turn) -> None:
    """All vectors become one, and nothing overflows."""
    u, v = normal(1, 40, 1, seed=1), normal(1, 1, 60, seed=2)
    matrix = u / u.norm() * norm @ (v / v.norm())
    sides = start(matrix)
    for _ in range(5):
        found, sides = followed(turn, matrix, sides)
        assert found.item() == pytest.approx(norm, rel=1e-4)


def test_zero_and_not_finite_matrices_keep_their_vectors_and_touch_no_other(turn: Turn) -> None:
    matrices = normal(4, 16, 32)
    before = start(matrices)
    alone, after = followed(turn, matrices[3:], Sides(*(vectors[3:] for vectors in before)), turns=2)
    matrices[0] = 0.0
    matrices[1, 2, 3] = math.nan
    matrices[2, 0, 0] = math.inf
    found, following = followed(turn, matrices, before, turns=2)
    assert found[0] == 0
    assert found[1:3].isnan().all()
    assert torch.equal(found[3:], alone)
    for vectors, kept, of_one in zip(following, before, after, strict=True):
        assert torch.equal(vectors[:3], kept[:3])
        assert torch.equal(vectors[3:], of_one)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_the_batch(shape: tuple[int, int], threads: int, turn: Turn) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        matrices = normal(5, *shape)
        together, sides = followed(turn, matrices, start(matrices), turns=3)
        for part in (slice(0, 1), slice(4, 5), slice(1, 4)):
            alone, of_part = followed(
                turn, matrices[part], Sides(*(vectors[part] for vectors in start(matrices))), turns=3
            )
            assert torch.equal(alone, together[part])
            assert all(torch.equal(a, b[part]) for a, b in zip(of_part, sides, strict=True))
    finally:
        torch.set_num_threads(before)


def test_stacks_of_different_shapes_go_together_as_alone() -> None:
    """Also where one has so few rows that it has fewer vectors, and where one is much taller than the others."""
    stacks = [normal(3, 40, 60), normal(1, 4, 16), normal(2, 64, 32), normal(2, 1000, 60)]
    sides = [start(stacks[0]), start(stacks[1], vectors=4), start(stacks[2]), start(stacks[3])]
    vectors = [of.right for of in sides], [of.left for of in sides]
    found, following = subspace_step(stacks, *vectors)
    for i, (stack, of_stack) in enumerate(zip(stacks, sides, strict=True)):
        first = sum(map(len, stacks[:i]))
        alone, (after,) = subspace_step([stack], [of_stack.right], [of_stack.left])
        torch.testing.assert_close(found[first : first + len(stack)], alone, rtol=1e-6, atol=0)
        torch.testing.assert_close(following[i], after, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
@pytest.mark.parametrize("shape", [(64, 128), (128, 64), (40, 200)], ids=str)
def test_a_filter_is_its_polynomial(shape: tuple[int, int], scale: float) -> None:
    """The same rows are spanned as by the polynomial of the matrix's square, formed in float64."""
    matrix, (right, left) = normal(*shape), start(normal(1, *shape))
    (found,), _ = filter_subspace([matrix[None] * scale], [right], [left])

    def orthonormal(rows: Tensor) -> Tensor:
        return torch.linalg.qr(rows.mT).Q.mT

    w, v = matrix.double(), right[0].double()
    square = w.mT @ w
    nearer = orthonormal(orthonormal(v @ w.mT) @ w) @ w.mT
    edge = torch.linalg.cholesky(nearer @ nearer.mT).diagonal().min() ** 2
    spanned = orthonormal(v @ (square @ square - edge * square + edge**2 / 8 * torch.eye(len(square))))
    rows = found[0].double()
    assert (rows - rows @ spanned.mT @ spanned).norm() < 1e-5


def test_a_filter_finds_a_new_direction_with_fewer_products() -> None:
    matrices = normal(20, 128, 512)
    _, known = followed(there_and_back, matrices, start(matrices), turns=40)
    u, v = normal(20, 128, 1, seed=1), normal(20, 1, 512, seed=2)
    grown = matrices + 30 * u / u.norm(dim=1, keepdim=True) @ v / v.norm(dim=2, keepdim=True)

    def off(turn: Turn, turns: int) -> float:
        return float((1 - followed(turn, grown, known, turns)[0] / norms(grown)).max())

    # Five products against eight.
    assert off(filtered, turns=1) < off(there_and_back, turns=4)


def test_filtered_stacks_of_different_shapes_go_together_as_alone() -> None:
    stacks = [normal(3, 40, 60), normal(1, 4, 16), normal(2, 64, 32), normal(2, 1000, 60)]
    sides = [start(stacks[0]), start(stacks[1], vectors=4), start(stacks[2]), start(stacks[3])]
    rights, lefts = filter_subspace(stacks, [of.right for of in sides], [of.left for of in sides])
    for stack, of_stack, right, left in zip(stacks, sides, rights, lefts, strict=True):
        (right_alone,), (left_alone,) = filter_subspace([stack], [of_stack.right], [of_stack.left])
        torch.testing.assert_close(right, right_alone, rtol=1e-2, atol=1e-4)
        torch.testing.assert_close(left, left_alone, rtol=1e-2, atol=1e-4)


def test_bits_do_not_depend_on_the_lanes_where_stacks_go_together() -> None:
    """Rows of different lengths are padded to one; how far, the shapes alone decide."""
    stacks = [normal(4, *shape, seed=i) for i, shape in enumerate(SHAPES)]
    sides = [start(stack) for stack in stacks]
    found, following = subspace_step(stacks, [of.right for of in sides], [of.left for of in sides])
    for lanes in (slice(0, 1), slice(2, 4)):
        few = [stack[lanes] for stack in stacks]
        norms_of_few, after = subspace_step(few, [of.right[lanes] for of in sides], [of.left[lanes] for of in sides])
        assert torch.equal(norms_of_few, found.view(len(stacks), 4)[:, lanes].flatten())
        assert all(torch.equal(alone, together[lanes]) for alone, together in zip(after, following, strict=True))
    both = filter_subspace(stacks, [of.right for of in sides], [of.left for of in sides])
    for lanes in (slice(0, 1), slice(2, 4)):
        few = filter_subspace(
            [stack[lanes] for stack in stacks], [of.right[lanes] for of in sides], [of.left[lanes] for of in sides]
        )
        for alone, together in zip(few, both, strict=True):
            assert all(torch.equal(one, other[lanes]) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("ratio", [1e-2, 1e-4, 1e-5])
def test_directions_far_below_the_first_are_kept(ratio: float, turn: Turn) -> None:
    """When the first falls below them, they are known already."""
    values = torch.cat([torch.ones(1), ratio * torch.linspace(1, 0.1, 63)])
    left, right = (torch.linalg.qr(normal(64, 64, seed=seed)).Q for seed in (1, 2))
    matrix = (left * values) @ right
    _, sides = followed(turn, matrix[None], start(matrix[None]), turns=20)
    values[0] = ratio / 2
    found, _ = followed(turn, ((left * values) @ right)[None], sides)
    assert found.item() == pytest.approx(ratio, rel=0.02)
