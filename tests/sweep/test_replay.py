"""Thousands of made-up packs in any arrival order: every decision against one worked out from the whole history."""

import math
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from replay import POLICY, RATES, STEPS, Driver, MadePack, MadeSweep, arrivals, made_sweep, play

from orchestrator.sweep.stopping import LaneReport

#: Cells, packs a cell, workers, retried share of reports, and the rules.
SWEEPS: dict[str, dict[str, Any]] = {
    "one worker": {"cells": 20, "packs": 15, "workers": 1},
    "eight workers, retries": {"cells": 20, "packs": 15, "workers": 8, "retried": 0.05, "eta": 3},
    "all at once": {"cells": 20, "packs": 15, "workers": 300, "eta": 4},
    "to be maximized": {"cells": 20, "packs": 15, "workers": 8, "goal": "maximize", "retried": 0.02},
    "the whole sweep competes": {"cells": 10, "packs": 15, "workers": 16, "scope": "sweep", "retried": 0.02},
    "audited": {"cells": 20, "packs": 15, "workers": 8, "audit": 0.3, "eta": 3, "retried": 0.02},
    "all audited": {"cells": 20, "packs": 15, "workers": 8, "audit": 1.0},
}


class Replayed:
    """A sweep that was played to its end."""

    def __init__(self, name: str, folder: Path) -> None:
        options = dict(SWEEPS[name])
        self.workers, self.retried = options.pop("workers"), options.pop("retried", 0.0)
        self.rng = np.random.default_rng(list(SWEEPS).index(name))
        self.sweep: MadeSweep = made_sweep(folder, self.rng, **options)
        for made in self.sweep.packs.values():
            made.told = play(self.sweep, made)
        self.order_seed = int(self.rng.integers(2**32))
        self.driver, self.arrived = self.run()

    def run(self) -> tuple[Driver, list[tuple[str, dict]]]:
        driver = Driver(self.sweep)
        return driver, arrivals(driver, np.random.default_rng(self.order_seed), self.workers, self.retried)


@pytest.fixture(scope="module", params=SWEEPS)
def replayed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Replayed:
    return Replayed(request.param, tmp_path_factory.mktemp("replay"))


# --- packs among each other


def verdict(heard: list[dict], now: dict, stopped: dict[str, int], eta: float) -> tuple[bool, float | None]:
    """Whether the last report of a group ends its pack, and the cutoff, from all reports so far and nothing else."""
    pack, step = now["pack"], now["step"]
    rungs = [rung for rung in sorted({round(10 * eta**k) for k in range(20)}) if rung < STEPS]
    reached = max((rung for rung in rungs if rung <= step), default=None)
    repeated = any(r["step"] >= step for r in heard if r["pack"] == pack and "val_loss" in r["metrics"])
    if "lost" in now["metrics"] or pack in stopped or reached is None or repeated or step >= STEPS:
        return False, None
    lost = {r["pack"] for r in heard if "lost" in r["metrics"]}
    on_rung: dict[str, tuple[int, float]] = {}
    for record in [*heard, now]:
        other, at = record["pack"], record["step"]
        counts = "val_loss" in record["metrics"] and reached <= at <= stopped.get(other, STEPS)
        if counts and at <= on_rung.get(other, (STEPS, 0.0))[0]:
            on_rung[other] = at, record["metrics"]["val_loss"]
    values = [value for other, (_, value) in on_rung.items() if other not in lost]
    if len(values) < 2:
        return False, None
    cutoff = float(np.percentile(values, 100 / eta))
    return on_rung[pack][1] > cutoff, cutoff


def test_every_stop_is_the_one_that_the_whole_history_gives(replayed: Replayed) -> None:
    rules, groups = replayed.sweep.plan.spec.early_terminate, replayed.sweep.groups
    sign = 1.0 if replayed.sweep.plan.spec.metric.goal == "minimize" else -1.0
    heard: dict[str, list[dict]] = {group: [] for group in groups.values()}
    stopped: dict[str, int] = {}
    for position, record in enumerate(replayed.driver.journal):
        pack, group = record["pack"], heard[groups[record["pack"]]]
        now = {**record, "metrics": {name: sign * value for name, value in record["metrics"].items()}}
        expected, cutoff = verdict(group, now, stopped, rules.eta)
        expected &= not replayed.sweep.packs[pack].pack.control
        at, decision = replayed.driver.decisions.get(pack, (-1, None))
        assert (at == position) == expected
        if expected:
            stopped[pack] = record["step"]
            assert decision.step == record["step"]
            assert decision.reference == pytest.approx(cutoff, rel=1e-12)
        group.append(now)
    assert len(stopped) == len(replayed.driver.decisions) > 20, "or nothing was tested"


def test_no_pack_is_stopped_but_for_a_better_one_that_was_not_lost_by_then(replayed: Replayed) -> None:
    groups, journal = replayed.sweep.groups, replayed.driver.journal
    sign = 1.0 if replayed.sweep.plan.spec.metric.goal == "minimize" else -1.0
    for pack, (position, decision) in replayed.driver.decisions.items():
        before = [record for record in journal[:position] if groups[record["pack"]] == groups[pack]]
        lost = {record["pack"] for record in before if "lost" in record["metrics"]}
        rivals = [sign * r["metrics"]["val_loss"] for r in before if r["pack"] not in {pack, *lost} and r["step"] >= 10]
        assert min(rivals) < decision.value


def test_the_same_arrival_order_gives_the_same_decisions(replayed: Replayed) -> None:
    driver, arrived = replayed.run()
    assert arrived == replayed.arrived
    assert driver.decisions == replayed.driver.decisions
    assert driver.journal == replayed.driver.journal


def test_audited_packs_and_no_others_report_on(replayed: Replayed) -> None:
    share = replayed.sweep.plan.spec.early_terminate.audit
    decisions = replayed.driver.decisions
    for pack, (position, decision) in decisions.items():
        went_on = any(record["pack"] == pack for record in replayed.driver.journal[position + 1 :])
        assert went_on == decision.audited
    found = sum(decision.audited for _, decision in decisions.values()) / len(decisions)
    assert abs(found - share) <= (0.15 if 0 < share < 1 else 0)


def test_interruptions_change_no_decision(replayed: Replayed) -> None:
    """Cut off at any report, also before the journal heard of it; packs go on from any earlier checkpoint."""
    rng = np.random.default_rng(1)
    driver, decisions = Driver(replayed.sweep), {}
    cuts = sorted(rng.choice(len(replayed.arrived), 6, replace=False).tolist())
    measured: dict[str, dict[int, dict]] = {}
    for position, (pack, result) in enumerate(replayed.arrived):
        driver.deliver(pack, result)
        before = {step: earlier for step, earlier in measured.get(pack, {}).items() if step < result["step"]}
        measured[pack] = {**before, result["step"]: result}
        if position in cuts:
            unheard = int(rng.integers(0, 2))
            decisions |= driver.decisions
            driver = Driver(replayed.sweep, driver.journal[: len(driver.journal) - unheard])
            repeat(driver, rng, replayed, measured)
    decisions |= driver.decisions
    found = {pack: decision for pack, (_, decision) in decisions.items()}
    assert found == {pack: decision for pack, (_, decision) in replayed.driver.decisions.items()}


def repeat(driver: Driver, rng: np.random.Generator, replayed: Replayed, measured: dict[str, dict[int, dict]]) -> None:
    """Every pack, also one that had ended, measures again what it had measured since some checkpoint."""
    left = {pack: list(results.values())[rng.integers(0, len(results)) :] for pack, results in measured.items()}
    while left:
        pack = str(rng.choice(list(left)))
        result = left[pack].pop(0)
        goes_on = driver.deliver(pack, result)
        _, stop = replayed.driver.decisions.get(pack, (0, None))
        assert goes_on == (stop is None or stop.audited or result["step"] < stop.step), "every stop holds, at its step"
        if not left[pack]:
            del left[pack]


# --- lanes of a pack


def expected_ends(sweep: MadeSweep, made: MadePack) -> Iterator[tuple[str, str, int]]:
    """Key, reason and step of every decision in a pack, each lane's history read from its start at every report."""
    rules, done = sweep.plan.spec.early_terminate, 0
    sign = 1.0 if sweep.plan.spec.metric.goal == "minimize" else -1.0
    rungs = [round(10 * rules.eta**k) for k in range(20)]
    counted, running = set(made.lanes), set(made.lanes)
    audited_packs = {end[0] for told in made.told for end in told["ended"] if end[3]}
    for i, step in enumerate(made.steps):
        ends: dict[str, str] = {}
        for key in running:
            reason = lost(made.histories[key][: i + 1])
            if reason == "diverged" or (reason and step < STEPS and key in counted):
                ends[key] = reason
        means: dict[float, float] = {}
        for rate in RATES:
            values = [
                sign * made.histories[key][i].val_loss
                for key in made.lanes
                if made.lanes[key].lr == rate and key in counted - set(ends)
            ]
            if values:
                means[rate] = math.fsum(values) / len(values)
        if step < STEPS and not made.pack.control and any(done < rung <= step for rung in rungs) and len(means) > 1:
            keep = math.ceil(len(means) / rules.eta)
            for rate, mean in means.items():
                if sum(other < mean for other in means.values()) >= keep:
                    ends |= {key: "asha" for key in counted - set(ends) if made.lanes[key].lr == rate}
        yield from ((key, reason, step) for key, reason in ends.items())
        counted -= set(ends)
        running -= {key for key, reason in ends.items() if reason == "diverged" or key not in audited_packs}
        done = step


def lost(history: list[LaneReport]) -> str | None:
    """Why a lane is lost at the last of its reports."""
    last = history[-1]
    if not (math.isfinite(last.loss) and math.isfinite(last.val_loss)):
        return "diverged"
    checks = [(i, bool(check.warnings)) for i, report in enumerate(history) for check in report.rank_checks]
    for end in range(1, len(checks) + 1):
        row = [warned for _, warned in checks[:end]][-POLICY.rank_collapse_patience :]
        if checks[end - 1][0] == len(history) - 1 and len(row) == POLICY.rank_collapse_patience and all(row):
            return "rank_collapse"
    row = [(r.stall_ratio or 0.0) >= POLICY.stall_limit for r in history[-POLICY.stall_patience :]]
    return "stalled" if len(row) == POLICY.stall_patience and all(row) else None


def test_every_end_of_a_lane_is_the_one_that_its_whole_history_gives(replayed: Replayed) -> None:
    reasons: set[str] = set()
    for made in replayed.sweep.packs.values():
        found = [(key, reason, step) for key, reason, step, _ in made.told[-1]["ended"]]
        assert sorted(found) == sorted(expected_ends(replayed.sweep, made))
        reasons |= {reason for _, reason, _ in found}
    assert reasons == {"asha", "rank_collapse", "stalled", "diverged"}


def test_no_lane_outlives_its_warnings_beyond_patience(replayed: Replayed) -> None:
    for made in replayed.sweep.packs.values():
        audited = {key for key, _, _, spared in made.told[-1]["ended"] if spared}
        for key in set(made.lanes) - audited:
            lived = [made.histories[key][i] for i, told in enumerate(made.told[:-1]) if key in told["alive"]]
            warned = [bool(check.warnings) for report in lived for check in report.rank_checks]
            stalled = [(report.stall_ratio or 0.0) >= POLICY.stall_limit for report in lived]
            assert longest_row(warned) < POLICY.rank_collapse_patience
            assert longest_row(stalled) < POLICY.stall_patience
            assert all(math.isfinite(report.loss) and math.isfinite(report.val_loss) for report in lived)


def longest_row(flags: list[bool]) -> int:
    return max((len(list(row)) for flag, row in groupby(flags) if flag), default=0)


def test_an_interrupted_pack_tells_the_same(replayed: Replayed) -> None:
    rng = np.random.default_rng(2)
    for made in list(replayed.sweep.packs.values())[::3]:
        cut = int(rng.integers(0, len(made.told)))
        assert play(replayed.sweep, made, cut, checkpoint=int(rng.integers(-1, cut + 1))) == made.told
