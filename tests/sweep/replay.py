"""Made-up sweeps, played through the real rules without training and without Ray."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import TrialScheduler
from small_plan import CORPUS, SPACE

from altgrad.training.config import RunConfig
from orchestrator.plan import Pack, Plan, Trial
from orchestrator.space import SweepSpec, load_space
from orchestrator.sweep.pack_rules import PackRules
from orchestrator.sweep.rungs import empty_rungs, refilled
from orchestrator.sweep.schedulers import AshaScheduler
from orchestrator.sweep.stopping import Asha, Decision, LanePolicy, LaneReport, LaneWatch, RankCheck, RankWarning

STEPS = 200
POLICY = LanePolicy(rank_collapse_patience=2, stall_limit=0.9999, stall_patience=3)
WARNED = (RankWarning("h.0.attn.c_proj", 5.0, 10.0, 0.3, "half of its rank is lost"),)
NOT_FINITE = (math.nan, math.inf, -math.inf)
#: Intervals between reports. Rungs lie at 10, 10 eta, 10 eta^2, ...: some reports fall on them, some skip several.
INTERVALS = (5, 10, 15, 40)
RATES, SEEDS = (0.001, 0.01, 0.1), (1, 2)


@dataclass
class MadePack:
    """A pack, and what each of its lanes would measure if nothing ended it."""

    pack: Pack
    lanes: dict[str, RunConfig]
    steps: list[int]
    #: By lane, one for each step.
    histories: dict[str, list[LaneReport]]
    #: What it tells the driver at each report; filled in by `play`.
    told: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class MadeSweep:
    """Packs of several cells under one set of rules."""

    plan: Plan
    #: What the rules inside a pack read of the plan.
    plain: dict[str, Any]
    packs: dict[str, MadePack]

    @property
    def groups(self) -> dict[str, str]:
        scope = self.plan.spec.early_terminate.scope
        return {name: made.pack.cell if scope == "cell" else "sweep" for name, made in self.packs.items()}


def made_sweep(folder: Path, rng: np.random.Generator, cells: int, packs: int, **rules: Any) -> MadeSweep:
    """``cells`` with ``packs`` each; the first pack of each cell is a control. ``rules`` are of ``early_terminate``."""
    goal = rules.pop("goal", "minimize")
    changes = {
        "early_terminate": {"type": "asha", "min_iter": 10, **rules},
        "metric": {"name": "val_loss", "goal": goal},
    }
    file = folder / "made.yaml"
    file.write_text(json.dumps({**SPACE, **changes}), encoding="utf-8")
    spec = load_space(file, [])
    made = [_made_pack(spec, rng, f"cell{cell}", i) for cell in range(cells) for i in range(packs)]
    plan = Plan(spec, dict(CORPUS), tuple(each.pack for each in made), ())
    plain = {"space": spec.to_dict(), "roles": spec.roles, "metric": spec.to_dict()["metric"]}
    return MadeSweep(plan, plain, {each.pack.pack: each for each in made})


def _made_pack(spec: SweepSpec, rng: np.random.Generator, cell: str, i: int) -> MadePack:
    name = f"{cell}-p{i:03d}"
    interval = int(rng.choice(INTERVALS))
    rates = RATES[: rng.integers(1, len(RATES) + 1)]
    lanes = {f"{name}-{rate}-{seed}": RunConfig(lr=rate, seed=seed, steps=STEPS) for rate in rates for seed in SEEDS}
    steps = [*range(interval, STEPS, interval), STEPS]
    sign = 1.0 if spec.metric.goal == "minimize" else -1.0
    histories = {key: list(_history(rng, steps, sign)) for key in lanes}
    pack = Pack(name, cell, {}, {}, i == 0, None, tuple(Trial(key, config) for key, config in lanes.items()))
    return MadePack(pack, lanes, steps, histories)


def _history(rng: np.random.Generator, steps: list[int], sign: float) -> Iterator[LaneReport]:
    """A run that learns, or one that goes wrong in one way; the worst look best before they are lost."""
    way = rng.choice(["well", "diverges", "collapses", "stalls", "flickers"], p=[0.6, 0.12, 0.1, 0.1, 0.08])
    wrong_from, quality = int(rng.choice(steps)), rng.uniform(1, 3)
    for step in steps:
        value = sign * (quality + 3 * math.exp(-step / 40) + 0.05 * rng.normal())
        wrong = way != "well" and step >= wrong_from
        if way != "well" and not wrong:
            value -= sign * 2
        loss = val_loss = value
        if wrong and way == "diverges":
            loss, val_loss = rng.permutation([float(rng.choice(NOT_FINITE)), value]).tolist()
        on = wrong and (way != "flickers" or rng.random() < 0.6)
        checks = tuple(
            RankCheck(step, WARNED if on and way in ("collapses", "flickers") else ())
            for _ in range(rng.integers(0, 3))
        )
        stall = 1.0 if on and way in ("stalls", "flickers") else float(rng.uniform(0, 0.9999))
        yield LaneReport(step, loss, val_loss, None if way == "well" and step % 2 else stall, checks)


def play(sweep: MadeSweep, made: MadePack, interrupted_after: int | None = None, checkpoint: int = -1) -> list[dict]:
    """What a pack tells the driver at each report, if the driver never stops it.

    Args:
        sweep: the sweep it is of.
        made: the pack.
        interrupted_after: report after which it is cut off, to go on from its checkpoint; None where it is not.
        checkpoint: report that the checkpoint was taken after; -1 begins again.
    """
    watches = {key: LaneWatch(POLICY) for key in made.lanes}
    told, ended, done = [], [], 0
    kept = json.dumps([{key: watch.state() for key, watch in watches.items()}, ended, done])
    rules = _rules(sweep, made, done, ended)
    i = 0
    while i < len(made.steps) and watches:
        step = made.steps[i]
        reports = {key: made.histories[key][i] for key in watches}
        lost = {key: watch.observe(reports[key]) for key, watch in watches.items()}
        decisions = rules.decide(step, lost, {key: report.val_loss for key, report in reports.items()})
        ended = [*ended, *([key, d.reason, d.step, d.audited] for key, d in decisions.items())]
        watches = {key: watch for key, watch in watches.items() if key not in decisions or decisions[key].audited}
        mean = rules.mean({key: reports[key].val_loss for key in watches})
        told = [
            *told[:i],
            {"step": step, "alive": [*watches], "ended": ended}
            | ({"lost": True} if mean is None else {"val_loss": mean}),
        ]
        if i == checkpoint:
            kept = json.dumps([{key: watch.state() for key, watch in watches.items()}, ended, step])
        if i == interrupted_after:
            interrupted_after, states, ended, done = None, *json.loads(kept)
            watches = {key: LaneWatch.from_state(POLICY, state) for key, state in states.items()}
            rules = _rules(sweep, made, done, ended)
            i = checkpoint
        i += 1
    return told


def _rules(sweep: MadeSweep, made: MadePack, done: int, ended: list) -> PackRules:
    pack = {"pack": made.pack.pack, "control": made.pack.control}
    return PackRules(sweep.plain, pack, made.lanes, done, [key for key, _, _, audited in ended if audited])


class Driver:
    """The scheduler, what it told, and the journal of one driver's life; a later life begins with the journal."""

    def __init__(self, sweep: MadeSweep, journal: list[dict[str, Any]] | None = None) -> None:
        plan, rules = sweep.plan, sweep.plan.spec.early_terminate
        self.sweep = sweep
        self.journal = list(journal or ())
        #: What was decided on each pack, with the position in the journal of the report it was decided on.
        self.decisions: dict[str, tuple[int, Decision]] = {}
        asha: Asha = refilled(plan, self.journal) if journal is not None else empty_rungs(plan)
        cells = {name: made.pack.cell for name, made in sweep.packs.items()}
        self.scheduler = AshaScheduler(asha, "val_loss", plan.spec.metric.goal[:3], rules.scope, cells, self._hear)

    def _hear(self, pack: str, decision: Decision) -> None:
        assert pack not in self.decisions
        self.decisions[pack] = len(self.journal), decision

    def deliver(self, pack: str, result: Mapping[str, Any]) -> bool:
        """A report arrives; whether the pack is to go on."""
        trial = SimpleNamespace(config={"pack": pack})
        answer = self.scheduler.on_trial_result(None, trial, result)
        metrics = {name: result[name] for name in ("val_loss", "lost") if name in result}
        self.journal.append({"event": "reported", "pack": pack, "step": result["step"], "metrics": metrics})
        return answer == TrialScheduler.CONTINUE


def arrivals(driver: Driver, rng: np.random.Generator, workers: int, retried: float = 0.0) -> list[tuple[str, dict]]:
    """Run a whole sweep: packs start in the plan's order as workers fall free, and report in any order.

    Returns:
        Pack and result of each report, as they arrived.
    """
    waiting, running, arrived = list(driver.sweep.packs), {}, []
    while waiting or running:
        while waiting and len(running) < workers:
            running[waiting.pop(0)] = 0
        pack = str(rng.choice(list(running)))
        told, i = driver.sweep.packs[pack].told, running[pack]
        result = told[i]
        if rng.random() < retried:
            # Its worker is lost after this report: it begins again somewhere before, and a GPU may measure differently.
            i = int(rng.integers(-1, i + 1))
            if "val_loss" in result:
                result = {**result, "val_loss": result["val_loss"] + 0.1 * rng.normal()}
        arrived.append((pack, result))
        running[pack] = i + 1
        if not driver.deliver(pack, result) or i + 1 == len(told):
            del running[pack]
    return arrived
