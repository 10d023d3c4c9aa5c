"""The report as a Markdown card: the answer, the matrix and what goes with it, for an issue or a model card."""

import re
from collections.abc import Iterable, Iterator, Sequence

from orchestrator.facts.markdown import inert, table
from orchestrator.results.report.compare import differences, shared_cells
from orchestrator.results.report.heat import Heat, Tile
from orchestrator.results.report.told import Told
from orchestrator.results.report.wording import SIGNS, column_name, place_name

#: The first line of every card, by which it is known again.
MARK = "<!-- altgrad report -->"
#: Most decisions that a card lists; the page has all of them.
_ENDS = 20


def card(told: Sequence[Told]) -> str:
    """The whole card."""
    lines = [MARK, f"# {inert(' and '.join(each.run.name for each in told))}"]
    if len(told) > 1:
        runs = [each.run for each in told]
        names = ["", *(run.name for run in runs)]
        for title, rows in (("What differs", differences(runs)), ("Cells in more than one run", shared_cells(runs))):
            lines += ["", f"## {title}", "", _table(names, [[name, *values] for name, values in rows])]
    for each in told:
        lines += _one(each, depth=2 if len(told) > 1 else 1)
    return "\n".join(lines) + "\n"


def _one(told: Told, depth: int) -> Iterator[str]:
    def head(title: str) -> list[str]:
        return ["", f"{'#' * (depth + 1)} {title}", ""]

    run = told.run
    if depth > 1:
        yield from ("", f"## {inert(run.name)}")
    if run.plan["description"]:
        yield from ("", inert(run.plan["description"]))
    yield from head("The answer")
    yield from (f"- {inert(sentence)}" for sentence in told.answer)
    yield from head(f"The matrix: {inert(run.matrix.metric)}")
    yield from _matrix(told.heats[0])
    yield from head("Why trials stopped")
    yield from (f"- {inert(sentence)}" for sentence in told.saved)
    yield from _ends(told)
    yield from head("Cost")
    yield inert(told.cost.sentence)
    yield from head("What this cannot show")
    yield from (f"- {inert(sentence)}" for sentence in told.limits)
    yield from head("To repeat it")
    yield from _repeat(told)


def _matrix(heat: Heat) -> Iterator[str]:
    of = heat.matrix
    names = [of.row_parameter, *(column_name(column) if column else of.metric for column in heat.columns)]
    yield _table(names, [[row, *map(_tile, tiles)] for row, tiles in heat.rows])
    yield from ("", "; ".join(filter(None, ("Mean over replicates, ± 95 % interval (from three on)", heat.key))) + ".")


def _tile(tile: Tile) -> str:
    notes = f"({'; '.join(tile.notes)})" if tile.notes else ""
    return " ".join(filter(None, (tile.text, SIGNS[tile.judgement], notes)))


def _ends(told: Told) -> Iterator[str]:
    if not told.ends:
        return
    rows = [
        [
            " ".join(filter(None, (place_name(end.place), end.setting, end.replicates))),
            end.reason + (" (spared by the audit)" if end.audited else ""),
            end.message,
        ]
        for end in told.ends[:_ENDS]
    ]
    yield ""
    yield _table(["trials", "reason", "decision"], rows)
    if len(told.ends) > _ENDS:
        yield from ("", f"And {len(told.ends) - _ENDS} more, in the page.")


def _repeat(told: Told) -> Iterator[str]:
    repeat = told.repeat
    facts = {**repeat.versions, **{f"hash of the {name}": digest for name, digest in repeat.hashes.items()}}
    yield inert(", ".join(f"{name} {value}" for name, value in facts.items()) + ".")
    for name, content in (("console", "\n".join(repeat.commands)), ("yaml", repeat.space or "")):
        if content:
            fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`{3,}", content))])
            yield from ("", f"{fence}{name}", content.rstrip("\n"), fence)


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return table([*map(inert, names)], ([*map(inert, cells)] for cells in rows))
