"""What one step does to the codes of a matrix, counted the slow way: the truth that the trackers are held to.

Everything is float64 numpy and a sorted list of a format's values. Nothing is shared with the kernels or the trackers
but `FP8Format.to_real`, which turns a code into a number.
"""

import functools
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from altgrad.quantization.formats import FP8Format

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

#: An element is updated where its gradient is larger than this.
UPDATE = 1e-10


class Grid:
    """The values of a format from zero up: the place of a value in the list is its rung."""

    def __init__(self, format: FP8Format) -> None:
        self._values = np.array([format.to_real(code) for code in range(format.max_code + 1)])
        self._mantissa_bits = format.mantissa_bits
        # Fixed point counts as having one exponent bit: the random bits it takes are those below its grid.
        self._random_bits = 23 - format.significand_bits
        #: Rung of the largest value.
        self.top = format.max_code

    def values(self, rungs: Ints) -> Floats:
        """The numbers that rungs stand for."""
        return np.sign(rungs) * self._values[np.abs(rungs)]

    def nearest(self, v: Floats) -> Ints:
        """Rungs of the nearest values, ties to the even significand; beyond the largest, the largest."""
        low, share = self._between(v)
        # Without mantissa bits every significand is 1, the one above counts as 2, and only zero is even below it.
        odd = low % 2 == 1 if self._mantissa_bits else low > 0
        return self._signed(v, low + ((share > 0.5) | ((share == 0.5) & odd)))

    def stochastic(self, v: Floats, bits: Ints) -> Ints:
        """Rungs of one of the two neighbours: the farther from zero where the share of the way plus chance is a whole.

        Args:
            v: numbers in units of the scale.
            bits: random numbers, of which as many low bits count as float32 has below the format's grid.
        """
        low, share = self._between(v)
        whole = 2**self._random_bits
        return self._signed(v, low + (np.rint(share * whole) + bits % whole >= whole))

    def _between(self, v: Floats) -> tuple[Ints, Floats]:
        """The rung at or below each magnitude, and how far it is on the way to the next one."""
        magnitude = np.minimum(np.abs(v), self._values[-1])
        low = np.searchsorted(self._values, magnitude, side="right") - 1
        start, end = self._values[low], self._values[np.minimum(low + 1, self.top)]
        share = np.zeros_like(magnitude)
        np.divide(magnitude - start, end - start, out=share, where=end > start)
        return low, share

    @staticmethod
    def _signed(v: Floats, rungs: Ints) -> Ints:
        return np.where(v < 0, -rungs, rungs)


class Tracker:
    """Follows one matrix of one lane: `begin` before each step, `end` after it."""

    def __init__(self, format: FP8Format, storage: Literal["master", "nearest", "stochastic"], size: int) -> None:
        self._grid, self._storage = Grid(format), storage
        #: Which way each element flipped last: -1, 1, or 0 where it never did.
        self._last = np.zeros(size, dtype=np.int64)
        self._before, self._scale = self._last, 1.0
        #: What should be stored after the step, and what the next forward pass should use.
        self.stored: Floats = np.zeros(size)
        self.working: Floats = np.zeros(size)
        #: Elements that flipped in the last step without having been updated.
        self.flipped_without_gradient = 0

    def begin(self, stored: Floats, scale: float) -> Floats:
        """The weights that the forward pass should use: the nearest codes of the stored ones, times the scale."""
        self._scale, self._before = scale, self._grid.nearest(_in_units(stored, scale))
        return _float32(self._grid.values(self._before) * scale)

    def end(self, gradient: Floats, moved: Floats, bits: Ints, next_scale: float) -> dict[str, float]:
        """The columns of the step.

        Args:
            gradient: as the optimizer got it, clipped.
            moved: the weights as the optimizer left them, not yet rounded.
            bits: random numbers for stochastic rounding.
            next_scale: the scale from the next step on.
        """
        v = _in_units(moved, self._scale)
        after = self._grid.stochastic(v, bits) if self._storage == "stochastic" else self._grid.nearest(v)
        kept = moved if self._storage == "master" else _float32(self._grid.values(after) * self._scale)
        settled = self._grid.nearest(_in_units(kept, next_scale))
        self.working = _float32(self._grid.values(settled) * next_scale)
        self.stored = kept if self._storage == "master" else self.working
        return self._count(after, settled, v, np.abs(gradient) > UPDATE)

    def _count(self, after: Ints, settled: Ints, v: Floats, updated: Mask) -> dict[str, float]:
        before = self._before
        flipped = before != after
        direction = np.sign(after - before)
        reversals = flipped & (direction == -self._last)
        self._last = np.where(flipped, direction, self._last)
        self.flipped_without_gradient = int((flipped & ~updated).sum())
        updates, flips = updated.sum(), flipped.sum()
        return {
            "updates": updates,
            "flips": flips,
            "stall_ratio": 1 - (flipped & updated).sum() / updates if updates else 0.0,
            "rescale_flips": (settled != after).sum(),
            "oscillations": reversals.sum(),
            "rung_distance": np.abs(after - before)[flipped].mean() if flips else np.nan,
            "weight_saturated": (np.abs(after) == self._grid.top).mean(),
            "weight_underflowed": ((v != 0) & (after == 0)).mean(),
        }


def _float32(x: Floats) -> Floats:
    """What float32 can say of it: weights are float32, and so is their quotient by the scale, by definition."""
    return x.astype(np.float32).astype(np.float64)


def _in_units(weights: Floats, scale: float) -> Floats:
    return _float32(weights / scale)


class FlowCount(NamedTuple):
    """What rounding did to a tensor that flows through a matrix."""

    #: The values that go on.
    rounded: Floats
    #: Share of elements that lie on the last rung.
    saturated: float
    #: Share of elements that were not zero and became zero.
    underflowed: float


_grid = functools.cache(Grid)


def round_flow(x: Floats, format: FP8Format, scale: float) -> FlowCount:
    """Round an activation or a gradient onto its grid, and count over all its elements."""
    grid, v = _grid(format), _in_units(x, scale)
    rungs = grid.nearest(v)
    rounded = _float32(grid.values(rungs) * scale)
    return FlowCount(rounded, float((np.abs(rungs) == grid.top).mean()), float(((v != 0) & (rungs == 0)).mean()))
