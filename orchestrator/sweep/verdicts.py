"""From the rows of a report to what each lane is told: warnings, and the end of those that are lost."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from altgrad.training.callbacks import RankWatch
from altgrad.training.config import RunConfig
from altgrad.training.metrics import Rows
from altgrad.training.shapes import aliases, matrix_names
from orchestrator.sweep.stopping import Decision, LanePolicy, LaneReport, LaneWatch, RankCheck, RankWarning

#: Effective rank by matrix of the control at a step; None where it has not come that far, empty where it is lost.
Control = Callable[[int], "Mapping[str, float] | None"]


class Verdict(NamedTuple):
    """What one report means for one lane."""

    report: LaneReport
    #: The lane's end, if this is it.
    decision: Decision | None


class LaneJudge:
    """Judges one lane: its ranks against the reference, its losses and stalls against its policy."""

    def __init__(self, config: RunConfig, policy: LanePolicy, control: Control | None) -> None:
        """``control``: None for a control itself, whose ranks are held against nothing."""
        names = {name: aliases(config.model, name) for name in matrix_names(config.model)}
        self._ranks = RankWatch(config.ranks, names)
        self._watch = LaneWatch(policy)
        self._policy, self._control = policy, control
        self._own_start = config.ranks.reference == "initial"
        #: Measured ranks that wait for the control to come as far, oldest first.
        self._waiting: list[tuple[int, dict[str, float]]] = []

    def judge(self, step: int, steps: Mapping[str, np.ndarray], layers: Mapping[str, np.ndarray]) -> Verdict:
        """Take in a lane's own rows since the last report."""
        if self._own_start or self._control:
            self._waiting += list(_checks(layers))
        stalls = steps["stall_ratio"][~np.isnan(steps["stall_ratio"])]
        report = LaneReport(
            step=step,
            loss=_worst(steps["loss"]),
            val_loss=float(steps["val_loss"][-1]),
            stall_ratio=float(stalls.mean()) if len(stalls) else None,
            rank_checks=tuple(self._decided_checks()),
            last_good_step=last_good_step(step, steps["loss"]),
        )
        return Verdict(report, self._watch.observe(report))

    def _decided_checks(self) -> Iterator[RankCheck]:
        while self._waiting:
            step, ranks = self._waiting[0]
            control = self._control(step) if self._control else None
            if self._control and control is None:
                return
            self._waiting.pop(0)
            if self._control and not control:
                continue
            yield RankCheck(step, tuple(RankWarning(*alarm) for alarm in self._ranks.check(step, ranks, control)))

    def state(self) -> dict[str, Any]:
        """Plain data that `restore` takes back."""
        return {"ranks": self._ranks.state(), "watch": self._watch.state(), "waiting": self._waiting}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._ranks.restore(state["ranks"])
        self._watch = LaneWatch.from_state(self._policy, state["watch"])
        self._waiting = [(step, dict(ranks)) for step, ranks in state["waiting"]]


def _worst(losses: np.ndarray) -> float:
    """The last loss, or the first that is no number: one step without a loss is the end, whatever comes after."""
    lost = losses[~np.isfinite(losses)]
    return float(lost[0] if len(lost) else losses[-1])


def last_good_step(step: int, losses: np.ndarray) -> int:
    """The step before the first loss that is no number, of losses of consecutive steps up to ``step``."""
    lost = np.flatnonzero(~np.isfinite(losses))
    return step - (len(losses) - int(lost[0])) if len(lost) else step


def lane_rows(rows: Rows, key: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One lane's rows of both tables."""
    steps, layers = (
        {name: column[table["key"] == key] for name, column in table.items()} for table in (rows.steps, rows.layers)
    )
    return steps, layers


def event_columns(key: str, verdict: Verdict, time: Any) -> dict[str, list[Any]]:
    """Rows of the events table: the warnings of one lane at one report, and its end or the audit that spares it."""
    rows: list[Sequence[Any]] = [
        (check.step, "rank_warning", w.matrix, w.value, w.reference, w.threshold, w.message)
        for check in verdict.report.rank_checks
        for w in check.warnings
    ]
    if (end := verdict.decision) is not None:
        kind, message = ("audited", f"{end.reason}: {end.message}") if end.audited else (end.reason, end.message)
        rows.append((end.step, kind, None, end.value, end.reference, end.threshold, message))
    names = ("step", "kind", "matrix", "value", "reference", "threshold", "message")
    columns: dict[str, list[Any]] = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    return {"key": [key] * len(rows), "time": [time] * len(rows), **columns}


def _checks(layers: Mapping[str, np.ndarray]) -> Iterator[tuple[int, dict[str, float]]]:
    """Step and effective rank by matrix of every rank check in a lane's rows."""
    ranks = layers["effective_rank"]
    for step in np.unique(layers["step"][~np.isnan(ranks)]):
        here = layers["step"] == step
        yield int(step), dict(zip(layers["matrix"][here].tolist(), ranks[here].tolist(), strict=True))
