"""How Ray Tune is told what is given up: it tries all packs again, and goes on to the last, unless it is stopped."""

from collections.abc import Callable
from typing import Any

import ray
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from orchestrator.sweep.retries import Action

#: Told of every attempt that failed; says what to do.
OnFailure = Callable[[Trial], Action]


class RetryingScheduler(FIFOScheduler):
    """Runs packs in the order given; asks what to do about every one that fails.

    Tune knows one limit for failures of all kinds, so it is to be given none (``max_failures=-1``). It hears of a
    failure here after it has decided to try the pack again and before it does.
    """

    def __init__(self) -> None:
        super().__init__()
        #: None: every pack is tried again, as often as Tune is willing to.
        self.on_failure: OnFailure | None = None
        #: Asked all the time: whether the whole sweep is to end, though packs have not.
        self.is_over: Callable[[], bool] | None = None
        self._given_up: set[str] = set()

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A pack failed. It has no worker now, and may be asked to wait for another kind of place."""
        if self.on_failure is None:
            return
        match self.on_failure(trial):
            case "give_up":
                self._given_up.add(trial.config["pack"])
            case "retry_alone":
                trial.update_resources(whole_node(trial.placement_group_factory.required_resources))
            case "end_sweep":
                tune_controller.request_stop_experiment()

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A pack is waiting for its place, the first time or again."""
        if trial.config["pack"] in self._given_up:
            tune_controller.stop_trial(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The next pack in order; none where the sweep is to end."""
        if self.is_over is not None and self.is_over():
            tune_controller.request_stop_experiment()
            return None
        return super().choose_trial_to_run(tune_controller)

    def __getstate__(self) -> dict[str, Any]:
        # Who is told holds the journal; Ray pickles schedulers with its experiment.
        return {**self.__dict__, "on_failure": None, "is_over": None}


def whole_node(asked: dict[str, float]) -> dict[str, float]:
    """What has to be asked for so that nothing else runs beside it: all CPUs of the largest node that has the rest."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fit = [node.get("CPU", 0.0) for node in nodes if all(node.get(kind, 0.0) >= n for kind, n in asked.items())]
    resources = {kind.lower() if kind in ("CPU", "GPU") else kind: n for kind, n in asked.items()}
    return resources | {"cpu": max(fit, default=asked.get("CPU", 1.0))}
