"""The folder of one sweep: made once, recognised afterwards."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from altgrad.training.config import RunConfig
from orchestrator.plan import Plan, make_plan
from orchestrator.results.journal import PLAN_PATH, Journal, SweepState, load_plan
from orchestrator.results.plan_shape import check_shape
from orchestrator.results.runs import SPACE_PATH, find_run
from orchestrator.results.store import Store, validate_name
from orchestrator.space import SweepSpec, dump_yaml
from orchestrator.widening import NotWiderError, Widened, widen

#: Plans that a wider one took the place of, numbered from 1.
PREVIOUS = "plan-{}.json"


class RunFolderError(ValueError):
    """A folder that does not hold the sweep that was asked for."""


class DamagedRunError(ValueError):
    """A run's folder whose plan cannot be understood."""


def open_run(where: str, runs: str = "runs") -> Store:
    """The store of a sweep that exists: a path or URI of its folder, or its name under ``runs``.

    Raises:
        RunFolderError: there is none.
        DamagedRunError: its plan cannot be understood.
    """
    try:
        store = find_run(where, runs)
    except (FileNotFoundError, ValueError) as error:
        raise RunFolderError(str(error)) from error
    _held(store)
    return store


def read_plan(store: Store) -> Plan:
    """The plan in a run's folder.

    Raises:
        DamagedRunError: it cannot be understood.
    """
    held = _held(store)
    with _plan_trouble(store):
        return Plan.from_dict(held)


def _held(store: Store) -> dict[str, Any]:
    """The plan as plain data: enough to read results, also those of a version with other fields."""
    with _plan_trouble(store):
        held = load_plan(store)
        check_shape(held)
        return held


@contextmanager
def _plan_trouble(store: Store) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise DamagedRunError(f"{store.uri}: {PLAN_PATH} cannot be understood: {why}") from error


def run_store(name: str, runs: str) -> Store:
    """Where a sweep of this name lives.

    Raises:
        RunFolderError: the name would lead out of the folder.
    """
    try:
        return Store.open(runs).sub(validate_name(name))
    except ValueError as error:
        raise RunFolderError(str(error)) from error


def plan_sweep(spec: SweepSpec) -> Plan:
    """Read the corpus and lay out the trials, with everything checked that can be without training.

    Raises:
        CorpusError: the corpus is missing or too short for a block.
        ConfigError: a layer rule matches no matrix.
    """
    from altgrad.training.corpus import check_length
    from altgrad.training.layers import layer_formats
    from orchestrator.corpus import corpus_of

    # None of these can be a parameter: all trials of a sweep train on one text.
    text = RunConfig.from_dict({key: spec.run[key] for key in ("corpus", "tokens", "text_column") if key in spec.run})
    corpus = corpus_of(text)
    named = text.corpus if text.corpus == "stdlib" else str(Path(text.corpus).expanduser().absolute())
    facts = {"corpus": named, "hash": corpus.hash, "tokens": corpus.tokens, "vocabulary": corpus.vocabulary}
    plan = make_plan(spec, facts)
    for config in (lane.config for pack in plan.packs for lane in pack.lanes):
        check_length(corpus, config.model.block_size)
        layer_formats(config)
    return plan


class Claim(NamedTuple):
    """A folder that is the sweep's own."""

    #: What is run: the folder's plan, which may be laid out otherwise than the one that was asked for.
    plan: Plan
    #: Where it stands.
    state: SweepState
    #: How the plan that the folder held was taken further; None where it was not.
    widened: Widened | None = None


#: Looks at what is about to be run before anything is written, and refuses it by raising.
Check = Callable[[Plan, SweepState], None]


def claim(plan: Plan, store: Store, check: Check = lambda plan, state: None) -> Claim:
    """Make the folder the sweep's own, or find that it is already; a wider space takes its plan further.

    Raises:
        RunFolderError: it holds another sweep, or another process is running this one.
        DamagedRunError: the plan it holds cannot be understood.
    """
    widened, is_new = None, not store.exists(PLAN_PATH)
    if not is_new:
        held = read_plan(store)
        if held.spec_hash == plan.spec_hash:
            plan = held
        else:
            widened = _widened(held, plan, store)
            plan = widened.plan
    state = SweepState.from_records(plan.to_dict(), Journal(store).read())
    if state.driver is not None and state.driver.drives(store):
        raise RunFolderError(f"{store.uri} is being run by process {state.driver.pid} of this machine")
    check(plan, state)
    if is_new:
        _write_plan(plan, store)
    elif widened is not None:
        _take_further(widened, store)
    return Claim(plan, state, widened)


def _widened(held: Plan, plan: Plan, store: Store) -> Widened:
    try:
        return widen(held, plan)
    except NotWiderError as error:
        raise RunFolderError(
            f"{store.uri} already holds another sweep: {error}. A sweep can be widened, but keeps what it has: put "
            f"that back, give this one another --name, or go on with that one as it is (altgrad resume {store.uri})"
        ) from error


def _take_further(widened: Widened, store: Store) -> None:
    """Replace the plan and keep the one before; safe to be cut off anywhere, and to be done again."""
    number, before = 1, store.read_bytes(PLAN_PATH)
    while store.exists(PREVIOUS.format(number)) and store.read_bytes(PREVIOUS.format(number)) != before:
        number += 1
    store.write_bytes(PREVIOUS.format(number), before)
    _write_plan(widened.plan, store)
    record = {"trials": widened.trials, "packs": [pack.pack for pack in widened.packs], "known": widened.known}
    Journal(store).append({"event": "plan_changed", **record, "rules": list(widened.rules)})


def _write_plan(plan: Plan, store: Store) -> None:
    store.write_bytes(SPACE_PATH, dump_yaml(plan.spec.to_dict()).encode())
    store.write_bytes(PLAN_PATH, json.dumps(plan.to_dict(), indent=1).encode())
