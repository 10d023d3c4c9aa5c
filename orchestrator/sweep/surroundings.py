"""What a sweep needs around it: Ray, room for a pack, room on the disk; and plain words where it is not there."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray._private import utils

from orchestrator.plan import Pack
from orchestrator.preflight import PreflightError
from orchestrator.results.store import Store
from orchestrator.signals import Caught
from orchestrator.space import Resources
from orchestrator.sweep.address import check_address
from orchestrator.sweep.observer import SweepObserver
from orchestrator.sweep.placement import settled
from orchestrator.sweep.retries import kind_of
from orchestrator.sweep.tracking import choose_mode

_OBJECT_STORE_BYTES = 128 * 1024 * 1024
#: Where Ray unpacks the folder that was sent with a job; it is deleted when the job lets go of Ray.
_SENT_ALONG = "/runtime_resources/working_dir_files/"


class SurroundingsError(RuntimeError):
    """What a sweep needs around it is not there: Ray, room for a trial, a sound environment."""


class DiskFullError(SurroundingsError):
    """There is no room left where the run is kept."""


def wandb_mode(requested: str) -> str:
    """The W&B mode of this sweep.

    Raises:
        SurroundingsError: the environment asks for one that there is not.
    """
    try:
        return choose_mode(requested, os.environ)
    except ValueError as error:
        raise SurroundingsError(str(error)) from error


def leave_the_jobs_folder(store: Store) -> None:
    """Stand where the end of a Ray job deletes nothing.

    Raises:
        SurroundingsError: the run itself would be kept there.
    """
    if _SENT_ALONG in store.uri:
        raise SurroundingsError(
            f"{store.uri} is in the folder that was sent with the job, which Ray deletes at its end: "
            "give --storage in full"
        )
    if _SENT_ALONG in os.getcwd():
        os.chdir("/")  # Everything is named in full by now, and the folder may go before the results are read.


@contextmanager
def ray_here(address: str | None, caught: Caught) -> Iterator[None]:
    """Ray for the length of a sweep: its own on this machine, or the cluster at an address.

    Raises:
        SurroundingsError: it cannot be started or reached.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    else:
        options |= {"address": address}
    try:
        if address is not None:
            check_address(address)
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


def room_for(packs: Iterable[Pack], asked: Resources, vocabulary: int, address: str | None) -> Resources:
    """What each pack gets, as numbers, Ray being there.

    Raises:
        SurroundingsError: a pack cannot have it.
    """
    try:
        resources = settled(asked, packs, vocabulary, address is not None)
    except PreflightError as error:
        raise SurroundingsError(str(error)) from error
    if address is None:
        _check_room(resources)
    return resources


def _check_room(resources: Resources) -> None:
    """A cluster may yet grow; on this machine a pack that finds no room waits for ever, and says nothing."""
    there = ray.cluster_resources()
    for name, kind, asked in (("cpu", "CPU", resources.cpu), ("gpu", "GPU", resources.gpu)):
        if asked > there.get(kind, 0):
            raise SurroundingsError(
                f"each pack asks for {asked:g} {kind}s (resources.{name}), this machine has {there.get(kind, 0):g}"
            )


@contextmanager
def room_on_disk(store: Store, observer: SweepObserver) -> Iterator[None]:
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
