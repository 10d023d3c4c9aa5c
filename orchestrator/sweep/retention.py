"""Checkpoints of packs that have ended are deleted: they serve resuming alone, and would be most of a run's bytes."""

import contextlib
import re
from collections.abc import Collection
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from orchestrator.results.store import Store
from orchestrator.sweep.observer import SweepObserver

_CHECKPOINT = re.compile(r"(packs/([^/]+)/attempt-\d+/checkpoint-\d+)/[^/]+")


class Retention(Callback):
    """Deletes a pack's checkpoints once the journal has the end of each of its lanes; stands behind the observer."""

    def __init__(self, store: Store, observer: SweepObserver) -> None:
        self._store, self._observer = store, observer

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles callbacks with its own state, which is never restored."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A pack ran out of steps or lanes, was stopped, or was given up."""
        pack = trial.config["pack"]
        if pack not in self._observer.unfinished and pack not in self._observer.failed:
            delete_checkpoints(self._store, [pack])


def delete_checkpoints(store: Store, packs: Collection[str]) -> None:
    """Delete every checkpoint of these packs, as far as the storage lets it: what is left goes at the next start."""
    if not packs:
        return
    with contextlib.suppress(OSError):
        paths = store.list("packs" if len(packs) > 1 else f"packs/{next(iter(packs))}")
        matches = filter(None, map(_CHECKPOINT.fullmatch, paths))
        for folder in sorted({match[1] for match in matches if match[2] in packs}):
            store.delete(folder)
