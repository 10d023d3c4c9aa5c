"""What the command says and how: results to stdout, messages to stderr, and its exit codes."""

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.results.consolidate import ConsolidateReport
    from orchestrator.results.store import Store

#: Exit codes; 1 is a fault of the program, and 128 and more a signal.
OK, USAGE, FAILED_TRIALS, ENVIRONMENT, INTEGRITY = 0, 2, 3, 4, 5
#: More characters than any table is wide.
_WIDEST = 100_000
#: What steers a terminal (C0, DEL, C1), as text; a newline and a tab are meant.
_SIGNS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def plain(text: str) -> str:
    r"""Text whose control characters are to be seen, and steer no terminal.

    >>> print(plain("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return text.translate(_SIGNS)


class _Plain(Console):
    """Lets no control character of a name or an error through; colours and moves of its own stay."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=plain(segment.text))


class _Output(_Plain):
    """Text as it is: what looks like markup is somebody's data. A reader that has gone ends the command."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Messages(_Plain):
    """Goes quiet where nobody listens any more: a sweep does not end for that."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        discard(sys.stderr)


out = _Output(markup=False, emoji=False)
err = _Messages(stderr=True)


def say(line: str) -> None:
    """A line for the person at the terminal, as it is: no markup, no colours, no hard wrapping."""
    err.print(plain(line), markup=False, highlight=False, soft_wrap=True)


def complain(error: Exception) -> None:
    """An error, each of its lines marked as one."""
    for line in str(error).splitlines():
        say(f"error: {line}")


def command(name: str, store: "Store") -> str:
    """A command on a run as a shell takes it."""
    return f"altgrad {name} {shlex.quote(store.uri)}"


def say_damaged(report: "ConsolidateReport") -> None:
    """Name every chunk whose rows are missing from what is about to be shown."""
    for chunk in report.damaged:
        say(f"damaged, left out: {chunk}")


def discard(stream: TextIO) -> None:
    """Let what is still to be written go nowhere, or Python complains of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def show_rows(rows: "pa.Table", most: int = 1000) -> None:
    """Print a table of values, as wide as they are; of very many rows the first ones."""
    table = Table(*rows.column_names)
    for row in zip(*(column.to_pylist() for column in rows.slice(0, most).columns), strict=True):
        table.add_row(*map(_shown, row))
    # A pager or the terminal may wrap it, but no value is left out.
    width = out.measure(table, options=out.options.update(width=_WIDEST)).maximum
    _Output(markup=False, emoji=False, width=width).print(table)
    if rows.num_rows > most:
        say(f"and {rows.num_rows - most:,} more rows: --format csv or json prints them all")


def show_sentences(sentences: Sequence[str]) -> None:
    """Print each as a line of its own: broken between words on a terminal, whole elsewhere."""
    for sentence in sentences:
        out.print(sentence, soft_wrap=not out.is_terminal, highlight=False)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
