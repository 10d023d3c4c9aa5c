"""Plans: stable keys, controls first, nothing run twice, nothing left as a hole."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altgrad.training.config import ConfigError, LayerRule, ModelConfig, RunConfig
from altgrad.training.layers import layer_formats
from orchestrator.plan import Pack, Plan, cell_label, make_plan, trial_key
from orchestrator.space import SpaceError, load_space
from orchestrator.space.spec import Parameter

ROOT = Path(__file__).parents[1]
CORPUS = {"corpus": "stdlib", "hash": "c0ffee", "tokens": 1000, "vocabulary": 256}

#: A space with every role, an exclude, and a control that the grid holds.
SPACE: dict[str, Any] = {
    "name": "x",
    "description": "a test",
    "parameters": {
        "format": {"values": ["fp32", "E4M3", "E5M2"]},
        "storage": {"values": ["master", "nearest"]},
        "lr": {"values": [0.001, 0.01]},
        "seed": {"values": [1, 2]},
    },
    "exclude": [{"format": "fp32", "storage": "nearest", "why": "own masters"}],
    "run": {"steps": 10, "model": {"n_layer": 1, "n_embd": 32, "n_head": 2}},
}


def planned(tmp_path: Path, space: dict[str, Any], *overrides: str) -> Plan:
    """The plan of a space; JSON is YAML."""
    (tmp_path / "x.yaml").write_text(json.dumps(space), encoding="utf-8")
    return make_plan(load_space(tmp_path / "x.yaml", overrides), CORPUS)


def keys(plan: Plan) -> list[str]:
    return [lane.key for pack in plan.packs for lane in pack.lanes]


def by_id(plan: Plan) -> dict[str, Pack]:
    return {pack.pack: pack for pack in plan.packs}


# --- keys


def test_a_key_is_what_it_always_was() -> None:
    """This changes only with RunConfig's fields: then no finished trial is found again, so it is worth a thought."""
    assert trial_key(RunConfig(format="E5M2", lr=3e-4, seed=2), "c0ffee") == "fa4af33818eba5ed"


@pytest.mark.parametrize(
    "same",
    [
        RunConfig.from_dict(dict(reversed(RunConfig().to_dict().items()))),
        RunConfig(checkpoint_interval=7),
        RunConfig(corpus="/elsewhere/corpus.txt"),
        RunConfig(text_column="body"),
        RunConfig.from_dict({"grid_scale": 6, "grad_clip": 1}),
        RunConfig(grad_clip=1, grid_scale=6),
        RunConfig.from_dict({"tensors": ["weights", "activations"]}),
    ],
    ids=["order", "checkpoints", "path", "column", "whole numbers", "whole numbers unchecked", "list"],
)
def test_what_changes_no_number_changes_no_key(same: RunConfig) -> None:
    assert trial_key(same, "c0ffee") == trial_key(RunConfig(), "c0ffee")


@pytest.mark.parametrize(
    ("config", "corpus_hash"),
    [
        (RunConfig(), "decaf"),
        (RunConfig(seed=1), "c0ffee"),
        (RunConfig(lr=0.00100001), "c0ffee"),
        (RunConfig(report_interval=50), "c0ffee"),
        (RunConfig(layers=(LayerRule("*"),)), "c0ffee"),
        (RunConfig(model=ModelConfig(bias=True)), "c0ffee"),
    ],
)
def test_what_changes_numbers_changes_the_key(config: RunConfig, corpus_hash: str) -> None:
    assert trial_key(config, corpus_hash) != trial_key(RunConfig(), "c0ffee")


# --- packs


def test_a_pack_shares_everything_but_its_lanes(tmp_path: Path) -> None:
    plan = planned(tmp_path, SPACE)
    for pack in plan.packs:
        assert [lane.config.seed for lane in pack.lanes] == [1, 2]
        assert len({dataclasses.replace(lane.config, seed=0) for lane in pack.lanes}) == 1
        config = pack.lanes[0].config
        assert pack.scientific == {"format": config.format, "storage": config.storage}
        assert pack.nuisance == {"lr": config.lr}
        assert pack.cell == f"{config.format} {config.storage}"


def test_controls_stand_in_front_and_each_pack_names_its_own(tmp_path: Path) -> None:
    plan = planned(tmp_path, SPACE)
    assert [pack.control for pack in plan.packs] == [True, True] + [False] * 8
    assert [pack.cell for pack in plan.packs[:2]] == ["fp32 master"] * 2
    for pack in plan.packs:
        if pack.control:
            assert pack.control_pack is None
        else:
            assert by_id(plan)[str(pack.control_pack)].control
            assert by_id(plan)[str(pack.control_pack)].nuisance == pack.nuisance


def test_ranks_held_against_their_own_start_need_no_control(tmp_path: Path) -> None:
    plan = planned(tmp_path, SPACE, "ranks.reference=initial")
    assert any(pack.control for pack in plan.packs)
    assert {pack.control_pack for pack in plan.packs} == {None}


def test_a_pack_is_named_by_its_place_and_its_keys(tmp_path: Path) -> None:
    packs = planned(tmp_path, SPACE).packs
    assert [pack.pack[:5] for pack in packs] == [f"p{i:03d}-" for i in range(len(packs))]
    other_corpus = make_plan(load_space(tmp_path / "x.yaml"), {**CORPUS, "hash": "decaf"}).packs
    assert not {pack.pack for pack in packs} & {pack.pack for pack in other_corpus}


CONTROLS = {
    "in the grid, it is not run again": ({}, [], ["fp32 master"] * 2, 10),
    "beyond the grid, it is added": ({}, ["format=[E4M3, E5M2]"], ["fp32 master"] * 2, 10),
    "beyond the parameters, it says how it differs": (
        {"run": {"optimizer": "grid"}},
        ["storage=nearest", "format=E4M3"],
        ["fp32 adamw master"] * 2,
        4,
    ),
    "another one": ({"control": {"format": "E4M3", "storage": "nearest"}}, [], ["E4M3 nearest"] * 2, 10),
    "fixing a nuisance value, it is one for all": ({"control": {"lr": 0.01}}, [], ["fp32 master"], 10),
    "excluded, it is run all the same": ({"exclude": [{"format": "fp32"}]}, [], ["fp32 master"] * 2, 10),
    "of other shapes, it has theirs": (
        {"parameters": {**SPACE["parameters"], "model.n_layer": {"values": [1, 2], "role": "scientific"}}, "run": {}},
        ["lr=0.01"],
        ["fp32 master model.n_layer=1", "fp32 master model.n_layer=2"],
        10,
    ),
    "of optimizer forms, it has one": (
        {"parameters": {**SPACE["parameters"], "precondition": {"values": ["gradient", "update"]}}},
        ["lr=0.01"],
        ["fp32 master gradient"],
        10,
    ),
}


@pytest.mark.parametrize(("change", "overrides", "cells", "packs"), CONTROLS.values(), ids=CONTROLS)
def test_the_control(
    tmp_path: Path, change: dict[str, Any], overrides: list[str], cells: list[str], packs: int
) -> None:
    plan = planned(tmp_path, {**SPACE, **change}, *overrides)
    assert [pack.cell for pack in plan.packs if pack.control] == cells
    assert len(plan.packs) == packs
    assert not {pack.cell for pack in plan.packs if not pack.control} & set(cells) or "lr" in change.get("control", {})
    held = [by_id(plan)[pack.control_pack] for pack in plan.packs if pack.control_pack]
    models = [pack.lanes[0].config.model for pack in plan.packs if pack.control_pack]
    assert [pack.lanes[0].config.model for pack in held] == models


def test_lanes_may_be_nuisance_values_too(tmp_path: Path) -> None:
    plan = planned(tmp_path, {**SPACE, "lanes": ["seed", "lr"]})
    assert len(plan.packs) == 5
    assert all(pack.nuisance == {} for pack in plan.packs)
    assert [(lane.config.lr, lane.config.seed) for lane in plan.packs[0].lanes] == [
        (lr, seed) for seed in (1, 2) for lr in (0.001, 0.01)
    ]
    assert sorted(keys(plan)) == sorted(keys(planned(tmp_path, SPACE)))


def test_an_exclude_may_leave_a_pack_with_fewer_lanes(tmp_path: Path) -> None:
    rules = [*SPACE["exclude"], {"seed": 2, "format": ["fp32", "E5M2"]}, {"seed": 1, "format": "E4M3", "lr": 0.01}]
    plan = planned(tmp_path, {**SPACE, "exclude": rules}, "storage=master")
    seeds = {(pack.cell, pack.nuisance["lr"]): [lane.config.seed for lane in pack.lanes] for pack in plan.packs}
    assert seeds == {
        # Each trial that is left has its control, and those stand in the order of their values.
        ("fp32 master", 0.001): [1, 2],
        ("fp32 master", 0.01): [1, 2],
        ("E4M3 master", 0.001): [1, 2],
        ("E4M3 master", 0.01): [2],
        ("E5M2 master", 0.001): [1],
        ("E5M2 master", 0.01): [1],
    }


# --- excluded cells


EXCLUDES = {
    "a cell, with its reason": (SPACE["exclude"], [("fp32 nearest", "own masters")]),
    "no reason": ([{"format": "fp32", "storage": "nearest"}], [("fp32 nearest", "")]),
    "part of a cell is no hole": (
        [*SPACE["exclude"], {"format": "E4M3", "lr": 0.01}],
        [("fp32 nearest", "own masters")],
    ),
    "all parts of a cell are one": (
        [*SPACE["exclude"], {"format": "E4M3", "storage": "master", "lr": [0.01, 0.001], "why": "all of it"}],
        [("fp32 nearest", "own masters"), ("E4M3 master", "all of it")],
    ),
    "parts by several rules": (
        [*SPACE["exclude"], *({"format": "E4M3", "storage": "master", "lr": lr} for lr in (0.01, 0.001))],
        [("fp32 nearest", "own masters"), ("E4M3 master", "")],
    ),
    "not the control, which is run": ([{"format": "fp32", "why": "known"}], [("fp32 nearest", "known")]),
}


@pytest.mark.parametrize(("rules", "excluded"), EXCLUDES.values(), ids=EXCLUDES)
def test_what_is_excluded_is_shown_and_not_run(
    tmp_path: Path, rules: list[dict[str, Any]], excluded: list[tuple[str, str]]
) -> None:
    plan = planned(tmp_path, {**SPACE, "exclude": rules})
    assert [(cell.cell, cell.why) for cell in plan.excluded] == excluded
    assert not {cell.cell for cell in plan.excluded} & {pack.cell for pack in plan.packs}


# --- random search


RANDOM: dict[str, Any] = {
    **SPACE,
    "method": "random",
    "run_cap": 24,
    "parameters": {
        **SPACE["parameters"],
        "lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1},
        "rung_clip": {"distribution": "int_uniform", "min": 1, "max": 3},
    },
}


def test_random_trials_come_with_all_replicates_and_their_control_within_the_cap(tmp_path: Path) -> None:
    plan = planned(tmp_path, RANDOM)
    assert 20 < len(keys(plan)) <= 24
    for pack in plan.packs:
        assert [lane.config.seed for lane in pack.lanes] == [1, 2]
        assert 1e-4 <= pack.nuisance["lr"] <= 1e-1
        assert pack.nuisance["rung_clip"] in (1, 2, 3)
        assert float(f"{pack.nuisance['lr']:.6g}") == pack.nuisance["lr"]
        assert pack.control or by_id(plan)[str(pack.control_pack)].nuisance == pack.nuisance


def test_random_trials_follow_the_seed_and_a_larger_cap_keeps_them(tmp_path: Path) -> None:
    plan = planned(tmp_path, RANDOM)
    assert plan == planned(tmp_path, RANDOM)
    assert not set(keys(plan)) & set(keys(planned(tmp_path, {**RANDOM, "seed": 1})))
    assert set(keys(plan)) < set(keys(planned(tmp_path, RANDOM, "run_cap=60")))


def test_a_random_search_of_a_small_space_ends_with_all_of_it(tmp_path: Path) -> None:
    whole = planned(tmp_path, SPACE)
    drawn = planned(tmp_path, {**SPACE, "method": "random", "run_cap": 1000})
    assert sorted(keys(drawn)) == sorted(keys(whole))


@pytest.mark.parametrize(
    ("distribution", "low", "high"), [("uniform", -1.0, 3.0), ("log_uniform_values", 1e-5, 1e-1), ("int_uniform", 2, 9)]
)
@given(u=st.floats(0, 1, exclude_max=True))
def test_a_draw_stays_in_its_range(distribution: Any, low: float, high: float, u: float) -> None:
    parameter = Parameter("lr", "nuisance", (), distribution, low, high)
    assert low <= parameter.draw(u) <= high
    assert parameter.draw(0.0) == low


# --- laws


def subsets(values: list[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), min_size=1, unique_by=json.dumps)


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    """Spaces of which every combination can be run, or is excluded."""
    axes: dict[str, list[Any]] = {
        "format": ["fp32", "bf16", "E4M3", "E5M2"],
        "storage": ["master", "nearest", "stochastic"],
        "layers": ["all", "mlp", [{"match": "*.attn.*", "format": "E5M2"}]],
        "lr": [0.001, 0.01, 0.1],
        "model.n_embd": [32, 64],
        "seed": [1, 2, 3],
    }
    chosen = {name: draw(subsets(values)) for name, values in axes.items() if draw(st.booleans()) or name == "format"}
    exclude = []
    if "fp32" in chosen["format"] and (bad := [v for v in chosen.get("storage", []) if v != "master"]):
        exclude.append({"format": "fp32", "storage": bad, "why": "own masters"})
    return {
        "name": "x",
        "parameters": {name: {"values": values} for name, values in chosen.items()},
        "run": {"steps": 10, "batch_size": 2},
        "exclude": exclude,
    }


def plan_or_skip(folder: Path, space: dict[str, Any]) -> Plan | None:
    """None where every combination of a drawn space is excluded."""
    try:
        return planned(folder, space)
    except SpaceError as error:
        if "every combination is excluded" not in str(error):
            raise
        return None


LAWS = settings(max_examples=20, deadline=None)


@LAWS
@given(space=spaces())
def test_no_trial_is_planned_twice_and_each_has_its_control(
    tmp_path_factory: pytest.TempPathFactory, space: dict[str, Any]
) -> None:
    if (plan := plan_or_skip(tmp_path_factory.mktemp("space"), space)) is None:
        return
    assert max(Counter(keys(plan)).values()) == 1
    for pack in plan.packs:
        twin = by_id(plan)[pack.control_pack or pack.pack]
        as_control = {
            dataclasses.replace(lane.config, format="fp32", optimizer="adamw", storage="master", layers="all")
            for lane in pack.lanes
        }
        assert as_control <= {lane.config for lane in twin.lanes}
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@LAWS
@given(space=spaces(), data=st.data())
def test_the_order_of_keys_in_a_file_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, space: dict[str, Any], data: st.DataObject
) -> None:
    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: shuffled(value[key]) for key in data.draw(st.permutations(sorted(value)))}

    folder = tmp_path_factory.mktemp("space")
    first, second = plan_or_skip(folder, space), plan_or_skip(folder, shuffled(space))
    assert first is None or json.dumps(first.to_dict()) == json.dumps(second and second.to_dict())


@LAWS
@given(space=spaces(), name=st.sampled_from(["lr", "seed", "format"]))
def test_widening_a_space_keeps_its_trials(
    tmp_path_factory: pytest.TempPathFactory, space: dict[str, Any], name: str
) -> None:
    folder, more = tmp_path_factory.mktemp("space"), {"lr": 0.5, "seed": 99, "format": "E2M5"}[name]
    wider = json.loads(json.dumps(space))
    wider["parameters"].setdefault(name, {"values": [getattr(RunConfig(), name)]})["values"].append(more)
    first, second = plan_or_skip(folder, space), plan_or_skip(folder, wider)
    assert first is None or (second is not None and set(keys(first)) < set(keys(second)))


# --- plain data


def test_plain_data_has_this_form_and_comes_back(tmp_path: Path) -> None:
    plan = planned(tmp_path, SPACE)
    data = plan.to_dict()
    assert list(data) == [
        *("name", "description", "spec_hash", "schema_version", "corpus", "metric", "roles", "packs", "excluded"),
        "space",
    ]
    assert data["schema_version"] == 1
    assert data["corpus"] == CORPUS
    assert data["metric"] == {"name": "val_loss", "goal": "minimize"}
    assert data["roles"] == {"format": "scientific", "storage": "scientific", "seed": "replicate", "lr": "nuisance"}
    assert data["excluded"] == [
        {"cell": "fp32 nearest", "scientific": {"format": "fp32", "storage": "nearest"}, "why": "own masters"}
    ]
    pack = data["packs"][2]
    assert list(pack) == ["pack", "cell", "scientific", "nuisance", "control", "control_pack", "lanes"]
    assert pack["lanes"][0] == {"key": plan.packs[2].lanes[0].key, "config": plan.packs[2].lanes[0].config.to_dict()}
    assert Plan.from_dict(json.loads(json.dumps(data))) == plan


def test_a_plan_of_another_form_is_refused(tmp_path: Path) -> None:
    data = planned(tmp_path, SPACE).to_dict() | {"schema_version": 2}
    with pytest.raises(ValueError, match="plan has schema_version 2, this program reads 1"):
        Plan.from_dict(data)


def test_the_hash_of_a_space_is_blind_to_its_name_alone(tmp_path: Path) -> None:
    plan = planned(tmp_path, SPACE)
    assert planned(tmp_path, SPACE, "name=y", "description=other").spec_hash == plan.spec_hash
    assert planned(tmp_path, SPACE, "max_failures=0").spec_hash != plan.spec_hash
    assert make_plan(plan.spec, {**CORPUS, "hash": "decaf"}).spec_hash != plan.spec_hash


@pytest.mark.parametrize(
    ("scientific", "label"),
    [
        ({"format": "E5M2", "optimizer": "adamw", "storage": "nearest"}, "E5M2 adamw nearest"),
        ({"format": "E5M2", "layers": "no_head"}, "E5M2 no_head"),
        ({"layers": [{"match": "lm_head", "format": "bf16"}, {"match": "*", "format": None}]}, "lm_head:bf16,*"),
        ({"format": "E5M2", "lr": 0.001, "model.bias": True}, "E5M2 lr=0.001 model.bias=True"),
        ({"tensors": ["weights", "gradients"]}, "tensors=weights,gradients"),
        ({}, "run"),
    ],
)
def test_a_cell_is_labelled(scientific: dict[str, Any], label: str) -> None:
    assert cell_label(scientific) == label


# --- the files that are shipped


SIZES = {
    # Packs, trials, controls, cells with trials, excluded cells.
    "smoke": (5, 10, 1, 5, 1),
    "quickstart": (29, 174, 1, 29, 19),
    "mixed_precision": (26, 78, 2, 13, 0),
    # 189 cells x 3 step sizes x 3 seeds.
    "matrix": (567, 1701, 3, 189, 1011),
}


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_file_plans_what_it_says(path: Path) -> None:
    plan = make_plan(load_space(path), CORPUS)
    controls, cells = [pack for pack in plan.packs if pack.control], {pack.cell for pack in plan.packs}
    found = (len(plan.packs), len(keys(plan)), len(controls), len(cells), len(plan.excluded))
    assert found == SIZES[path.stem]
    assert plan.spec.name == path.stem
    assert plan.spec.notes == ()
    assert max(Counter(keys(plan)).values()) == 1
    assert all(cell.why for cell in plan.excluded)
    for pack in plan.packs:
        assert {lane.config.report_interval % lane.config.ranks.interval for lane in pack.lanes} == {0}


def test_the_rules_of_mixed_precision_reach_the_matrices_they_are_meant_for() -> None:
    plan = make_plan(load_space(ROOT / "search_spaces" / "mixed_precision.yaml"), CORPUS)
    recipes = {pack.cell: layer_formats(pack.lanes[0].config) for pack in plan.packs}
    recipe = recipes["master lm_head:bf16,*c_proj*:bf16,*.attn.*:E5M2,*.mlp.*:E3M4"]
    formats = {
        name: recipe[name].name
        for name in ("wte", "h.0.attn.c_attn", "h.0.attn.c_proj", "h.3.mlp.c_fc", "h.3.mlp.c_proj")
    }
    assert list(formats.values()) == ["bf16", "E5M2", "bf16", "E3M4", "bf16"]
    assert len({tuple(found[name].name for name in sorted(found)) for found in recipes.values()}) == 7


def test_a_spec_built_by_hand_is_checked_when_planned(tmp_path: Path) -> None:
    spec = dataclasses.replace(planned(tmp_path, SPACE).spec, exclude=())
    with pytest.raises(ConfigError, match="float32 weights are their own masters"):
        make_plan(spec, CORPUS)
