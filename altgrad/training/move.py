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
from altgrad.training.part import MOVED, Part
from altgrad.training.ranks import EARLY_STEPS, SPECTRA, Sides, sharpen, stable_ranks

#: What `move` measures of every matrix.
COLUMNS = (*MOVED, "rescale_flips", "stable_rank", *SPECTRA)


class Programs(NamedTuple):
    """What is done at every step, eager or compiled. Matrices come in the order of the parts."""

    move: Callable[[Sequence[Part], LaneNumbers, Tensor], Tensor]
    stable_ranks: Callable[[Sequence[Sides], bool], Tensor]


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
    columns = programs.move(parts, numbers, factor)
    flips = columns[MOVED.index("flips")]
    rescaled = flips * 0.0 + _rescale(matrices)
    ranks = _stable_ranks(matrices, programs, step).view_as(flips)
    if step % rank_interval:
        spectra = flips.new_full((len(SPECTRA), *flips.shape), torch.nan)
    else:
        spectra = torch.cat([part.ranks.spectra(part.stack) for part in matrices if part.ranks], dim=1)
    return torch.cat([columns, torch.stack([rescaled, ranks]), spectra])


def _rescale(matrices: Sequence[Part]) -> Tensor | float:
    counts = [part.rescale() for part in matrices]
    if all(changed is None for changed in counts):
        return 0.0
    kinds = [part.stack.stored.new_zeros(part.stack.stored.shape[:2], dtype=torch.float64) for part in matrices]
    return torch.cat([zero if changed is None else changed for changed, zero in zip(counts, kinds, strict=True)])


def _stable_ranks(matrices: Sequence[Part], programs: Programs, step: int) -> Tensor:
    """Float64, one of each matrix and lane."""
    sides = [part.ranks.sides for part in matrices if part.ranks]
    from_right = step % 2 == 1
    if step <= EARLY_STEPS:
        sharpen(sides, from_right)
    return programs.stable_ranks(sides, from_right)


def _move(parts: Sequence[Part], numbers: LaneNumbers, factor: Tensor) -> Tensor:
    return torch.cat([moved for part in parts if (moved := part.move(numbers, factor)) is not None], dim=1)


EAGER = Programs(_move, stable_ranks)

#: How the compiler comes to see one loop over each stack: what it would else compute twice is kept, and nothing moves
#: away from what it belongs to. Measured on CPUs.
ONE_LOOP = {"realize_reads_threshold": 3, "reorder_for_locality": False, "cpp.max_horizontal_fusion_size": 64}


@functools.cache
def compiled_programs() -> Programs:
    """`EAGER` compiled. Made when it is wanted: PyTorch's compiler takes two seconds to import."""
    return Programs(compiled(_move, **ONE_LOOP), compiled(stable_ranks))
