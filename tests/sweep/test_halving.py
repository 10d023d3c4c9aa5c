"""Halving of the settings in one pack: at rungs, on means over replicates, and never twice at one rung."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_plan import SPACE, small_plan

from altgrad.training.config import RunConfig
from orchestrator.sweep.halving import Halving, nuisance_setting

RATES = {"values": [0.001, 0.003, 0.01, 0.03]}


class Pack:
    """One pack of the small plan, its lanes known by (lr, seed)."""

    def __init__(self, folder: Path, changes: dict[str, Any] | None = None, place: int = 1, done: int = 0) -> None:
        plan = small_plan(folder, changes)
        self.plan = plan.to_dict()
        self.lanes = {lane.key: lane.config for lane in plan.packs[place].lanes}
        self.keys = {(config.lr, config.seed): key for key, config in self.lanes.items()}
        self.halving = Halving(self.plan, self.plan["packs"][place], self.lanes, done)

    def drop(self, step: int, values: dict[tuple[float, int], float]) -> dict[tuple[float, int], Any]:
        decisions = self.halving.drop(step, {self.keys[lane]: value for lane, value in values.items()})
        return {lane: decisions[key] for lane, key in self.keys.items() if key in decisions}


TWO = {(0.001, 1): 3.0, (0.001, 2): 2.0, (0.01, 1): 2.4, (0.01, 2): 2.4}


def test_a_setting_is_judged_on_the_mean_of_its_replicates(tmp_path: Path) -> None:
    dropped = Pack(tmp_path).drop(10, TWO)
    assert set(dropped) == {(0.001, 1), (0.001, 2)}, "2.5 on average, though one of its seeds is the best of all"


def test_a_decision_carries_its_numbers(tmp_path: Path) -> None:
    decision = Pack(tmp_path).drop(10, TWO)[0.001, 1]
    assert (decision.reason, decision.step, decision.value, decision.reference) == ("asha", 10, 2.5, 2.4)
    assert decision.message == "lr=0.001 has val_loss 2.5 at step 10; lr=0.01 goes on with 2.4"


def test_a_metric_to_be_maximized_keeps_its_sign_in_the_decision(tmp_path: Path) -> None:
    dropped = Pack(tmp_path, {"metric": {"name": "loss", "goal": "maximize"}}).drop(10, TWO)
    assert set(dropped) == {(0.01, 1), (0.01, 2)}
    assert (dropped[0.01, 1].value, dropped[0.01, 1].reference) == (2.4, 2.5)


@pytest.mark.parametrize(
    ("done", "steps", "decided"),
    [
        (0, [5, 9], []),
        (0, [10], [10]),
        (0, [5, 12], [12]),
        (0, [10, 15, 19], [10]),
        (0, [10, 20, 40], [10, 20]),
        (0, [45], [45]),
        (10, [15], []),
        (10, [20], [20]),
        (40, [45, 60, 79], []),
        (13, [16, 19, 21], [21]),
    ],
    ids=str,
)
def test_each_rung_is_decided_once_at_the_first_report_that_reaches_it(
    done: int, steps: list[int], decided: list[int], tmp_path: Path
) -> None:
    """Rungs are 10, 20, 40; four settings are halved to two and one, and one is not halved."""
    parameters = {**SPACE["parameters"], "lr": RATES}
    pack = Pack(tmp_path, {"parameters": parameters}, done=done)
    living = {lane: lane[0] for lane in pack.keys}
    found = []
    for step in steps:
        dropped = pack.drop(step, living)
        if dropped:
            found.append(step)
        living = {lane: value for lane, value in living.items() if lane not in dropped}
    assert found == decided


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({}, 0),
        ({"early_terminate": {"type": "none", "min_iter": 10}}, 1),
        ({"lanes": ["seed"]}, 2),
    ],
    ids=["a control", "no halving asked for", "replicates only"],
)
def test_nothing_is_halved_in(changes: dict[str, Any], place: int, tmp_path: Path) -> None:
    pack = Pack(tmp_path, changes, place)
    assert pack.drop(10, {lane: float(i) for i, lane in enumerate(pack.keys)}) == {}


def test_a_setting_whose_lanes_have_all_ended_does_not_take_part(tmp_path: Path) -> None:
    assert Pack(tmp_path).drop(10, {(0.01, 1): 9.0, (0.01, 2): 9.0}) == {}


@given(
    values=st.lists(st.floats(0, 10), min_size=4, max_size=4),
    eta=st.sampled_from([1.5, 2.0, 3.0, 4.0]),
)
def test_the_best_settings_stay_and_every_dropped_one_is_no_better(
    values: list[float], eta: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    changes = {
        "parameters": {"format": SPACE["parameters"]["format"], "lr": RATES, "seed": {"values": [1]}},
        "early_terminate": {"type": "asha", "min_iter": 10, "eta": eta},
    }
    pack = Pack(tmp_path_factory.mktemp("plan"), changes)
    given_values = dict(zip(pack.keys, values, strict=True))
    dropped = pack.drop(10, given_values)
    kept = [value for lane, value in given_values.items() if lane not in dropped]
    assert len(kept) == math.ceil(4 / eta)
    assert all(decision.value >= max(kept) for decision in dropped.values())


def test_a_setting_names_the_nuisance_lanes_and_nothing_else(tmp_path: Path) -> None:
    plan = small_plan(tmp_path).to_dict()
    config = RunConfig(lr=0.01, seed=2)
    assert nuisance_setting(plan, config) == "lr=0.01"
    assert nuisance_setting(plan, dataclasses.replace(config, seed=1)) == "lr=0.01"
    assert nuisance_setting(small_plan(tmp_path, {"lanes": ["seed"]}).to_dict(), config) == ""
