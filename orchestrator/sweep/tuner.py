"""Runs what is unfinished of a sweep under Ray Tune. Nothing else starts a Tuner.

Tune's own state is never restored: it loses the scheduler's rungs, and a damaged state file re-runs a whole sweep. The
journal says what is unfinished, each pack finds its own checkpoint, and the rungs are refilled from what was reported.
"""

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Read by Ray when it is imported: a few scalars need no loggers, and trials find relative paths where the user is.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}

import ray
import torch
from ray import tune
from ray._private import utils

import altgrad
from orchestrator.plan import Plan
from orchestrator.results.journal import Journal, SweepState
from orchestrator.results.store import Store
from orchestrator.signals import Caught
from orchestrator.space import Resources
from orchestrator.sweep.checkpoints import latest_step
from orchestrator.sweep.departure import Departure
from orchestrator.sweep.observer import SweepObserver
from orchestrator.sweep.progress import Progress
from orchestrator.sweep.retries import kind_of
from orchestrator.sweep.schedulers import SCHEDULERS
from orchestrator.sweep.stopping import Asha, group_of
from orchestrator.sweep.tracking import choose_mode
from orchestrator.sweep.trial import run_pack

_OBJECT_STORE_BYTES = 128 * 1024 * 1024
#: How long a cluster's address may take to answer.
_ANSWER_SECONDS = 10


class SurroundingsError(RuntimeError):
    """What a sweep needs around it is not there: Ray, room for a trial, a sound environment."""


class DiskFullError(SurroundingsError):
    """There is no room left where the run is kept."""


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


def run_sweep(plan: Plan, store: Store, progress: Progress, caught: Caught, address: str | None = None) -> SweepOutcome:
    """Run every unfinished pack of a planned sweep.

    Args:
        plan: what ``plan.json`` in the store holds.
        store: the run's folder, reachable from every worker.
        progress: hears of everything that happens.
        caught: knows of the signal that ends it.
        address: of a running Ray cluster; None starts Ray on this machine for as long as the sweep runs.

    Returns:
        What ended it, and what failed. Everything else is in the journal and the chunks.

    Raises:
        SurroundingsError: Ray cannot be started or reached, no trial fits on this machine, there is no room left
            where the run is kept, or the environment asks for a W&B mode that there is not.
    """
    wandb = _wandb_mode(plan.spec.wandb.mode)
    journal = Journal(store)
    records = journal.read()
    state = SweepState.from_records(plan.to_dict(), records)
    observer = SweepObserver(state, journal, progress, plan.spec.max_failures, plan.spec.max_consecutive_failures)
    departure = Departure(store, caught, observer, progress)
    with _room(store, observer):
        journal.append({"event": "sweep_started", "command": sys.argv, **_where(), "versions": _versions()})
        progress.say("starting Ray")
        with _ray(address, plan.spec.resources, caught):
            progress.say("placing the first trials")
            asha = _refilled(plan, store, state, records)
            tuner = _tuner(plan, store, state.unfinished, asha, observer, departure, wandb)
            with departure.answered():
                tuner.fit()
            progress.say("letting Ray go")
        journal.append({"event": "sweep_ended", "reason": _why_it_ended(observer, caught)})
    fatal = observer.fatal.message if observer.fatal else None
    return SweepOutcome(_interrupted(observer, caught), observer.failed, fatal, observer.damaged)


def _interrupted(observer: SweepObserver, caught: Caught) -> bool:
    # SIGUSR1 is Tune's own: `fit` returns as if nothing had happened, with packs that have neither ended nor failed.
    return caught.signal is not None or (bool(observer.unfinished) and observer.fatal is None)


def _why_it_ended(observer: SweepObserver, caught: Caught) -> str:
    if _interrupted(observer, caught):
        return (caught.signal or signal.SIGINT).name
    if observer.fatal is None:
        return "finished"
    return "disk_full" if observer.fatal.kind == "disk_full" else "failures"


@contextmanager
def _room(store: Store, observer: SweepObserver) -> Iterator[None]:
    """Say it where the disk of the run is full, whoever came upon it first: a worker, the journal, or Tune.

    Raises:
        DiskFullError: it is.
    """
    full = "no space is left for {}: make room there; nothing that was written is lost"
    try:
        yield
    except (OSError, ray.exceptions.RayError, tune.TuneError) as error:
        for each in _causes(error):
            if kind_of(each) == "disk_full":
                raise DiskFullError(full.format(getattr(each, "filename", None) or store.uri)) from error
        raise
    if observer.fatal is not None and observer.fatal.kind == "disk_full":
        raise DiskFullError(full.format(store.uri))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _tuner(
    plan: Plan,
    store: Store,
    packs: list[str],
    asha: Asha,
    observer: SweepObserver,
    departure: Departure,
    wandb: str,
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
        "threads": max(1, int(spec.resources.cpu)),
        "wandb": wandb,
        "wandb_folder": str(_wandb_folder(store, spec.name)),
    }
    resources = {"cpu": spec.resources.cpu, "gpu": spec.resources.gpu}
    return tune.Tuner(
        tune.with_resources(run_pack, resources),
        param_space={"pack": tune.grid_search(packs), **fixed},
        tune_config=tune.TuneConfig(scheduler=scheduler, reuse_actors=True, trial_dirname_creator=_folder_name),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=store.uri,
            callbacks=[observer],
            # Without limit: `RetryingScheduler` stops those that are given up.
            failure_config=tune.FailureConfig(max_failures=-1),
            verbose=0,
        ),
    )


def _refilled(plan: Plan, store: Store, state: SweepState, records: Iterable[Mapping[str, Any]]) -> Asha:
    """The rungs as the journal left them. An unfinished pack is judged again on what it will measure again."""
    rules, metric = plan.spec.early_terminate, plan.spec.metric
    packs = {pack.pack: pack for pack in plan.packs}
    controls = [pack.pack for pack in plan.packs if pack.control]
    asha = Asha(rules.min_iter, rules.eta, plan.packs[0].lanes[0].config.steps, exempt=controls)
    kept = {pack: latest_step(store, pack) for pack in state.unfinished}
    for record in records:
        pack = packs.get(str(record.get("pack")))
        value = record.get("metrics", {}).get(metric.name)
        if record["event"] != "reported" or pack is None or value is None:
            continue
        if record["step"] <= kept.get(pack.pack, record["step"]):
            signed = value if metric.goal == "minimize" else -value
            asha.record(group_of(rules.scope, pack.cell), pack.pack, record["step"], signed)
    return asha


@contextmanager
def _ray(address: str | None, resources: Resources, caught: Caught) -> Iterator[None]:
    """Ray for the length of a sweep: its own on this machine, or the cluster at an address."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    else:
        options |= {"address": address}
    try:
        if address is not None:
            _check_answers(address)
        with _sigterm_stays_ours(), caught.patience():
            ray.init(**options)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        doing = "cannot start Ray here" if address is None else f"cannot reach Ray at {address!r}"
        raise SurroundingsError(f"{doing}: {error}") from error
    caught.listen()  # Ray's native code has put its own answer in place
    # A failed pack is in the journal, with its reason; the whole traceback is in its ``error.txt``.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        if caught.signal is not None:
            raise KeyboardInterrupt
        if address is None:
            _check_room(resources)
        yield
    finally:
        ray.shutdown()


@contextmanager
def _sigterm_stays_ours() -> Iterator[None]:
    """While it starts, Ray would answer SIGTERM with an exit in the middle of whatever is done."""
    theirs = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = theirs


def _check_answers(address: str) -> None:
    """Knock at an address of the form ``host:port``: Ray itself takes minutes to find that nobody is there.

    Raises:
        OSError: nobody answers.
    """
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    if parts.scheme == "ray" and parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), _ANSWER_SECONDS).close()


def _check_room(resources: Resources) -> None:
    """A cluster may yet grow; on this machine a pack that finds no room waits for ever, and says nothing.

    Raises:
        SurroundingsError: a pack asks for more than there is.
    """
    there = ray.cluster_resources()
    for name, kind, asked in (("cpu", "CPU", resources.cpu), ("gpu", "GPU", resources.gpu)):
        if asked > there.get(kind, 0):
            raise SurroundingsError(
                f"each pack asks for {asked:g} {kind}s (resources.{name}), this machine has {there.get(kind, 0):g}"
            )


def _folder_name(trial: Any) -> str:
    return str(trial.config["pack"])


def _wandb_mode(requested: str) -> str:
    try:
        return choose_mode(requested, os.environ)
    except ValueError as error:
        raise SurroundingsError(str(error)) from error


def _wandb_folder(store: Store, name: str) -> Path:
    """The run's own folder; where that is an object store, a folder of each worker."""
    return Path(store.uri) if "://" not in store.uri else Path(tempfile.gettempdir()) / f"altgrad-{name}"


def _where() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _versions() -> dict[str, str]:
    return {
        "altgrad": altgrad.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "ray": ray.__version__,
    }
