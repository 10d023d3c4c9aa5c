"""What a sweep that is taken up again finds in its folder, in words."""

import json
from collections.abc import Iterator, Sequence

from orchestrator.results.journal import SweepState
from orchestrator.results.store import Store
from orchestrator.sweep.checkpoint_folders import latest_step

#: More packs than this are told by the span of their steps.
_MOST_STEPS = 8


def found(store: Store, state: SweepState) -> Iterator[str]:
    """Where the sweep stands and what goes on from where, a line each; none for a sweep that has not begun."""
    if not state.attempts:
        return
    ended = sum(lane.status == "finished" for lane in state.lanes.values())
    steps = [latest_step(store, pack) for pack in state.unfinished]
    goes_on = [step for step in steps if step]
    words = [f"{ended} of {len(state.lanes)} trials ended"]
    words += [f"{_packs(len(goes_on), 'goes', 'go')} on from {_listed(goes_on)}"] if goes_on else []
    words += [_packs(steps.count(0), "starts", "start")] if 0 in steps else []
    yield ", ".join(words)
    failed = {lane.pack for lane in state.lanes.values() if lane.status == "failed"}
    if failed:
        yield f"{len(failed)} of these packs had failed and {'gets' if len(failed) == 1 else 'get'} another chance"
    yield f"Ray's own state is {tune_state(store)}; it is not used"


def tune_state(store: Store) -> str:
    """Whether Tune's newest state is JSON: ``whole``, ``missing``, or ``damaged`` and where. Nothing is unpickled."""
    names = [path for path in store.list("ray") if path.startswith("ray/experiment_state-") and path.endswith(".json")]
    if not names:
        return "missing"
    # The names end in the time.
    try:
        json.loads(store.read_bytes(max(names)))
    except (ValueError, OSError):
        return f"damaged ({max(names)})"
    return "whole"


def _packs(count: int, does: str, do: str) -> str:
    return f"1 pack {does}" if count == 1 else f"{count} packs {do}"


def _listed(steps: Sequence[int]) -> str:
    if len(steps) == 1:
        return f"step {steps[0]}"
    if len(steps) > _MOST_STEPS:
        return f"steps {min(steps)} to {max(steps)}"
    *others, last = map(str, steps)
    return f"steps {', '.join(others)} and {last}"
