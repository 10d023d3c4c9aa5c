"""What the driver hears from Ray Tune, written to the journal and shown to the person watching."""

import dataclasses
import re
import textwrap
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from orchestrator.results.journal import Journal, SweepState
from orchestrator.sweep.progress import Progress
from orchestrator.sweep.stopping import Decision

#: Characters of an error in the journal; all of it is in Tune's ``error.txt``.
_LONGEST_ERROR = 300


class SweepObserver(Callback):
    """Turns Tune's callbacks and the scheduler's stops into journal records."""

    def __init__(self, state: SweepState, journal: Journal, progress: Progress, again: Collection[str] = ()) -> None:
        """``again``: finished packs that train once more, because rows of theirs are lost."""
        self._journal, self._progress = journal, progress
        self._again = set(again)
        #: Keys of the lanes that have not ended, by pack.
        self._living: dict[str, list[str]] = {pack: [] for pack in [*state.unfinished, *again]}
        #: Reason and step of every lane's end, by key.
        self._ends: dict[str, tuple[str, int]] = {}
        for lane in state.lanes.values():
            if lane.status != "finished":
                self._living[lane.pack].append(lane.key)
            elif lane.reason is not None and lane.step is not None:
                self._ends[lane.key] = lane.reason, lane.step
        self._stops: dict[str, Decision] = {}
        #: The last error of every pack that failed and has not been started again.
        self.failed: dict[str, str] = {}

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
        self._journal.append({"event": "pack_started", "pack": pack})
        self._progress.started(pack)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A pack reported. The scheduler has decided on it by now, but lanes that ended by themselves come first."""
        if "step" not in result:
            return
        pack = trial.config["pack"]
        metrics = {name: result[name] for name in ("loss", "val_loss", "warnings", "lanes") if name in result}
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
        if pack in self._stops:
            for key in result["alive"]:
                self._end(pack, {"key": key, **dataclasses.asdict(self._stops[pack])})

    def stopped(self, pack: str, decision: Decision) -> None:
        """The scheduler stops a pack on the result that `on_trial_result` is about to see."""
        self._stops[pack] = decision

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A pack ran out of steps or lanes, or was stopped."""
        self._again.discard(trial.config["pack"])
        self._progress.left(trial.config["pack"])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A pack failed and Tune gave it up."""
        self._fail(trial)
        pack = trial.config["pack"]
        for key in self._living[pack]:
            self._progress.ended(key, "failed")
        self._progress.left(pack)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A pack failed and Tune will try again."""
        self._fail(trial)
        pack = trial.config["pack"]
        self._progress.retried(pack, self.failed[pack])

    def _fail(self, trial: Trial) -> None:
        pack = trial.config["pack"]
        self.failed[pack] = _last_line(trial)
        self._journal.append({"event": "pack_failed", "pack": pack, "error": self.failed[pack]})

    def _end(self, pack: str, end: Mapping[str, Any]) -> None:
        """Record an end, once: a pack repeats its own in every report, and a retry comes to the same ones again."""
        key, found = end["key"], (end["reason"], end["step"])
        if self._ends.get(key) == found:
            return
        self._ends[key] = found
        if key in self._living[pack]:
            self._living[pack].remove(key)
        self._journal.append({"event": "lane_ended", "pack": pack, **end})
        self._progress.ended(key, end["reason"])


def _last_line(trial: Trial) -> str:
    """The error as one line: the last of its traceback.

    Read from the driver's own file, because `Trial.get_error` looks where Tune copies that file to some seconds later.
    """
    path = Path(trial.error_file or "")
    lines = path.read_text(encoding="utf-8").strip().splitlines() if path.is_file() else []
    if not lines:
        return "unknown error"
    without_modules = re.sub(r"^(\w+\.)+(?=\w+(: |$))", "", lines[-1].strip())
    return textwrap.shorten(without_modules, _LONGEST_ERROR, placeholder=" ...")
