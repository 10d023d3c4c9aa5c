"""Everything needed to do a run again."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from orchestrator.results.report.run import ReportedRun
from orchestrator.results.runs import SPACE_PATH


class Repeat(NamedTuple):
    """What a run was made with."""

    #: The resolved search space, as a file to sweep again; None where the folder has lost it.
    space: str | None
    #: Commands that ran it, the first one first, each once.
    commands: list[str]
    #: Versions of what ran it, by name, and its commit; several where it was resumed with others.
    versions: dict[str, str]
    #: Of the corpus and the plan, by what they are.
    hashes: dict[str, str]


def repeat(run: ReportedRun) -> Repeat:
    """What to keep so that a run can be done again."""
    starts = [record for record in run.records if record["event"] == "sweep_started"]
    versions: dict[str, list[str]] = {}
    for start in starts:
        for name, value in (start.get("versions") or {}).items():
            versions.setdefault(str(name), []).append(str(value))
    versions.setdefault("commit", ["not recorded"])
    corpus = run.plan["corpus"]
    space = run.store.read_bytes(SPACE_PATH).decode(errors="replace") if run.store.exists(SPACE_PATH) else None
    return Repeat(
        space=space,
        commands=list(dict.fromkeys(_typed(start["command"]) for start in starts if start.get("command"))),
        versions={name: ", ".join(dict.fromkeys(values)) for name, values in versions.items()},
        hashes={f"corpus {corpus['corpus']}": str(corpus["hash"]), "search space": str(run.plan["spec_hash"])},
    )


def _typed(command: Iterable[object]) -> str:
    """A command as it was typed: of the program the name alone, not where somebody keeps it."""
    path, *arguments = map(str, command)
    program = ["python", "-m", "orchestrator.cli"] if path.endswith("/cli/__main__.py") else [Path(path).name]
    return shlex.join([*program, *arguments])
