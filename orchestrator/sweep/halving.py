"""Successive halving among the nuisance settings that train side by side in one pack.

They stand at the same step, so the halving is synchronous and exact, and the lanes it drops really leave the program.
"""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from altgrad.training.config import RunConfig
from orchestrator.space.spec import flatten
from orchestrator.sweep.stopping import Decision, halve, rung_steps


class Halving:
    """The rungs of one pack; a pack whose lanes differ in replicates alone has nothing to halve."""

    def __init__(
        self, plan: Mapping[str, Any], pack: Mapping[str, Any], lanes: Mapping[str, RunConfig], done: int
    ) -> None:
        """Nothing is decided before the step after ``done``; a control is never halved.

        Args:
            plan: plain data of the plan.
            pack: plain data of this pack.
            lanes: every lane's config by key.
            done: steps done by the checkpoint that is resumed, 0 at the start.
        """
        rules = plan["space"]["early_terminate"]
        steps = next(iter(lanes.values())).steps
        halved = rules["type"] == "asha" and not pack["control"]
        self._rungs = rung_steps(rules["min_iter"], rules["eta"], steps) if halved else ()
        self._eta, self._metric = rules["eta"], plan["metric"]
        #: The setting of each lane.
        self.settings = {key: nuisance_setting(plan, config) for key, config in lanes.items()}
        self._last_step = done

    def drop(self, step: int, values: Mapping[str, float]) -> dict[str, Decision]:
        """The lanes of the worse settings, where a rung was crossed since the last report.

        Args:
            step: steps done.
            values: the metric of every living lane; a setting is judged on the mean of its own.
        """
        crossed = [rung for rung in self._rungs if self._last_step < rung <= step]
        self._last_step = step
        sign = 1.0 if self._metric["goal"] == "minimize" else -1.0
        lanes: dict[str, list[str]] = {}
        for key in values:
            lanes.setdefault(self.settings[key], []).append(key)
        if not crossed or len(lanes) < 2:
            return {}
        means = {setting: sign * fmean(values[key] for key in keys) for setting, keys in lanes.items()}
        kept, dropped = halve(means, self._eta)
        cutoff = means[kept[-1]]
        bar = f"the last of the {len(kept)} settings that go on has" if len(kept) > 1 else f"{kept[0]} goes on with"
        decisions: dict[str, Decision] = {}
        for setting in dropped:
            message = (
                f"{setting} has {self._metric['name']} {sign * means[setting]:.6g} at step {step}; "
                f"{bar} {sign * cutoff:.6g}"
            )
            decision = Decision("asha", step, sign * means[setting], sign * cutoff, None, message)
            decisions |= dict.fromkeys(lanes[setting], decision)
        return decisions


def nuisance_setting(plan: Mapping[str, Any], config: RunConfig) -> str:
    """What tells a lane from the others of its pack, replicates apart; empty where nothing does."""
    names = [name for name in plan["space"]["lanes"] if plan["roles"][name] == "nuisance"]
    fields = flatten(config.to_dict())
    return " ".join(f"{name}={fields[name]}" for name in names)
