"""Everything needed to do a run again."""

import shlex
from typing import NamedTuple

from orchestrator.results.report.run import ReportedRun

#: The search space as it was resolved, in a run's folder.
SPACE_PATH = "sweep.yaml"


class Repeat(NamedTuple):
    """What a run was made with."""

    #: The resolved search space, as a file to sweep again; None where the folder has lost it.
    space: str | None
    #: Commands that ran it, the first one first, each once.
    commands: list[str]
    #: Versions of what ran it, by name; several where it was resumed with others.
    versions: dict[str, str]
    #: Of the corpus and the plan, by what they are.
    hashes: dict[str, str]


def repeat(run: ReportedRun) -> Repeat:
    """What to keep so that a run can be done again; a commit where one was recorded."""
    starts = [record for record in run.records if record["event"] == "sweep_started"]
    versions: dict[str, list[str]] = {}
    for start in starts:
        for name, value in (start.get("versions") or {}).items():
            versions.setdefault(str(name), []).append(str(value))
    corpus = run.plan["corpus"]
    space = run.store.read_bytes(SPACE_PATH).decode(errors="replace") if run.store.exists(SPACE_PATH) else None
    return Repeat(
        space=space,
        commands=list(dict.fromkeys(shlex.join(map(str, start.get("command") or ())) for start in starts)),
        versions={name: ", ".join(dict.fromkeys(values)) for name, values in versions.items()},
        hashes={f"corpus {corpus['corpus']}": str(corpus["hash"]), "search space": str(run.plan["spec_hash"])},
    )
