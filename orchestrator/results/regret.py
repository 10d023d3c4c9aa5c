"""What stopping costs: how often an audited setting, run on to its end, would have won after all."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, NamedTuple

from scipy.special import betaincinv

from orchestrator.results.cells import CONFIDENCE, Setting, Trial, best_setting
from orchestrator.results.journal import load_plan
from orchestrator.results.matrix import parameter, require_trials
from orchestrator.results.queries import query
from orchestrator.results.store import Store

#: Fewer audited settings than this say nothing of how often stopping costs a winner.
LEAST_AUDITED = 20


@dataclass(frozen=True)
class Win:
    """An audited setting that came out better than everything that stopping had left it to compete with."""

    cell: str
    nuisance: dict[str, Any]
    #: Why it was to be stopped, and at which step.
    reason: str
    step: int
    #: The mean of its final metric, and of the best that it is held against.
    value: float
    best: float

    @property
    def margin(self) -> float:
        """How much better it is, in units of the metric."""
        return abs(self.value - self.best)


@dataclass(frozen=True)
class Regret:
    """What the audit of a sweep found. What is counted are settings: replicates are averaged."""

    metric: str
    #: ``cell``: held against the best setting of its own cell; ``sweep``: against the best of all.
    scope: str
    #: Audited settings that ran to their end and have something to be held against.
    n: int
    #: Those of them that would have won.
    wins: tuple[Win, ...]
    #: Audited settings that cannot be judged: still running, ended early after all, or with nothing left beside them.
    undecided: int

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval (Clopper and Pearson 1934) of the share of stops that cost a winner."""
        wins, tail = len(self.wins), (1 - CONFIDENCE) / 2
        low = float(betaincinv(wins, self.n - wins + 1, tail)) if wins else 0.0
        high = float(betaincinv(wins + 1, self.n - wins, 1 - tail)) if wins < self.n else 1.0
        return low, high

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "interval": list(self.interval)}

    def sentences(self) -> list[str]:
        """The same in words; none where nothing was audited."""
        said = []
        if self.n:
            prize = "the sweep" if self.scope == "sweep" else "their cells" if len(self.wins) > 1 else "its cell"
            won = f"{len(self.wins) or 'none'} would have won {prize}"
            said.append(f"Audit: {_settings_to_stop(self.n)} ran to the end; {won}{self._how_sure()}.")
        if self.undecided:
            why = "still running, ended after all, or nothing ran to the end beside them"
            said.append(f"Audit: {_settings_to_stop(self.undecided)} cannot be judged: {why}.")
        return said + [self._told(win) for win in sorted(self.wins, key=lambda win: -win.margin)]

    def _how_sure(self) -> str:
        if self.n < LEAST_AUDITED:
            return "; too few to say how often stopping costs a winner"
        low, high = self.interval
        return f" ({len(self.wins) / self.n:.0%}, 95 % interval {low:.0%} to {high:.0%})"

    def _told(self, win: Win) -> str:
        name = " ".join([win.cell, *(f"{key}={value}" for key, value in win.nuisance.items())])
        numbers = f"{self.metric} {win.value:.4g} against {win.best:.4g}"
        return f"  {name}, to be stopped by {win.reason} at step {win.step}: {numbers}"


def _settings_to_stop(n: int) -> str:
    return f"{n} setting{'s' if n > 1 else ''} that {'were' if n > 1 else 'was'} to be stopped"


def regret(store: Store) -> Regret:
    """What the audit of a consolidated sweep found, by the plan's own metric.

    A setting is held against the best of the settings that stopping let run to their end: those of its cell, or all
    where the packs of the whole sweep compete.

    Raises:
        FileNotFoundError: the folder was never consolidated.
    """
    plan = load_plan(store)
    metric, scope = plan["metric"], plan["space"]["early_terminate"]["scope"]
    audited: list[_Audited] = []
    rivals: dict[str, list[Setting]] = defaultdict(list)
    for cell, nuisance, rows in _settings(plan, _rows(store, metric["name"])):
        group = cell if scope == "cell" else ""
        spared = [row for row in rows if row["audited"] is not None]
        # What was stopped has no final value.
        setting = Setting(nuisance, [Trial(row["ended"], row["step"], row["value"]) for row in rows if _ran(row)])
        if spared:
            first = min(spared, key=lambda row: row["audited_step"])
            audited.append(_Audited(cell, group, setting, first, all(map(_ran, spared))))
        else:
            rivals[group].append(setting)
    best = {group: best_setting(settings, metric["goal"]) for group, settings in rivals.items()}
    judged = [(each, rival) for each in audited if each.ran and (rival := best.get(each.group)) is not None]
    # Of two alike the first is the best, and that is the one that was not stopped.
    won = [(each, rival) for each, rival in judged if best_setting([rival, each.setting], metric["goal"]) != rival]
    wins = tuple(
        Win(
            cell=each.cell,
            nuisance=each.setting.nuisance,
            reason=each.decided["audited"],
            step=each.decided["audited_step"],
            value=fmean(each.setting.values),
            best=fmean(rival.values),
        )
        for each, rival in won
    )
    return Regret(metric["name"], scope, len(judged), wins, len(audited) - len(judged))


class _Audited(NamedTuple):
    cell: str
    group: str
    setting: Setting
    #: The row of the trial that was decided on first.
    decided: Mapping[str, Any]
    #: Every audited trial of it came to its end.
    ran: bool


def _ran(row: Mapping[str, Any]) -> bool:
    return row["ended"] in ("completed", "diverged")


def _rows(store: Store, metric: str) -> dict[str, Mapping[str, Any]]:
    """By key: how each trial ended, its final metric, and why and where it was to be stopped."""
    require_trials(store)
    value = f"CASE WHEN reason = 'diverged' OR NOT isfinite({metric}) THEN NULL ELSE {metric} END"
    sql = f"SELECT key, coalesce(reason, status) AS ended, step, {value} AS value, audited, audited_step FROM trials"
    return {row["key"]: row for row in query(store, sql).to_pylist()}


def _settings(
    plan: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]
) -> Iterable[tuple[str, dict[str, Any], list[Mapping[str, Any]]]]:
    """Every setting of the plan: its cell, its nuisance parameters, and the rows of its trials."""
    names = [name for name, role in plan["roles"].items() if role == "nuisance"]
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for pack in plan["packs"]:
        for lane in pack["lanes"]:
            chosen = {name: parameter(name, pack, lane) for name in names}
            if lane["key"] in rows:
                found[pack["cell"], json.dumps(chosen)].append(rows[lane["key"]])
    for (cell, nuisance), trials in found.items():
        yield cell, json.loads(nuisance), trials
