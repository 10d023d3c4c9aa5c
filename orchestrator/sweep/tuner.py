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
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
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
}

import ray
import torch
from ray import tune

import altgrad
from orchestrator.plan import Plan
from orchestrator.results.journal import Journal, SweepState
from orchestrator.results.store import Store
from orchestrator.space import Resources
from orchestrator.sweep.checkpoints import latest_step
from orchestrator.sweep.observer import SweepObserver
from orchestrator.sweep.progress import Progress
from orchestrator.sweep.schedulers import SCHEDULERS
from orchestrator.sweep.stopping import Asha, group_of
from orchestrator.sweep.tracking import choose_mode
from orchestrator.sweep.trial import run_pack

_OBJECT_STORE_BYTES = 128 * 1024 * 1024
#: How long a cluster's address may take to answer.
_ANSWER_SECONDS = 10


class SurroundingsError(RuntimeError):
    """What a sweep needs around it is not there: Ray, room for a trial, a sound environment."""


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep's run ended."""

    #: The signal that ended it early; None where it ran to its end.
    signal: signal.Signals | None
    #: The last error of every pack that failed for good.
    failed: dict[str, str]


def run_sweep(
    plan: Plan, store: Store, progress: Progress, address: str | None = None, again: Collection[str] = ()
) -> SweepOutcome:
    """Run every unfinished pack of a planned sweep.

    Args:
        plan: what ``plan.json`` in the store holds.
        store: the run's folder, reachable from every worker.
        progress: hears of everything that happens.
        address: of a running Ray cluster; None starts Ray on this machine for as long as the sweep runs.
        again: finished packs to train once more, because rows of theirs are lost.

    Returns:
        What ended it, and what failed. Everything else is in the journal and the chunks.

    Raises:
        SurroundingsError: Ray cannot be started or reached, no trial fits on this machine, or the environment asks
            for a W&B mode that there is not.
    """
    wandb = _wandb_mode(plan.spec.wandb.mode)
    journal = Journal(store)
    records = journal.read()
    state = SweepState.from_records(plan.to_dict(), records)
    journal.append({"event": "sweep_started", "command": sys.argv, **_where(), "versions": _versions()})
    packs = [pack.pack for pack in plan.packs if pack.pack in {*state.unfinished, *again}]
    observer = SweepObserver(state, journal, progress, [pack for pack in packs if pack not in state.unfinished])
    progress.say("starting Ray")
    ended_by = None
    with _ray(address, plan.spec.resources), _signals() as caught:
        progress.say("placing the first trials")
        tuner = _tuner(plan, store, packs, _refilled(plan, store, state, records), observer, wandb)
        tuner.fit()
        progress.say("letting Ray go")
        # After Ctrl-C `fit` returns as if nothing had happened, with packs that have neither ended nor failed.
        ended_by = caught.signal or (signal.SIGINT if observer.unfinished else None)
    journal.append({"event": "sweep_ended", "reason": ended_by.name if ended_by else "finished"})
    return SweepOutcome(ended_by, observer.failed)


def _tuner(plan: Plan, store: Store, packs: list[str], asha: Asha, observer: SweepObserver, wandb: str) -> tune.Tuner:
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
            failure_config=tune.FailureConfig(max_failures=spec.max_failures),
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
def _ray(address: str | None, resources: Resources) -> Iterator[None]:
    """Ray for the length of a sweep: its own on this machine, or the cluster at an address."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    else:
        options |= {"address": address}
    try:
        if address is not None:
            _check_answers(address)
        ray.init(**options)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        doing = "cannot start Ray here" if address is None else f"cannot reach Ray at {address!r}"
        raise SurroundingsError(f"{doing}: {error}") from error
    # A failed pack is in the journal, with its reason; the whole traceback is in its ``error.txt``.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        if address is None:
            _check_room(resources)
        yield
    finally:
        ray.shutdown()


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


class _Caught:
    """The signal that asked the sweep to end, if one did."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextmanager
def _signals() -> Iterator[_Caught]:
    """SIGTERM ends a sweep as the first Ctrl-C does: Tune lets trials go and the journal is closed."""
    caught = _Caught()

    def ask_to_end(number: int, frame: types.FrameType | None) -> None:
        caught.signal = signal.Signals(number)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, ask_to_end)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGTERM, before)


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
