"""A finished pack that trains again because rows of it are lost: what was decided once stays decided."""

from collections.abc import Mapping, Sequence
from typing import cast

from orchestrator.results.journal import LaneState
from orchestrator.sweep.stopping import Decision, Reason


class DecidedBefore:
    """How the lanes of a finished pack ended. By now others have gone on, and would be decided on differently."""

    def __init__(self, lanes: Sequence[LaneState]) -> None:
        """``lanes``: what the journal says of them."""
        #: Early ends by key. A lane that diverged does so again, and by itself.
        self._ends = {
            lane.key: Decision(
                cast("Reason", lane.reason), lane.step, lane.value, lane.reference, lane.threshold, lane.message or ""
            )
            for lane in lanes
            if lane.step is not None and lane.reason in ("asha", "rank_collapse", "stalled")
        }

    def decide(
        self, step: int, lost: Mapping[str, Decision | None], values: Mapping[str, float]
    ) -> dict[str, Decision]:
        """The lanes that end at a report, as `PackRules.decide` has it."""
        diverged = {key: decision for key, decision in lost.items() if decision and decision.reason == "diverged"}
        return diverged | {key: end for key, end in self._ends.items() if key in lost and end.step == step}

    #: The pack is held against no other again.
    judged = False

    def mean(self, values: Mapping[str, float]) -> None:
        """Nothing to hold against others."""


def decided_before(lanes: Sequence[LaneState]) -> DecidedBefore | None:
    """None where a lane has not ended, and decisions are still to be made."""
    return DecidedBefore(lanes) if all(lane.status == "finished" for lane in lanes) else None
