"""Questions that people ask first, as SQL under a name: ``@stalls`` and the like.

Each is a file of the folder ``sql``, its first line a comment that says what it answers. All of them have the column
``run`` at hand, so that they answer for several sweeps as for one.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from orchestrator.results.queries import query
from orchestrator.results.store import Store

_FOLDER = Path(__file__).parent / "sql"


class NamedQuery(NamedTuple):
    """A question that has a name."""

    name: str
    #: What it answers, a sentence.
    description: str
    sql: str


def _load() -> dict[str, NamedQuery]:
    found = {}
    for path in sorted(_FOLDER.glob("*.sql")):
        text = path.read_text(encoding="utf-8")
        found[path.stem] = NamedQuery(path.stem, text.partition("\n")[0].removeprefix("-- "), text)
    return found


#: By name, in the order of names.
NAMED: dict[str, NamedQuery] = _load()


def find(name: str) -> NamedQuery:
    """The query of a name, with or without its ``@``.

    Raises:
        ValueError: there is none; the message has the nearest.
    """
    bare = name.removeprefix("@")
    if bare in NAMED:
        return NAMED[bare]
    near = difflib.get_close_matches(bare.lower(), NAMED, n=1)
    hint = f"did you mean @{near[0]}?" if near else f"known: {', '.join(f'@{known}' for known in NAMED)}"
    raise ValueError(f"unknown query {name!r}; {hint}")


def ask(stores: Store | Sequence[Store], question: str, timeout_s: float = 60.0, memory: str | None = None) -> pa.Table:
    """Answer SQL or, with an ``@``, a query that has a name; see `queries.query` for arguments and errors.

    Raises:
        ValueError: there is no query of that name.
    """
    if not question.startswith("@"):
        return query(stores, question, timeout_s, memory)
    sql = find(question).sql
    if not isinstance(stores, Store):
        return query(stores, sql, timeout_s, memory)
    return query([stores], sql, timeout_s, memory).drop_columns(["run"])
