"""What the driver hears from Ray Tune, written to the journal and shown to the person watching."""

import dataclasses
import textwrap
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback

from orchestrator.results.journal import Journal, SweepState
from orchestrator.sweep.progress import Progress
from orchestrator.sweep.retries import ADVICE, Action, Brake, Failure, Kind, decide, failure_from, is_told_again
from orchestrator.sweep.stopping import Decision

#: Characters of an error in the journal; all of it is in the attempt's ``error.txt``.
_LONGEST_ERROR = 300


class SweepObserver(TrialProgressCallback):
    """Turns Tune's callbacks and the scheduler's stops into journal records.

    It is told of progress in the place of Tune's own callback, which prints.
    """

    def __init__(
        self,
        state: SweepState,
        journal: Journal,
        progress: Progress,
        max_failures: int,
        max_consecutive_failures: int,
        again: Collection[str] = (),
    ) -> None:
        """The limits are those of `SweepSpec`; ``again``: finished packs that train again for rows that are lost."""
        super().__init__()
        self._journal, self._progress = journal, progress
        self._max_failures, self._brake = max_failures, Brake(max_consecutive_failures)
        self._again = set(again)
        #: Kinds of the failures of each pack.
        self._failures: dict[str, list[Kind]] = defaultdict(list)
        #: Keys of the lanes that have not ended, by pack.
        self._living: dict[str, list[str]] = {pack: [] for pack in [*state.unfinished, *again]}
        #: Reason and step of every lane's end, by key; and of those that an audit spared, by key and True.
        self._ends: dict[tuple[str, bool], tuple[str, int]] = {}
        for lane in state.lanes.values():
            if lane.status != "finished":
                self._living[lane.pack].append(lane.key)
            elif lane.reason is not None and lane.step is not None:
                self._ends[lane.key, False] = lane.reason, lane.step
            if lane.audited is not None:
                self._ends[lane.key, True] = lane.audited["reason"], lane.audited["step"]
        self._stops: dict[str, Decision] = {}
        #: The last error of every pack that failed and has not been started again.
        self.failed: dict[str, str] = {}
        #: Those that failed, are to be tried again, and have not been started again.
        self.waiting: set[str] = set()
        #: Packs that have a worker.
        self.running: set[str] = set()
        #: Packs that saved a checkpoint because they were asked to.
        self.saved: set[str] = set()
        #: The failure that ended the whole sweep, if one did.
        self.fatal: Failure | None = None
        #: What is wrong with the checkpoints that were passed over, by folder.
        self.damaged: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles callbacks with its own state, which is never restored."""
        return {}

    @property
    def unfinished(self) -> list[str]:
        """Packs that have not failed, with lanes that have not ended or rows that are still lost."""
        return [p for p, keys in self._living.items() if (keys or p in self._again) and p not in self.failed]

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A pack was placed."""
        pack = trial.config["pack"]
        self.failed.pop(pack, None)
        self.waiting.discard(pack)
        self.running.add(pack)
        self._brake.started(pack)
        self._journal.append({"event": "pack_started", "pack": pack})
        self._progress.started(pack)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A pack reported. The scheduler has decided on it by now, but lanes that ended by themselves come first."""
        pack = trial.config["pack"]
        if "saved" in result:
            self.saved.add(pack)
        if "step" not in result:
            return
        self._brake.reported(pack, result["step"])
        for damage in result["damaged"]:
            if self.damaged.get(damage["checkpoint"]) != damage["message"]:
                self.damaged[damage["checkpoint"]] = damage["message"]
                self._journal.append({"event": "checkpoint_damaged", "pack": pack, **damage})
        metrics = {name: result[name] for name in ("loss", "val_loss", "warnings", "lanes", "lost") if name in result}
        self._journal.append(
            {
                "event": "reported",
                "pack": pack,
                "attempt": result["attempt"],
                "step": result["step"],
                "metrics": metrics,
                "seconds": result["seconds"],
            }
        )
        self._progress.reported(pack, result)
        for end in result["ended"]:
            self._end(pack, end)
        if decision := self._stops.pop(pack, None):
            for key in result["alive"]:
                self._end(pack, {"key": key, **dataclasses.asdict(decision)})

    def stopped(self, pack: str, decision: Decision) -> None:
        """The scheduler stops a pack, or audits it, on the result that `on_trial_result` is about to see."""
        self._stops[pack] = decision

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A pack ran out of steps or lanes, was stopped, or given up."""
        self.running.discard(trial.config["pack"])
        self._again.discard(trial.config["pack"])
        self._progress.left(trial.config["pack"])

    def attempt_failed(self, trial: Trial) -> Action:
        """An attempt failed; what is to be done about it, besides what was said of the same failure before."""
        pack = trial.config["pack"]
        error = _error(trial)
        if is_told_again(error):
            return "retry"
        failure = failure_from(error)
        self.running.discard(pack)
        self._failures[pack].append(failure.kind)
        self._brake.failed(pack, failure)
        action = decide(self._failures[pack], self._max_failures)
        advice = ADVICE.get(failure.kind) if action == "give_up" else None
        message = f"{advice} ({failure.message})" if advice else failure.message
        if self._brake.pulled:
            action = "end_sweep"
        self.failed[pack] = textwrap.shorten(message, _LONGEST_ERROR, placeholder=" ...")
        again = action in ("retry", "retry_alone")
        if action == "end_sweep":
            self.fatal = Failure(failure.kind, self.failed[pack])
        self._journal.append(
            {"event": "pack_failed", "pack": pack, "kind": failure.kind, "again": again, "error": self.failed[pack]}
        )
        if again:
            self.waiting.add(pack)
            self._progress.retried(pack, self.failed[pack])
            return action
        for key in self._living[pack]:
            self._progress.ended(key, "failed")
        self._progress.left(pack)
        return action

    def _end(self, pack: str, end: Mapping[str, Any]) -> None:
        """Record an end, or that the audit spared it, once.

        A pack repeats its own in every report, and a retry comes to the same ones again.
        """
        key, audited, found = end["key"], bool(end.get("audited")), (end["reason"], end["step"])
        if self._ends.get((key, audited)) == found:
            return
        self._ends[key, audited] = found
        record = {"pack": pack, **{name: value for name, value in end.items() if name != "audited"}}
        if audited:
            self._journal.append({"event": "lane_audited", **record})
            return
        if key in self._living[pack]:
            self._living[pack].remove(key)
        self._journal.append({"event": "lane_ended", **record})
        self._progress.ended(key, end["reason"])


def _error(trial: Trial) -> str:
    """What Tune wrote down of a pack's errors.

    Read from the driver's own file, because `Trial.get_error` looks where Tune copies that file to some seconds later.
    """
    path = Path(trial.error_file or "")
    return path.read_text(encoding="utf-8") if path.is_file() else ""
