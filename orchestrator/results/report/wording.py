"""How numbers and names are said in a report."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.results.cells import Place
from orchestrator.results.planned import label
from orchestrator.results.wording import Judgement

#: What stands where there is no number.
DASH = "\u2013"
#: The sign of a judgement on a cell.
SIGNS: dict[Judgement, str] = {"best": "★", "indistinct": "≈", "unjudged": "?", "": ""}
#: Most names that a sentence lists one by one.
NAMED = 6


def figure(value: float | None, form: str) -> str:
    """A number in a format of Python's, or a dash."""
    return DASH if value is None else format(value, form)


def shown(count: int) -> str:
    """A count to three digits, such as ``11.4 million``."""
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:,}"


def duration(seconds: float) -> str:
    """Such as ``4.9 minutes``."""
    return f"{seconds / 3600:.3g} hours" if seconds >= 2 * 3600 else f"{seconds / 60:.2g} minutes"


def listed(names: Iterable[str]) -> str:
    """Names joined by commas; of very many the first ones and how many more there are."""
    every = list(names)
    shown = ", ".join(every[:NAMED])
    return f"{shown} and {len(every) - NAMED} more" if len(every) > NAMED else shown


def spoken(values: Mapping[str, Any]) -> str:
    """Parameters as text, such as ``lr=0.003``."""
    return " ".join(f"{name}={label(value)}" for name, value in values.items())


def column_name(column: Sequence[str]) -> str:
    """A column of the matrix as text, such as ``adamw · master``."""
    return " · ".join(column) or "all"


def place_name(place: Place) -> str:
    """A cell as text, such as ``E4M3 · adamw · master``."""
    return " · ".join((place[0], *place[1]))
