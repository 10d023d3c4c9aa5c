"""The facts, figures and codes of formats as tables for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.facts.markdown import number

#: The most characters of a value in decimals; one that needs more is written as an integer times a power of two.
_DIGITS = 11
_DISTRIBUTIONS = {"gaussian": "Gaussian", "laplace": "Laplace", "student_t3": "Student-t3", "lognormal": "lognormal"}
_GAP, _WIDE_GAP = 2, 4
#: Characters that the tables need.
NARROWEST = 80


def overview(formats: Sequence[Mapping[str, Any]], elements: int) -> Group:
    """Two tables with a row for each format: what it is, and how well it keeps a tensor."""
    near = [f"near {value}" for value in formats[0]["spacing_near"]]
    return Group(
        _table(
            ["format", "E", "M", "bias", "largest", "smallest", "finite values", *near],
            [_facts(each) for each in formats],
        ),
        Text("E, M: bits of exponent and mantissa. smallest: above zero. near: from there to the next value.\n"),
        _table(["format", "values used", *_DISTRIBUTIONS.values()], [_figures(each) for each in formats]),
        Text(
            "Values that a Gaussian tensor uses, and signal to quantization noise in dB. The tensors have "
            f"{elements:,} elements, the largest scaled to the format's largest value; wide formats take them unscaled."
        ),
    )


def one_format(facts: Mapping[str, Any], codes: Sequence[Mapping[str, Any]] | None, width: int) -> Group:
    """A format and its codes, unless they are too many, in as many columns as the width has room for."""
    _, exponent_bits, mantissa_bits, bias, largest, smallest, count, *spacings = _facts(facts)
    specials = [name for name, there in (("infinities", facts["infinity"]), ("NaN", facts["nan"])) if there]
    near = " and ".join(f"{gap} near {value}" for gap, value in zip(spacings, facts["spacing_near"], strict=True))
    lines = [
        f"{facts['name']}: 1 sign, {exponent_bits} exponent and {mantissa_bits} mantissa bits, bias {bias}",
        f"largest {largest}, smallest above zero {smallest}",
        f"{count} finite values, {' and '.join(specials) or 'no infinities, no NaN'}",
        f"gap to the next value outward: {near}",
    ]
    if codes is None:
        return Group(Text("\n".join([*lines, f"the {2 ** facts['bits']:,} codes are not listed"])))
    return Group(Text("\n".join([*lines, ""])), _codes(codes, width))


def _facts(each: Mapping[str, Any]) -> list[str]:
    return [
        each["name"],
        *(str(each[key]) for key in ("exponent_bits", "mantissa_bits", "bias")),
        *(number(each[key]) for key in ("largest", "smallest")),
        f"{each['finite_values']:,}",
        *map(number, each["spacing_near"].values()),
    ]


def _figures(each: Mapping[str, Any]) -> list[str]:
    noise = [each["sqnr_db"][name] for name in _DISTRIBUTIONS]
    return [
        each["name"],
        f"{each['values_used']:,}",
        *("exact" if value is None else f"{value:.1f}" for value in noise),
    ]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The names of formats at the left, numbers at the right."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, title in enumerate(titles):
        table.add_column(Text(title), justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _codes(codes: Sequence[Mapping[str, Any]], width: int) -> Table:
    """Codes downwards, the negative ones beside the positive ones where there is room."""
    titles = ("code", "bits", "value", "gap")
    cells = [_cells(code) for code in codes]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    block = sum(widths) + _GAP * (len(titles) - 1) + _WIDE_GAP
    blocks = next((n for n in (8, 4, 2) if n * block - _WIDE_GAP <= width), 1)
    table = Table(box=None, padding=0, header_style="bold")
    for i in range(blocks):
        between = 0 if i == blocks - 1 else _WIDE_GAP
        for title, wide in zip(titles, widths, strict=True):
            table.add_column(title, no_wrap=True, min_width=wide + (between if title == "gap" else _GAP))
    rows = len(codes) // blocks
    for row in range(rows):
        table.add_row(*(Text(cell) for block_cells in cells[row::rows] for cell in block_cells))
    return table


def _cells(code: Mapping[str, Any]) -> tuple[str, ...]:
    shown = code["special"] or exactly(code["value"])
    return code["code"], code["bits"], shown, "" if code["spacing"] is None else number(code["spacing"])


def exactly(value: float) -> str:
    """A float without rounding: in decimals where these are few, otherwise an integer times a power of two.

    >>> exactly(-0.001953125), exactly(5 * 2.0**-16), exactly(2.0**64)
    ('-0.001953125', '5*2^-16', '2^64')
    """
    decimals = repr(value).removesuffix(".0")
    if len(decimals.lstrip("-")) <= _DIGITS:
        return decimals
    significand, denominator = abs(value).as_integer_ratio()
    exponent = 1 - denominator.bit_length()
    while significand % 2 == 0:
        significand, exponent = significand // 2, exponent + 1
    sign, factor = "-" if value < 0 else "", "" if significand == 1 else f"{significand}*"
    return f"{sign}{factor}2^{exponent}"
