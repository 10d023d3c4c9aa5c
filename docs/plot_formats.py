"""Draws docs/formats.svg: how far apart the values of the eight formats lie, against how large they are.

``python docs/plot_formats.py`` writes it, ``python docs/plot_formats.py FILE`` another file (.svg or .png). One version
of matplotlib gives the same bytes every time.
"""

import math
import sys
from pathlib import Path

import matplotlib
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from altgrad.quantization.formats import FP8_FORMATS, FP8Format

#: The window in powers of two: all of every format but the two with the widest range.
LEFT, RIGHT, BOTTOM, TOP = -18, 25, -17.5, 15.5
INK, PALE, GRID, PAPER = "#1f2328", "#59636e", "#e7eaee", "#ffffff"
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "altgrad", "font.size": 11}
#: E1M6 and E2M5 have the same smallest value, and so the same spacing there: drawn a hair apart.
NUDGE = {"E1M6": -0.11, "E2M5": 0.11}
#: The lines that leave the window: what is said of them, where, and on which side.
BEYOND = {"E6M1": ("E6M1, to 1.5·2³²", 17.0, 14.5, "left"), "E7M0": ("E7M0, to 2⁶⁴", 14.2, 14.5, "right")}


def binades(format: FP8Format) -> list[tuple[float, float]]:
    """The middle of each binade and the spacing in it, both as powers of two."""
    lowest = math.frexp(format.min_positive_value)[1] - 1
    highest = math.frexp(format.to_real(format.max_code - 1))[1] - 1
    starts = [(exponent, format.to_bits(2.0**exponent)) for exponent in range(lowest, highest + 1)]
    return [(e + 0.5, math.log2(format.to_real(code + 1) - format.to_real(code))) for e, code in starts]


def draw_format(axes: Axes, format: FP8Format, colour: tuple[float, ...]) -> None:
    """A line through the binades, a dot on each, rings at the smallest and the largest value, and the name."""
    nudge = NUDGE.get(format.name, 0.0)
    middles = [(x, y + nudge) for x, y in binades(format)]
    smallest, largest = math.log2(format.min_positive_value), math.log2(format.max_representable_value)
    ends = [(smallest, middles[0][1]), (largest, middles[-1][1])]
    axes.plot(*zip(ends[0], *middles, ends[1], strict=True), color=colour, linewidth=1.8, zorder=3)
    axes.plot(*zip(*middles, strict=True), "o", color=colour, markersize=3.2, zorder=4)
    ring = {"markeredgecolor": colour, "markeredgewidth": 1.8, "markersize": 7}
    axes.plot(*zip(*ends, strict=True), "o", color=PAPER, **ring, zorder=5)
    name, x, y, side = BEYOND.get(format.name, (format.name, largest + 0.6, middles[-1][1], "left"))
    axes.text(x, y, name, color=colour, weight="bold", ha=side, va="center", zorder=6)


def draw_frame(axes: Axes) -> None:
    """Powers of two along both axes, and two magnitudes to look for."""
    axes.set(xlim=(LEFT, RIGHT), ylim=(BOTTOM, TOP), facecolor=PAPER)
    axes.set_xticks(range(-16, 25, 4), [power(x) for x in range(-16, 25, 4)])
    axes.set_yticks(range(-16, 16, 4), [power(y) for y in range(-16, 16, 4)])
    axes.grid(color=GRID, linewidth=1)
    axes.tick_params(length=0, labelcolor=PALE, pad=6)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("magnitude of a value", color=INK, labelpad=8)
    axes.set_ylabel("distance to the next one", color=INK, labelpad=8)
    for at, name in ((math.log2(0.02), "0.02"), (0.0, "1")):
        axes.axvline(at, color=PALE, linewidth=1, linestyle=(0, (2, 3)), zorder=2)
        axes.text(at + 0.3, BOTTOM + 0.7, name, color=PALE, ha="left", va="center")
    explained = "ring: smallest and largest value\ndot: middle of a binade"
    axes.text(RIGHT - 0.5, BOTTOM + 1.2, explained, color=PALE, ha="right", va="center", linespacing=1.6)


def power(exponent: int) -> str:
    """A power of two as plain text.

    >>> power(-16)
    '2⁻¹⁶'
    """
    return "2" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def main(path: Path) -> None:
    """Draw it into a file."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 7.4), facecolor=PAPER)
        axes = figure.add_axes((0.09, 0.09, 0.89, 0.88))
        draw_frame(axes)
        for i, format in reversed(list(enumerate(FP8_FORMATS))):
            draw_format(axes, format, colormaps["plasma"](i / 9.2))
        figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("formats.svg"))
