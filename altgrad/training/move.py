"""The second half of a step, for all parts at once: the optimizer, rounding, and what is seen of it.

A few calls for the whole model, because each call of a compiled program costs as much as a small matrix does.
Shapes: L lanes, S matrices of the model.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.training.callbacks import SPECTRA, rank_steps, stable_ranks
from altgrad.training.compiling import compiled
from altgrad.training.lane_optimizer import LaneNumbers
from altgrad.training.part import Part


class Programs(NamedTuple):
    """What is done at every step, eager or compiled. Columns come in the order of the parts."""

    move: Callable[[Sequence[Part], LaneNumbers, Tensor], dict[str, Tensor]]
    observe_ranks: Callable[[Sequence[Part], bool], Tensor]


def move(
    parts: Sequence[Part], programs: Programs, numbers: LaneNumbers, factor: Tensor, step: int, rank_interval: int
) -> dict[str, Tensor]:
    """Take one optimizer step, round its result and observe both.

    Args:
        parts: of the model.
        programs: `EAGER`, or `compiled_programs`.
        numbers: of the optimizer, at this step.
        factor: what clipping multiplies each lane's gradient by, ``(L,)``.
        step: the step, from 1.
        rank_interval: steps from one spectrum to the next.

    Returns:
        Columns of the matrices in the order of the parts, float64 ``(S, L)``, NaN where undefined or not due.
    """
    matrices = [part for part in parts if part.ranks]
    for part in matrices:
        if part.grid:
            part.grid.begin(step)
    columns = programs.move(parts, numbers, factor)
    columns["rescale_flips"] = columns["flips"] * 0.0 + _rescale(matrices)
    for i in range(rank_steps(step)):
        columns["stable_rank"] = programs.observe_ranks(matrices, (step + i) % 2 == 1)
    if step % rank_interval:
        return columns | dict.fromkeys(SPECTRA, torch.full_like(columns["flips"], torch.nan))
    spectra = [part.ranks.spectra(part.stack) for part in matrices if part.ranks]
    return columns | {name: torch.cat([of_part[name] for of_part in spectra]) for name in SPECTRA}


def _rescale(matrices: Sequence[Part]) -> Tensor | float:
    counts = [part.rescale() for part in matrices]
    if all(changed is None for changed in counts):
        return 0.0
    kinds = [part.stack.stored.new_zeros(part.stack.stored.shape[:2], dtype=torch.float64) for part in matrices]
    return torch.cat([zero if changed is None else changed for changed, zero in zip(counts, kinds, strict=True)])


def _move(parts: Sequence[Part], numbers: LaneNumbers, factor: Tensor) -> dict[str, Tensor]:
    columns = [found for part in parts if (found := part.move(numbers, factor))]
    return {name: torch.cat([of_part[name] for of_part in columns]) for name in columns[0]}


def _observe_ranks(matrices: Sequence[Part], from_right: bool) -> Tensor:
    observers = [part.ranks for part in matrices if part.ranks is not None]
    return stable_ranks([part.stack for part in matrices], observers, from_right)


EAGER = Programs(_move, _observe_ranks)


@functools.cache
def compiled_programs() -> Programs:
    """`EAGER` compiled. Made when it is wanted: PyTorch's compiler takes two seconds to import."""
    return Programs(compiled(_move), compiled(_observe_ranks))
