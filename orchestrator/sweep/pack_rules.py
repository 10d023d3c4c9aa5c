"""Which lanes of a pack end at a report: the lost, and the worse settings at a rung; and which of them are audited."""

import dataclasses
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from altgrad.training.config import RunConfig
from orchestrator.sweep.halving import Halving
from orchestrator.sweep.stopping import Decision, is_audited


class PackRules:
    """Every decision on the lanes of one pack.

    An audited lane runs on after its end was decided. From then on it counts as ended: it is in no mean, takes part in
    no halving, and only diverging ends it. All replicates of a setting are audited, or none: a mean of some of them
    would tell nothing. Controls are never audited, for others are held against what is left of them.
    """

    #: The pack is held against others.
    judged = True

    def __init__(
        self,
        plan: Mapping[str, Any],
        pack: Mapping[str, Any],
        lanes: Mapping[str, RunConfig],
        done: int,
        audited: Iterable[str],
    ) -> None:
        """Nothing is decided before the step after ``done``.

        Args:
            plan: plain data of the plan.
            pack: plain data of this pack.
            lanes: every lane's config by key.
            done: steps done by the checkpoint that is resumed, 0 at the start.
            audited: keys of the lanes that were audited by then.
        """
        self._halving = Halving(plan, pack, lanes, done)
        self._steps = next(iter(lanes.values())).steps
        self._share = 0.0 if pack["control"] else plan["space"]["early_terminate"]["audit"]
        self._units = {key: audit_unit(pack["pack"], setting) for key, setting in self._halving.settings.items()}
        self._audited = set(audited)

    def decide(
        self, step: int, lost: Mapping[str, Decision | None], values: Mapping[str, float]
    ) -> dict[str, Decision]:
        """The lanes that end, or would but for the audit, by key. At the last step only those that diverged do.

        Args:
            step: steps done.
            lost: of every lane that runs, the decision on its own history.
            values: the metric of the same lanes.
        """
        last = step >= self._steps
        found = {
            key: decision
            for key, decision in lost.items()
            if decision and (decision.reason == "diverged" or not (last or key in self._audited))
        }
        if not last:
            found |= self._halving.drop(step, self.counted({k: v for k, v in values.items() if k not in found}))
        decisions = {key: self._marked(key, decision) for key, decision in found.items()}
        self._audited |= {key for key, decision in decisions.items() if decision.audited}
        return decisions

    def counted(self, values: Mapping[str, float]) -> dict[str, float]:
        """What is left of the lanes' values without the audited."""
        return {key: value for key, value in values.items() if key not in self._audited}

    def mean(self, values: Mapping[str, float]) -> float | None:
        """What the pack is judged on: the mean over its living lanes; None where none of them counts."""
        counted = self.counted(values)
        return fmean(counted.values()) if counted else None

    def _marked(self, key: str, decision: Decision) -> Decision:
        audited = decision.reason != "diverged" and is_audited(self._units[key], self._share)
        return dataclasses.replace(decision, audited=audited)


def audit_unit(pack: str, setting: str) -> str:
    """What is audited as one: the lanes of a setting; a pack with one setting has the pack's own name."""
    return f"{pack} {setting}".strip()
