"""Runs what is unfinished of a sweep under Ray Tune. Nothing else starts a Tuner.

Tune's own state is never restored: it loses the scheduler's rungs, and a damaged state file re-runs a whole sweep. The
journal says what is unfinished, each pack finds its own checkpoint, and the rungs are refilled from what was reported.
"""

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from orchestrator.plan import Plan
from orchestrator.results.driver import folder_of, process_began
from orchestrator.results.journal import Journal, SweepState
from orchestrator.results.store import Store
from orchestrator.signals import Caught
from orchestrator.space import Resources
from orchestrator.sweep.departure import Departure
from orchestrator.sweep.observer import SweepObserver
from orchestrator.sweep.progress import Progress
from orchestrator.sweep.provenance import settled_resources, versions
from orchestrator.sweep.retention import Retention, delete_checkpoints
from orchestrator.sweep.rungs import refilled
from orchestrator.sweep.schedulers import SCHEDULERS
from orchestrator.sweep.stopping import Asha
from orchestrator.sweep.surroundings import leave_the_jobs_folder, ray_here, room_for, room_on_disk, wandb_mode
from orchestrator.sweep.trainable import run_pack


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep's run ended."""

    #: Somebody, or a signal, ended it early.
    interrupted: bool
    #: The last error of every pack that failed for good.
    failed: dict[str, str]
    #: The last error of the many in a row that ended it early, see ``max_consecutive_failures``.
    fatal: str | None
    #: What is wrong with the checkpoints that were passed over, by folder.
    damaged: dict[str, str]


def run_sweep(
    plan: Plan,
    store: Store,
    progress: Progress,
    caught: Caught,
    address: str | None = None,
    again: Collection[str] = (),
) -> SweepOutcome:
    """Run every unfinished pack of a planned sweep.

    Args:
        plan: what ``plan.json`` in the store holds.
        store: the run's folder, reachable from every worker.
        progress: hears of everything that happens.
        caught: knows of the signal that ends it.
        address: of a running Ray cluster; None starts Ray on this machine for as long as the sweep runs.
        again: finished packs to train once more, because rows of theirs are lost.

    Returns:
        What ended it, and what failed. Everything else is in the journal and the chunks.

    Raises:
        SurroundingsError: Ray cannot be started or reached, no trial fits on this machine, there is no room left
            where the run is kept or its folder would not outlive the job, or the environment asks for a W&B mode
            that there is not.
    """
    leave_the_jobs_folder(store)
    wandb = wandb_mode(plan.spec.wandb.mode)
    journal = Journal(store)
    state = SweepState.from_records(plan.to_dict(), journal.read())
    packs = [pack for pack in plan.packs if pack.pack in {*state.unfinished, *again}]
    names = [pack.pack for pack in packs]
    limits = (plan.spec.max_failures, plan.spec.max_consecutive_failures)
    observer = SweepObserver(state, journal, progress, *limits, again=set(names) - set(state.unfinished))
    departure = Departure(store, caught, observer, progress)
    with room_on_disk(store, observer):
        journal.append({"event": "sweep_started", "command": sys.argv, **_where(store), "versions": versions()})
        delete_checkpoints(store, set(state.attempts) - set(names))
        progress.say("starting Ray")
        with ray_here(address, caught):
            progress.say("placing the first trials")
            resources = room_for(packs, plan.spec.resources, plan.corpus["vocabulary"], address)
            journal.append({"event": "resources_settled", **settled_resources(resources)})
            while names:
                asha = refilled(plan, journal.read())
                tuner = _tuner(plan, store, names, asha, observer, departure, wandb, resources)
                with departure.answered():
                    tuner.fit()
                names = _let_go(names, observer, caught)
            progress.say("letting Ray go")
        journal.append({"event": "sweep_ended", "reason": _why_it_ended(observer, caught)})
    fatal = observer.fatal.message if observer.fatal else None
    return SweepOutcome(_interrupted(observer, caught), observer.failed, fatal, observer.damaged)


def _let_go(packs: Sequence[str], observer: SweepObserver, caught: Caught) -> list[str]:
    """Packs that are to be tried again and that Tune ended with: it does where a worker goes between two packs."""
    if _interrupted(observer, caught) or observer.fatal is not None:
        return []
    return [pack for pack in packs if pack in observer.waiting]


def _interrupted(observer: SweepObserver, caught: Caught) -> bool:
    # SIGUSR1 is Tune's own: `fit` returns as if nothing had happened, with packs that have neither ended nor failed.
    return caught.signal is not None or (bool(observer.unfinished) and observer.fatal is None)


def _why_it_ended(observer: SweepObserver, caught: Caught) -> str:
    if _interrupted(observer, caught):
        return (caught.signal or signal.SIGINT).name
    if observer.fatal is None:
        return "finished"
    return "disk_full" if observer.fatal.kind == "disk_full" else "failures"


def _tuner(
    plan: Plan,
    store: Store,
    packs: list[str],
    asha: Asha,
    observer: SweepObserver,
    departure: Departure,
    wandb: str,
    resources: Resources,
) -> tune.Tuner:
    spec = plan.spec
    rules, metric = spec.early_terminate, spec.metric
    scheduler = SCHEDULERS[rules.type](
        asha,
        metric.name,
        metric.goal[:3],
        rules.scope,
        {pack.pack: pack.cell for pack in plan.packs},
        observer.stopped,
    )
    scheduler.on_failure, scheduler.is_over = observer.attempt_failed, departure.due
    fixed = {
        "store": store.uri,
        "threads": max(1, int(resources.cpu)),
        "device": "cuda" if resources.gpu else "cpu",
        "wandb": wandb,
        "wandb_folder": str(_wandb_folder(store, spec.name)),
        "wandb_interval": spec.wandb.interval,
    }
    return tune.Tuner(
        tune.with_resources(run_pack, {"cpu": resources.cpu, "gpu": resources.gpu}),
        param_space={"pack": tune.grid_search(packs), **fixed},
        tune_config=tune.TuneConfig(scheduler=scheduler, reuse_actors=True, trial_dirname_creator=_folder_name),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=store.uri,
            callbacks=[observer, Retention(store, observer)],
            # Without limit: `RetryingScheduler` stops those that are given up.
            failure_config=tune.FailureConfig(max_failures=-1),
            verbose=0,
        ),
    )


def _folder_name(trial: Any) -> str:
    return str(trial.config["pack"])


def _wandb_folder(store: Store, name: str) -> Path:
    """The run's own folder; where that is an object store, a folder of each worker."""
    return Path(store.uri) if "://" not in store.uri else Path(tempfile.gettempdir()) / f"altgrad-{name}"


def _where(store: Store) -> dict[str, Any]:
    began = process_began(os.getpid())
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "began": began and began.isoformat(timespec="milliseconds"),
        "folder": folder_of(store),
    }
