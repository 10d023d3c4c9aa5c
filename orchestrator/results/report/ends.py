"""Why each trial ended, with the numbers that was decided on; what stopping saved, and what the audit found."""

from collections import defaultdict
from typing import Any, NamedTuple

from orchestrator.results.cells import Place
from orchestrator.results.queries import query
from orchestrator.results.report.run import ReportedRun
from orchestrator.results.report.wording import spoken
from orchestrator.results.schema import TOLD_FIRST


class End(NamedTuple):
    """Trials of one setting that ended, or were to end, by one decision."""

    place: Place
    #: The nuisance parameters as text.
    setting: str
    replicates: str
    reason: str
    #: The audit let them run on.
    audited: bool
    step: int | None
    value: float | None
    reference: float | None
    threshold: float | None
    message: str


def ends(run: ReportedRun) -> list[End]:
    """Every decision that ended a trial early, one row for trials of a setting that share all of its numbers."""
    decided = _decisions(run)
    found: dict[End, list[str]] = defaultdict(list)
    for setting in run.settings:
        for lane in setting.lanes:
            for numbers in decided[lane.key]:
                end = End(place=setting.place, setting=spoken(setting.nuisance), replicates="", **numbers)
                found[end].append(lane.replicate)
    merged = [end._replace(replicates=", ".join(lanes)) for end, lanes in found.items()]
    return sorted(merged, key=lambda end: TOLD_FIRST.index(end.reason))


def _decisions(run: ReportedRun) -> dict[str, list[dict[str, Any]]]:
    """By key: what was decided on a trial, and on which numbers. A failure that was made good since is none."""
    kinds = ", ".join(f"'{kind}'" for kind in ("audited", *TOLD_FIRST))
    rows = query(run.store, f"SELECT * FROM events WHERE kind IN ({kinds}) ORDER BY key, step").to_pylist()
    told = {trial["key"]: trial for trial in run.trials}
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        trial, audited = told.get(row["key"], {}), row["kind"] == "audited"
        if audited or row["kind"] == trial.get("reason"):
            numbers = {name: row[name] for name in ("step", "value", "reference", "threshold")}
            reason = trial.get("audited") if audited else row["kind"]
            found[row["key"]].append({"reason": reason, "audited": audited, **numbers, "message": row["message"] or ""})
    for key, trial in told.items():
        if trial["reason"] == "failed" and not any(end["reason"] == "failed" for end in found[key]):
            numbers = {"step": trial["step"], "value": None, "reference": None, "threshold": None}
            found[key].append({"reason": "failed", "audited": False, **numbers, "message": trial["error"] or ""})
    return found


def saved(run: ReportedRun) -> list[str]:
    """What stopping saved and what it cost, in sentences."""
    found = run.savings
    counts = ", ".join(f"{n:,} {reason}" for reason, n in sorted(found.lanes_by_reason.items()))
    said = [f"Trials: {counts}."]
    if found.saved and found.planned:
        parts = ", ".join(f"{n:,} by {reason}" for reason, n in found.saved_by_reason.items())
        share = found.saved / found.planned
        said.append(f"Stopping saved {found.saved:,} of {found.planned:,} steps ({share:.0%}): {parts}.")
    else:
        said.append("Stopping saved nothing.")
    audit = [line.strip() for line in run.regret.sentences()]
    return said + (audit or ["Nothing was audited: how often stopping costs a winner is not known from this run."])
