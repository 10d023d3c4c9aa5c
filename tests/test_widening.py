"""A wider search space runs what is new in it: old packs stay as they are, and every new one has its control."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.plan import Pack, Plan, make_plan
from orchestrator.space import load_space
from orchestrator.space.spec import flatten
from orchestrator.widening import NotWiderError, widen

CORPUS = {"corpus": "stdlib", "hash": "c0ffee", "tokens": 1000, "vocabulary": 256}
SPACE: dict[str, Any] = {
    "name": "x",
    "parameters": {
        "format": {"values": ["fp32", "E4M3"]},
        "storage": {"values": ["master", "nearest"]},
        "lr": {"values": [0.001]},
        "seed": {"values": [1, 2]},
    },
    "exclude": [{"format": "fp32", "storage": "nearest", "why": "own masters"}],
    "run": {"steps": 10, "model": {"n_layer": 1, "n_embd": 32, "n_head": 2}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spaces")


def planned(folder: Path, *overrides: str, corpus: dict[str, Any] = CORPUS, **changes: Any) -> Plan:
    """The plan of a space; JSON is YAML."""
    (folder / "x.yaml").write_text(json.dumps({**SPACE, **changes}), encoding="utf-8")
    return make_plan(load_space(folder / "x.yaml", overrides), corpus)


def keys(packs: tuple[Pack, ...]) -> list[str]:
    return [lane.key for pack in packs for lane in pack.lanes]


def labels(packs: tuple[Pack, ...]) -> list[tuple[str, list[int], float]]:
    """What new packs hold: the cell, the seeds, the learning rate of the first lane."""
    return [(pack.cell, [lane.config.seed for lane in pack.lanes], pack.lanes[0].config.lr) for pack in packs]


def settings_without_control(plan: Plan) -> Iterator[str]:
    """Lanes whose pack is held against one in which no lane has the lane's own nuisance values."""
    by_name = {pack.pack: pack for pack in plan.packs}
    nuisance = [name for name, role in plan.spec.roles.items() if role == "nuisance"]
    for pack in plan.packs:
        for lane in pack.lanes if not pack.control else ():
            control = by_name[str(pack.control_pack)]
            assert control.control
            fields = flatten(lane.config.to_dict())
            twins = [flatten(twin.config.to_dict()) for twin in control.lanes]
            if not any(all(twin[name] == fields[name] for name in nuisance) for twin in twins):
                yield f"{pack.pack} {lane.key}"


def test_a_new_format_gets_packs_of_its_own_held_against_the_control_that_is_there(folder: Path) -> None:
    held = planned(folder)
    wider = widen(held, planned(folder, "format=[fp32,E4M3,E5M2]"))
    assert wider.plan.packs[: len(held.packs)] == held.packs
    assert labels(wider.packs) == [("E5M2 master", [1, 2], 0.001), ("E5M2 nearest", [1, 2], 0.001)]
    assert {pack.control_pack for pack in wider.packs} == {held.packs[0].pack}
    assert [pack.pack[:5] for pack in wider.packs] == ["p003-", "p004-"]
    assert (wider.trials, wider.known) == (4, 6)
    assert str(wider) == "widened: 4 new trials in 2 packs; 6 known"


def test_new_seeds_train_in_packs_of_the_new_seeds_alone_controls_first(folder: Path) -> None:
    held = planned(folder)
    wider = widen(held, planned(folder, "seed=[1,2,3]"))
    assert labels(wider.packs) == [(cell, [3], 0.001) for cell in ("fp32 master", "E4M3 master", "E4M3 nearest")]
    assert [pack.control for pack in wider.packs] == [True, False, False]
    assert [pack.control_pack for pack in wider.packs] == [None, *[held.packs[0].pack] * 2]


def test_a_new_learning_rate_brings_its_own_control(folder: Path) -> None:
    held = planned(folder)
    wider = widen(held, planned(folder, "lr=[0.001,0.01]"))
    control, *others = wider.packs
    assert control.control
    assert {pack.control_pack for pack in others} == {control.pack}
    assert {pack.nuisance["lr"] for pack in wider.packs} == {0.01}


def test_lanes_are_parted_by_the_pack_that_holds_their_control(folder: Path) -> None:
    """Two learning rates of a new format in one pack, of which an old control holds the one and a new one the other."""
    together = {"lanes": ["seed", "lr"]}
    held = planned(folder, **together)
    wider = widen(held, planned(folder, "lr=[0.001,0.01]", "format=[fp32,E4M3,E5M2]", **together))
    control = wider.packs[0]
    new = [pack for pack in wider.packs if pack.cell == "E5M2 master"]
    assert [(pack.control_pack, pack.nuisance) for pack in new] == [
        (held.packs[0].pack, {"lr": 0.001}),
        (control.pack, {"lr": 0.01}),
    ]


def test_a_field_that_becomes_a_parameter_gives_old_cells_their_new_label(folder: Path) -> None:
    parameters = {**SPACE["parameters"], "optimizer": {"values": ["adamw", "muon"]}}
    held = planned(folder)
    wider = widen(held, planned(folder, parameters=parameters))
    assert [pack.cell for pack in wider.plan.packs[:3]] == [
        "fp32 adamw master",
        "E4M3 adamw master",
        "E4M3 adamw nearest",
    ]
    assert [pack.pack for pack in wider.plan.packs[:3]] == [pack.pack for pack in held.packs]
    assert {pack.scientific["optimizer"] for pack in wider.packs} == {"muon"}


def test_a_random_search_with_a_higher_cap_goes_on_drawing(folder: Path) -> None:
    drawn = {"parameters": {"lr": {"distribution": "uniform", "min": 1e-4, "max": 1e-2}, "seed": {"values": [1, 2]}}}
    random = {**drawn, "method": "random", "run": SPACE["run"], "exclude": []}
    held = planned(folder, run_cap=8, **random)
    wider = widen(held, planned(folder, run_cap=16, **random))
    assert wider.known == 8
    assert 8 < wider.known + wider.trials <= 16


def test_a_combination_no_longer_excluded_is_run_and_no_longer_shown_as_left_out(folder: Path) -> None:
    rule = {"format": "E4M3", "storage": "nearest", "why": "later"}
    held = planned(folder, exclude=[*SPACE["exclude"], rule])
    assert {cell.cell for cell in held.excluded} == {"fp32 nearest", "E4M3 nearest"}
    wider = widen(held, planned(folder))
    assert labels(wider.packs) == [("E4M3 nearest", [1, 2], 0.001)]
    assert {cell.cell for cell in wider.plan.excluded} == {"fp32 nearest"}


def test_rules_that_decide_no_number_hold_from_now_on(folder: Path) -> None:
    held = planned(folder)
    rules = {"early_terminate": {"type": "asha", "eta": 3}, "resources": {"cpu": 2}, "max_failures": 5}
    run = {**SPACE["run"], "checkpoint_interval": 5}
    wider = widen(held, planned(folder, run=run, **rules))
    assert wider.packs == ()
    assert str(wider) == (
        "changed from now on: early_terminate.type: none -> asha, early_terminate.eta: 2.0 -> 3.0, "
        "resources.cpu: 1.0 -> 2.0, max_failures: 2 -> 5, checkpoint_interval: 500 -> 5"
    )
    assert keys(wider.plan.packs) == keys(held.packs)
    assert {lane.config.checkpoint_interval for pack in wider.plan.packs for lane in pack.lanes} == {5}


def test_a_corpus_that_has_moved_is_found_where_it_is_now(folder: Path) -> None:
    wider = widen(planned(folder), planned(folder, corpus={**CORPUS, "corpus": "/elsewhere.txt"}))
    assert wider.plan.corpus["corpus"] == "/elsewhere.txt"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["format=[fp32,E5M2]"],
            "4 of its 6 trials are not in this space (E4M3 master seed=1 lr=0.001, E4M3 master seed=2 lr=0.001, "
            "E4M3 nearest seed=1 lr=0.001, ...): format lacks E4M3",
        ),
        (["steps=20"], "none of its 6 trials is in this space"),
        (["steps=20"], "steps is 20, it was 10"),
        (["seed=[3,4]"], "seed lacks 1, 2"),
        (['exclude=[{format: "fp32", storage: "nearest"}, {format: "E4M3", seed: 1}]'], "exclude, run_cap, method"),
        (["metric.name=loss"], "compared by another metric or control (metric.name: val_loss -> loss)"),
        (["control.lr=0.001"], None),
        (["control.storage=nearest", "control.format=E4M3"], "another metric or control (control.format: fp32 -> E4M3"),
        (["control.lr=0.01"], "(fp32 master) would no longer be a control"),
        (["parameters.lr.role=scientific", "parameters.storage.role=nuisance"], None),
    ],
)
def test_a_space_that_is_not_wider_is_refused_with_what_it_lacks(
    changes: list[str], message: str | None, folder: Path
) -> None:
    held, wanted = planned(folder), planned(folder, *changes)
    if message is None:
        assert widen(held, wanted).packs == (), "the same trials under other words"
    else:
        with pytest.raises(NotWiderError) as error:
            widen(held, wanted)
        assert message in str(error.value)


def test_another_corpus_is_another_sweep(folder: Path) -> None:
    with pytest.raises(NotWiderError, match=r"it trains on stdlib \(hash c0ffee\), this one on stdlib \(hash decaf\)"):
        widen(planned(folder), planned(folder, corpus={**CORPUS, "hash": "decaf"}))


@pytest.mark.parametrize(
    ("changes", "lanes"), [(["parameters.lr.role=scientific"], ["seed"]), ([], ["seed"]), ([], [])]
)
def test_roles_and_lanes_that_would_tear_a_pack_are_refused(changes: list[str], lanes: list[str], folder: Path) -> None:
    held = planned(folder, "lr=[0.001,0.01]", lanes=["seed", "lr"])
    with pytest.raises(NotWiderError, match=r"\(fp32 master\) would be torn into 2 packs: keep the roles and lanes"):
        widen(held, planned(folder, "lr=[0.001,0.01]", *changes, lanes=lanes))


def test_what_trained_apart_may_from_now_on_train_side_by_side(folder: Path) -> None:
    wider = widen(planned(folder), planned(folder, "lr=[0.001,0.01,0.1]", lanes=["seed", "lr"]))
    assert [len(pack.lanes) for pack in wider.packs] == [4, 4, 4]
    assert wider.rules == ('lanes: ["seed"] -> ["seed","lr"]',)


FORMATS, RATES, SEEDS = ["fp32", "E4M3", "E5M2", "E2M5"], [0.001, 0.01, 0.1], [1, 2, 3]


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[str], list[tuple[list[Any], ...]]]:
    """Spaces of which each holds the one before, and the lanes of all."""
    spaces: list[tuple[list[Any], ...]] = []
    for _ in range(draw(st.integers(2, 4))):
        before = spaces[-1] if spaces else ([], [], [])
        drawn = [draw(st.sets(st.sampled_from(values), min_size=1)) for values in (FORMATS, RATES, SEEDS)]
        every = zip((FORMATS, RATES, SEEDS), before, drawn, strict=True)
        spaces.append(tuple([v for v in values if v in old or v in new] for values, old, new in every))
    return draw(st.sampled_from([["seed"], ["seed", "lr"], ["lr"], []])), spaces


@settings(max_examples=8, deadline=None)
@given(chains())
def test_whatever_is_added_every_trial_is_planned_once_and_has_its_control(
    folder: Path, drawn: tuple[list[str], list[tuple[list[Any], ...]]]
) -> None:
    lanes, spaces = drawn
    plans = [
        planned(folder, f"format={json.dumps(f)}", f"lr={json.dumps(r)}", f"seed={json.dumps(s)}", lanes=lanes)
        for f, r, s in spaces
    ]
    plan = plans[0]
    for wanted in plans[1:]:
        wider = widen(plan, wanted).plan
        assert [(p.pack, keys((p,))) for p in wider.packs[: len(plan.packs)]] == [
            (p.pack, keys((p,))) for p in plan.packs
        ]
        plan = Plan.from_dict(wider.to_dict())
        assert plan == wider
        assert sorted(keys(plan.packs)) == sorted(keys(wanted.packs))
        assert len({pack.pack for pack in plan.packs}) == len(plan.packs)
        assert not list(settings_without_control(plan))
        assert widen(plan, wanted).packs == (), "what was added is known"
