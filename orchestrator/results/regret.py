"""What stopping costs: how often an audited setting, run on to its end, would have won after all."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, NamedTuple

from orchestrator.results.cells import Setting, Trial, best_setting
from orchestrator.results.intervals import share_interval
from orchestrator.results.journal import load_plan
from orchestrator.results.matrix import require_trials
from orchestrator.results.planned import choices, with_role
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
        return share_interval(len(self.wins), self.n)

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
    known = _rows(store, metric["name"])
    planned = choices(plan, with_role(plan, "nuisance"), lambda pack, _: str(pack["cell"]))
    for cell, choice in ((cell, choice) for cell, in_cell in planned.items() for choice in in_cell):
        group = cell if scope == "cell" else ""
        rows = [known[lane["key"]] for _, lane in choice.lanes if lane["key"] in known]
        spared = [row for row in rows if row["audited"] is not None]
        # What was stopped has no final value.
        trials = [Trial(row["ended"], row["step"], row["value"]) for row in rows if _ran(row)]
        setting = Setting(choice.nuisance, trials)
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
