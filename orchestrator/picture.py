"""A sweep in a dozen lines, as the one who runs it and anybody who asks about it see it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.terminal import plain

#: Lines of a kind at most, or the picture outgrows a terminal.
_MOST = 8


@dataclass(frozen=True)
class Picture:
    """What is drawn; draws itself as a rich renderable."""

    name: str
    #: Beside the name: how long, how much longer, who runs it.
    note: str
    #: Trials by state, in the order of their life; those at zero left out.
    counts: Mapping[str, int]
    #: Trials that have ended, of all.
    ended: int
    total: int
    #: Packs that reached each rung, by its step.
    rungs: Mapping[int, int] = field(default_factory=dict)
    #: Further lines by what stands in the first column, such as ``best`` and ``now``.
    lines: Mapping[str, Sequence[str]] = field(default_factory=dict)
    #: In front of the name.
    mark: RenderableType = ""

    def __rich__(self) -> RenderableType:
        rows = Table.grid(padding=(0, 2))
        rows.add_row(self.mark, Text.assemble((plain(self.name), "bold"), f"  {plain(self.note)}", overflow="fold"))
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=self.total, completed=self.ended, width=24), Text(f"{self.ended}/{self.total}"))
        rows.add_row("trials", bar)
        rows.add_row("", Text("  ".join(f"{n} {state}" for state, n in self.counts.items()), overflow="fold"))
        if self.rungs:
            rows.add_row("rungs", Text("  ".join(f"step {rung}: {n}" for rung, n in self.rungs.items())))
        for name, lines in self.lines.items():
            if lines:
                rows.add_row(name, Group(*_cut(lines)))
        return rows


def _cut(lines: Sequence[str]) -> list[Text]:
    """So many of the lines, each on one: a name comes last, and a narrow terminal cuts what is last."""
    shown = [Text(plain(line), no_wrap=True, overflow="ellipsis") for line in lines[:_MOST]]
    return shown + [Text(f"and {len(lines) - _MOST} more")] * (len(lines) > _MOST)


def label(cell: str, nuisance: Mapping[str, Any]) -> str:
    """A pack's cell, and the nuisance values that tell it from others of its cell."""
    return " ".join([cell, *(f"{name}={value}" for name, value in nuisance.items())])


def standing(value: float, step: int, settings: int, label: str) -> str:
    """Where a pack stood, or stands, with its metric: the mean over so many settings."""
    return f"{value:.4f}  step {step}{_over(settings)}  {label}"


def training(step: int, steps: int, metric: str, value: float | None, settings: int, warnings: int, label: str) -> str:
    """A pack that trains; its metric is the mean over so many settings."""
    number = "" if value is None else f"  {metric} {value:.4f}{_over(settings)}"
    warned = f"  rank warnings {warnings}" if warnings else ""
    return f"{step}/{steps}{number}{warned}  {label}"


def _over(settings: int) -> str:
    return f"  mean over {settings} settings" if settings > 1 else ""
