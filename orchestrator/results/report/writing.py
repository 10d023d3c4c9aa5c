"""The report of one run or of several: written into the run's folder, or as one file anywhere."""

from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.results.report.card import MARK, card
from orchestrator.results.report.page import GENERATOR, page
from orchestrator.results.report.run import read_run
from orchestrator.results.report.told import tell
from orchestrator.results.runs import run_names
from orchestrator.results.store import Store

#: Where a run's own report lies in its folder.
HTML_PATH, MARKDOWN_PATH = "report.html", "report.md"
#: Bytes of a file among which an earlier report says that it is one.
_HEAD = 200


class Report(NamedTuple):
    """Both forms of a report; the same bytes for the same data."""

    html: str
    markdown: str


def report(stores: Sequence[Store]) -> Report:
    """The report of consolidated runs, side by side where there are several.

    Raises:
        FileNotFoundError: a folder has no plan, or was never consolidated.
        ValueError: no run, the same one twice, or one whose plan's metric is none that steps have.
    """
    told = [tell(read_run(name, store)) for name, store in zip(run_names(stores), stores, strict=True)]
    return Report(page(told), card(told))


def check_place(folder: Store, names: Sequence[str]) -> None:
    """Check that nothing is lost where a report's files are to go: nothing is there, or an earlier report.

    Raises:
        ValueError: something else is there, or a name is none that `Store` takes.
    """
    for name in names:
        path = f"{folder.uri}/{name}"
        if folder.is_folder(name):
            raise ValueError(f"{path} is a folder: a report's file cannot go there")
        if folder.exists(name) and not _is_report(folder.read_bytes(name)):
            raise ValueError(f"{path} was not made by altgrad report: move it away, or choose another --out")


def _is_report(data: bytes) -> bool:
    return data.startswith(MARK.encode()) or GENERATOR.encode() in data[:_HEAD]
