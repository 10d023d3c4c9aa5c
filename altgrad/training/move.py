"""The second half of a step, for all parts at once: the optimizer, rounding, and what is seen of it.

A few calls for the whole model, because each call of a compiled program costs as much as a small matrix does.
Shapes: L lanes, S matrices of the model.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.training.compiling import compiled
from altgrad.training.lane_optimizer import LaneNumbers
from altgrad.training.part import MOVED, Moved, Part
from altgrad.training.ranks import SPECTRA, Sides, iterate, iterations, stable_ranks

#: What `move` measures of every matrix.
COLUMNS = (*MOVED, "rescale_flips", "stable_rank", *SPECTRA)


class Programs(NamedTuple):
    """What is done at every step, eager or compiled. Matrices come in the order of the parts."""

    move: Callable[[Sequence[Part], LaneNumbers, Tensor], Moved]
    ranks_from_right: Callable[[Sequence[Sides], Tensor], Tensor]
    ranks_from_left: Callable[[Sequence[Sides], Tensor], Tensor]


def move(
    parts: Sequence[Part], programs: Programs, numbers: LaneNumbers, factor: Tensor, step: int, rank_interval: int
) -> Tensor:
    """Take one optimizer step, round its result and observe both.

    Args:
        parts: of the model.
        programs: `EAGER`, or `compiled_programs`.
        numbers: of the optimizer, at this step.
        factor: what clipping multiplies each lane's gradient by, ``(L,)``.
        step: the step, from 1.
        rank_interval: steps from one spectrum to the next.

    Returns:
        `COLUMNS` of the matrices in the order of the parts, float64 ``(len(COLUMNS), S, L)``, NaN where undefined or
        not due.
    """
    matrices = [part for part in parts if part.ranks]
    for part in matrices:
        if part.grid:
            part.grid.begin(step)
    columns, squares = programs.move(parts, numbers, factor)
    rescaled = columns[MOVED.index("flips")] * 0.0
    if (changed := _rescale(matrices)) is not None:
        rescaled += changed
        squares = torch.cat([part.squares() for part in matrices])  # weights that live on the grid moved with it
    ranks = _stable_ranks(matrices, squares, programs, step)
    if step % rank_interval:
        spectra = squares.new_full((len(SPECTRA), *squares.shape), torch.nan)
    else:
        spectra = torch.cat([part.ranks.spectra(part.stack) for part in matrices if part.ranks], dim=1)
    return torch.cat([columns, torch.stack([rescaled, ranks]), spectra])


def _rescale(matrices: Sequence[Part]) -> Tensor | None:
    """Codes that change with their scale, float64 ``(S, L)``; None where no scale moved."""
    counts = [part.rescale() for part in matrices]
    if all(changed is None for changed in counts):
        return None
    kinds = [part.stack.stored.new_zeros(part.stack.stored.shape[:2], dtype=torch.float64) for part in matrices]
    return torch.cat([zero if changed is None else changed for changed, zero in zip(counts, kinds, strict=True)])


def _stable_ranks(matrices: Sequence[Part], squares: Tensor, programs: Programs, step: int) -> Tensor:
    sides = [part.ranks.sides(part.stack) for part in matrices if part.ranks]
    from_right = step % 2 == 1
    for _ in range(iterations(step)):
        iterate(sides, from_right)
    return (programs.ranks_from_right if from_right else programs.ranks_from_left)(sides, squares)


def _move(parts: Sequence[Part], numbers: LaneNumbers, factor: Tensor) -> Moved:
    moved = [of_part for part in parts if (of_part := part.move(numbers, factor))]
    return Moved(torch.cat([of.columns for of in moved], dim=1), torch.cat([of.squares for of in moved]))


def _ranks_from_right(stacks: Sequence[Sides], squares: Tensor) -> Tensor:
    return stable_ranks(stacks, squares, from_right=True)


def _ranks_from_left(stacks: Sequence[Sides], squares: Tensor) -> Tensor:
    return stable_ranks(stacks, squares, from_right=False)


EAGER = Programs(_move, _ranks_from_right, _ranks_from_left)

#: How the compiler comes to see one loop over each stack: whatever is used twice is kept, and nothing is moved away.
ONE_LOOP = {"realize_reads_threshold": 3, "reorder_for_locality": False, "cpp.max_horizontal_fusion_size": 64}


@functools.cache
def compiled_programs() -> Programs:
    """`EAGER` compiled. Made when it is wanted: PyTorch's compiler takes two seconds to import."""
    return Programs(compiled(_move, **ONE_LOOP), *(compiled(program) for program in EAGER[1:]))
