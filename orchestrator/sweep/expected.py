"""What stopping is expected to save, before a sweep: the rules themselves, on made-up results."""

import random
from statistics import fmean

from orchestrator.plan import Pack, Plan
from orchestrator.sweep.halving import nuisance_setting
from orchestrator.sweep.pack_rules import audit_unit
from orchestrator.sweep.rungs import empty_rungs
from orchestrator.sweep.stopping import Asha, group_of, halve, is_audited

#: Packs that are played through in all; more change the answer by less than it is worth.
_PACKS_PLAYED = 10_000


def expected_savings(plan: Plan) -> float:
    """The share of all steps that ``asha`` is expected to save among packs and among the settings inside them.

    Every setting draws one value that it keeps over all rungs, so that results rank at random, and packs run one after
    the other in the plan's order. Trials that diverge, collapse or stall would save more. The same plan gives the same
    share.
    """
    if plan.spec.early_terminate.type != "asha":
        return 0.0
    plain = plan.to_dict()
    settings = {lane.key: nuisance_setting(plain, lane.config) for pack in plan.packs for lane in pack.lanes}
    uniform = random.Random(0).random
    rounds = max(1, min(200, _PACKS_PLAYED // len(plan.packs)))
    saved = 0
    for _ in range(rounds):
        asha = empty_rungs(plan)
        for pack in plan.packs:
            values = {settings[lane.key]: uniform() for lane in pack.lanes}
            saved += _saved(plan, pack, asha, values, [settings[lane.key] for lane in pack.lanes])
    return saved / rounds / sum(lane.config.steps for pack in plan.packs for lane in pack.lanes)


def _saved(plan: Plan, pack: Pack, asha: Asha, values: dict[str, float], lanes: list[str]) -> int:
    """Steps that a pack is spared.

    Args:
        plan: the whole plan.
        pack: one of its packs.
        asha: the packs before it.
        values: what each of the pack's settings measures.
        lanes: the setting of each lane.
    """
    rules, config = plan.spec.early_terminate, pack.lanes[0].config
    group = group_of(rules.scope, pack.cell)
    running, counted = list(lanes), dict(values)
    saved = 0
    for rung in asha.rungs:
        # A rung is reached with the first report at or beyond it.
        step = -(-rung // config.report_interval) * config.report_interval
        if step >= config.steps:
            break
        if not pack.control:
            dropped = halve(counted, rules.eta)[1]
            counted = {setting: value for setting, value in counted.items() if setting not in dropped}
            ended = {setting for setting in dropped if not is_audited(audit_unit(pack.pack, setting), rules.audit)}
            saved += (config.steps - step) * sum(setting in ended for setting in running)
            running = [setting for setting in running if setting not in ended]
        decision = asha.decide(group, pack.pack, step, fmean(counted[s] for s in running if s in counted))
        if decision is not None and not decision.audited:
            return saved + (config.steps - step) * len(running)
    return saved
