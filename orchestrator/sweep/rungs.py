"""A sweep's packs on the rungs of ASHA: how reports reach it, from Ray or from the journal."""

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.plan import Plan
from orchestrator.sweep.stopping import Asha, Decision, group_of


def empty_rungs(plan: Plan) -> Asha:
    """The rungs of a sweep before its first report."""
    rules = plan.spec.early_terminate
    controls = [pack.pack for pack in plan.packs if pack.control]
    return Asha(rules.min_iter, rules.eta, plan.packs[0].lanes[0].config.steps, controls, rules.audit)


def refilled(plan: Plan, records: Iterable[Mapping[str, Any]]) -> Asha:
    """The rungs as the journal's reports left them, in the order in which they arrived.

    Every decision is made again, so a pack whose stop was not carried out is stopped where it would have been, and one
    that measures again what it already reported is not judged again.
    """
    asha, metric = empty_rungs(plan), plan.spec.metric
    groups = {pack.pack: group_of(plan.spec.early_terminate.scope, pack.cell) for pack in plan.packs}
    for record in records:
        if record["event"] == "reported" and record["pack"] in groups:
            pack, metrics = record["pack"], record.get("metrics", {})
            judge(asha, groups[pack], pack, record["step"], metrics, metric.name, metric.goal[:3])
    return asha


def judge(
    asha: Asha, group: str, pack: str, step: int, metrics: Mapping[str, Any], metric: str, mode: str
) -> Decision | None:
    """What a pack's report means for it.

    Args:
        asha: the rungs.
        group: where the pack competes.
        pack: its id.
        step: steps done.
        metrics: the numbers it reported; ``lost`` where no lane of it lives that counts. One that trains again reports
            neither that nor the metric, and is not judged again.
        metric: the one to judge by.
        mode: ``min`` or ``max``; in the decisions of a ``max`` sweep the metric appears negated.
    """
    if metrics.get("lost"):
        asha.lose(pack)
    if metric not in metrics:
        return None
    value = metrics[metric]
    sign = 1.0 if mode == "min" else -1.0
    return asha.decide(group, pack, step, None if value is None else sign * float(value))
