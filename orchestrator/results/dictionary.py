"""Writes the parts of docs/results.md that the program knows: columns, and queries that have a name.

``python -m orchestrator.results.dictionary`` prints the page as it should be, ``--write`` writes it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.facts.markdown import code, prose, table
from orchestrator.results.named import NAMED
from orchestrator.results.schema import SCHEMAS

PATH = Path(__file__).resolve().parents[2] / "docs" / "results.md"
COMMAND = "python -m orchestrator.results.dictionary --write"


def columns() -> str:
    """A table of columns for each table of the dataset."""
    parts = []
    for name, fields in SCHEMAS.items():
        rows = ([code(field.name), str(field.type), prose(field.metadata[b"doc"].decode())] for field in fields)
        parts += [f"### {name}", table(["column", "type", "meaning"], rows)]
    return "\n\n".join(parts)


def questions() -> str:
    """The queries that have a name."""
    rows = ([code(f"@{name}"), prose(each.description)] for name, each in NAMED.items())
    return table(["name", "answers"], rows)


def document(page: str) -> str:
    """The page with what stands between its markers made new."""
    for name, text in (("columns", columns()), ("questions", questions())):
        begin, end = f"<!-- {name}: {COMMAND} -->", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.results.dictionary", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--write", action="store_true", help=f"write {PATH.name} instead of printing it")
    page = document(PATH.read_text(encoding="utf-8"))
    if parser.parse_args(arguments).write:
        PATH.write_text(page, encoding="utf-8")
    else:
        sys.stdout.write(page)


if __name__ == "__main__":
    main()
