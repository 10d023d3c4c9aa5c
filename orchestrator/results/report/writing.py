"""The report of one run or of several: written into the run's folder, or as one file anywhere."""

from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.results.report.card import card
from orchestrator.results.report.page import page
from orchestrator.results.report.run import read_run
from orchestrator.results.report.told import tell
from orchestrator.results.store import Store

#: Where a run's own report lies in its folder.
HTML_PATH, MARKDOWN_PATH = "report.html", "report.md"


class Report(NamedTuple):
    """Both forms of a report; the same bytes for the same data."""

    html: str
    markdown: str


def report(stores: Sequence[Store]) -> Report:
    """The report of consolidated runs, side by side where there are several.

    Raises:
        FileNotFoundError: a folder has no plan, or was never consolidated.
        ValueError: no run, or one whose plan's metric is none that steps have.
    """
    if not stores:
        raise ValueError("no run to report")
    told = [tell(read_run(name, store)) for name, store in zip(_names(stores), stores, strict=True)]
    return Report(page(told), card(told))


def _names(stores: Sequence[Store]) -> list[str]:
    """Each run by its folder's name; those of one name are numbered."""
    names = [store.name for store in stores]
    return [f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name for i, name in enumerate(names)]
