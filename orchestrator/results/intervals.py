"""Intervals and tests, all at 95 %: Student's for means, Clopper and Pearson's for shares, Holm's for many at once.

What they are used for and what they cannot say: docs/statistics.md.
"""

import math
from collections.abc import Sequence

from scipy.special import betaincinv, stdtr, stdtrit

CONFIDENCE = 0.95
#: Fewer replicates than this get no interval: with two, the t quantile is 12.7 and says nothing.
LEAST_REPLICATES = 3


def interval(std: float | None, n: int) -> float | None:
    """Half the width of the two-sided 95 % Student-t interval of a mean; None below `LEAST_REPLICATES`."""
    if std is None or n < LEAST_REPLICATES:
        return None
    return float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * std / math.sqrt(n)


def p_value(mean: float, std: float, n: int) -> float:
    """Two-sided p value of Student's t test that a mean is zero; 0 or 1 where all of its ``n`` numbers are alike."""
    if std == 0:
        return float(mean == 0)
    return 2 * float(stdtr(n - 1, -abs(mean) * math.sqrt(n) / std))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for there being several: the chance of any false one among those at most 5 % is at most 5 %.

    However the tests depend on each other (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(order), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval of a share (Clopper and Pearson 1934, Biometrika 26, 404-413)."""
    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(hits, n - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return low, high


def plus_minus(value: float, half: float) -> str:
    """A number with its interval, such as ``0.012 ± 0.004``, to the digits that the interval supports.

    The interval keeps two digits up to 35 and one beyond (the rule of the Particle Data Group's Review), and one more
    where rounding would hide on which side of it the number lies.
    """
    if half == 0:
        return f"{value:.3g} ± 0"
    leading, exponent = f"{half:.2e}".split("e")
    decimals = -int(exponent) + (leading <= "3.54")
    while abs(value) > half and round(abs(value), decimals) <= round(half, decimals) and decimals < 15:
        decimals += 1
    shown = max(decimals, 0)
    return f"{round(value, decimals) + 0.0:.{shown}f} ± {round(half, decimals):.{shown}f}"
