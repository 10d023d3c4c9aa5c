"""Ray Tune schedulers over the decisions of `orchestrator.sweep.stopping`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from orchestrator.sweep.rungs import judge
from orchestrator.sweep.stopping import Asha, Decision, group_of
from orchestrator.sweep.survival import RetryingScheduler

#: Told of every stop, and of every audited one that is not carried out: the pack's id and the decision.
OnDecision = Callable[[str, Decision], None]


class AshaScheduler(RetryingScheduler):
    """Runs packs in the order given and stops those that `Asha` gives up, the audited excepted.

    A Tune trial's config names its pack under ``pack``; its results carry ``step``, and the metric while a lane of it
    lives (see `judge`). A result without a step is let through. A pack keeps its place on the rungs over all its
    attempts.

    Ray pickles a scheduler with its experiment. The rungs travel along, ``on_decision`` does not (it holds the
    journal): a scheduler that was unpickled refuses trials until `attach` names a new one.

    Raises:
        ValueError: an unknown mode or scope.
    """

    def __init__(
        self,
        asha: Asha,
        metric: str,
        mode: str,
        scope: str,
        cells: Mapping[str, str],
        on_decision: OnDecision,
    ) -> None:
        """Build the scheduler of one sweep.

        Args:
            asha: Empty, or as `refilled` made it for a sweep that is resumed.
            metric: The result's key to judge by.
            mode: ``min`` or ``max``; in the decisions of a ``max`` sweep the metric appears negated.
            scope: ``cell`` or ``sweep``; see `group_of`.
            cells: The scientific cell of every pack.
            on_decision: Called once for every decision; after a resume also for those on unfinished packs again.
        """
        super().__init__()
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be min or max, got {mode!r}")
        self.asha = asha
        # Not `_metric`: Ray ends the sweep at the first result that lacks a scheduler's `metric`.
        self._judged_metric, self._mode = metric, mode
        self._groups = {pack: group_of(scope, cell) for pack, cell in cells.items()}
        self._on_decision: OnDecision | None = on_decision
        self._told: set[str] = set()

    def attach(self, on_decision: OnDecision) -> None:
        """Name who is told of stops, after unpickling."""
        self._on_decision = on_decision

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Accept the metric and mode of a ``TuneConfig`` where they are absent or the scheduler's own."""
        return metric in (None, self._judged_metric) and mode in (None, self._mode)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Refuse to begin where a stop would go unrecorded.

        Raises:
            RuntimeError: the scheduler was unpickled and nothing is attached.
        """
        if self._on_decision is None:
            raise RuntimeError("this scheduler was unpickled and has nobody to tell of its stops: call attach() first")
        super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> str:
        """Stop the pack or let it go on."""
        if "step" not in result:
            return TrialScheduler.CONTINUE
        pack = trial.config["pack"]
        decision = judge(
            self.asha, self._groups[pack], pack, int(result["step"]), result, self._judged_metric, self._mode
        )
        if decision is None:
            return TrialScheduler.CONTINUE
        if pack not in self._told:
            self._told.add(pack)
            assert self._on_decision is not None, "on_trial_add let nobody pass"
            sign = "negated " if self._mode == "max" else ""
            message = f"{sign}{self._judged_metric} {decision.message}"
            self._on_decision(pack, dataclasses.replace(decision, message=message))
        return TrialScheduler.CONTINUE if decision.audited else TrialScheduler.STOP

    def debug_string(self) -> str:
        """One line for Ray's own status."""
        return f"Asha on {self._judged_metric}: {len(self.asha.stopped)} packs stopped, rungs {self.asha.rungs}"

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_on_decision": None}


def _run_all(
    asha: Asha, metric: str, mode: str, scope: str, cells: Mapping[str, str], on_decision: OnDecision
) -> RetryingScheduler:
    return RetryingScheduler()


#: Scheduler of each ``early_terminate.type``; all take what `AshaScheduler` takes.
SCHEDULERS: dict[str, Callable[[Asha, str, str, str, Mapping[str, str], OnDecision], RetryingScheduler]] = {
    "asha": AshaScheduler,
    "none": _run_all,
}
