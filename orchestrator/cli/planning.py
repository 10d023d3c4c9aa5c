"""Verbs before a sweep: what would it run?"""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table

from orchestrator.cli.app import Json, Override, Space, UsageError, app, planned
from orchestrator.terminal import OK, out, say

if TYPE_CHECKING:
    from orchestrator.plan import Plan


@app.command
def init(
    file: Path = Path("my-first.yaml"),
    /,
    *,
    formats: str = "fp32,E4M3,E5M2",
    optimizers: str = "adamw",
    storage: str = "master,nearest",
    seeds: int = 3,
    steps: int = 500,
    lr: str = "1e-3,3e-3",
    model: str = "2x64",
    corpus: str = "stdlib",
    force: bool = False,
) -> int:
    """Write a search space with comments, to be read, changed and run.

    Lists have commas and no spaces. Combinations that have no meaning are excluded with the reason.

    Example: altgrad init my-first.yaml --formats fp32,E4M3,E5M2 --seeds 3

    Parameters
    ----------
    file
        Where to; its name names the sweep.
    formats
        Number formats, such as E4M3; `altgrad formats` lists them. The control is fp32, named here or not.
    optimizers
        Of adamw, manifold_adamw, muon, grid.
    storage
        Where weights live: master, nearest, stochastic.
    seeds
        Runs of each configuration.
    steps
        Optimizer steps of each run.
    lr
        Peak learning rates; each cell keeps the best.
    model
        Layers and width, such as 4x128.
    corpus
        stdlib, or a file or folder of text.
    force
        Replace the file if it is there.
    """
    from orchestrator.init_space import InitError, Wish, write_space

    wish = Wish(formats, optimizers, storage, seeds, steps, lr, model, corpus)
    try:
        spec = write_space(file, wish, force)
    except InitError as error:
        raise UsageError(str(error)) from error
    for note in spec.notes:
        say(note)
    out.print(f"wrote {file}", highlight=False, soft_wrap=True)
    say(f"next: altgrad plan {shlex.quote(str(file))}")
    return OK


@app.command
def plan(space: Space, /, *overrides: Override, as_json: Json = False) -> int:
    """Show what a sweep would run, and run nothing.

    Example: altgrad plan search_spaces/quickstart.yaml format=[E4M3,E5M2]
    """
    found = planned(space, overrides)
    if as_json:
        print(json.dumps(found.to_dict()))
        return OK
    name = Column("cell", overflow="fold")
    table = Table(name, "trials", "settings", "steps each", title=found.spec.name, title_justify="left")
    cells: dict[str, list[Any]] = {}
    for pack in found.packs:
        cells.setdefault(pack.cell + (" (control)" if pack.control else ""), []).append(pack)
    for cell, packs in cells.items():
        trials = sum(len(pack.lanes) for pack in packs)
        table.add_row(cell, str(trials), str(len(packs)), str(packs[0].lanes[0].config.steps))
    out.print(table)
    lanes = sum(len(pack.lanes) for pack in found.packs)
    out.print(f"{lanes} trials in {len(found.packs)} packs, {len(found.excluded)} combinations left out")
    out.print(_expectation(found), soft_wrap=True)
    corpus = found.corpus
    out.print(f"corpus {corpus['corpus']}: {corpus['tokens']:,} tokens, {corpus['vocabulary']} different")
    from orchestrator.preflight import estimates

    for line in estimates(found):
        out.print(line)
    return OK


def _expectation(planned: "Plan") -> str:
    """What stopping is going to save, and on what assumption that is said."""
    from orchestrator.sweep.expected import expected_savings

    rules = planned.spec.early_terminate
    if rules.type == "none":
        return "stopping: only trials that diverge, collapse or stall end early"
    total = sum(lane.config.steps for pack in planned.packs for lane in pack.lanes)
    among = "those of their cell" if rules.scope == "cell" else "all"
    expected = f"{rules.type} should save about {expected_savings(planned):.0%} of {total:,} steps"
    assumed = f"if packs rank at random among {among} and run one after another"
    return f"stopping: {expected}, {assumed}; trials that diverge, collapse or stall save more"
