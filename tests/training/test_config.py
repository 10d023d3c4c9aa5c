"""The strict door: what is refused, where the message points, and that what is accepted survives the round trip."""

import copy
import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altgrad.quantization.formats import FORMAT_REGISTRY
from altgrad.training.config import ConfigError, LayerRule, ModelConfig, RankConfig, RunConfig, nearest_name

BAD: dict[str, tuple[dict, tuple, str]] = {
    "unknown key": ({"fromat": "E4M3"}, ("fromat",), "unknown key; did you mean 'format'?"),
    "unknown nested key": ({"model": {"n_head": 2, "n_layers": 2}}, ("model", "n_layers"), "did you mean 'n_layer'?"),
    "a key like no other": ({"xyz": 1}, ("xyz",), "unknown key; known: format, optimizer"),
    "a key that is no text": ({7: 1}, (7,), "unknown key"),
    "text for a number": ({"lr": "1e-3"}, ("lr",), "expected a number, got '1e-3' (text)"),
    "a bool for a number": ({"lr": True}, ("lr",), "expected a number, got True (true or false)"),
    "a bool for a whole number": ({"steps": True}, ("steps",), "expected a whole number, got True"),
    "a fraction for a whole number": ({"steps": 10.0}, ("steps",), "expected a whole number, got 10.0 (number)"),
    "a number for text": ({"corpus": 3}, ("corpus",), "expected text, got 3 (number)"),
    "a number for a bool": ({"model": {"bias": 1}}, ("model", "bias"), "expected true or false, got 1"),
    "a bool for a choice": (
        {"compile": True},
        ("compile",),
        "unknown value True (true or false); known: auto, always, never",
    ),
    "nothing for a number": ({"lr": None}, ("lr",), "expected a number, got None"),
    "a list for a section": ({"model": [1]}, ("model",), "expected keys and values, got [1] (list)"),
    "text for a list": ({"tensors": "weights"}, ("tensors",), "expected a list, got 'weights'"),
    "a number in a list of text": ({"tensors": ["weights", 1]}, ("tensors", 1), "expected text, got 1"),
    "NaN": ({"lr": math.nan}, ("lr",), "must be a finite number, got nan"),
    "infinity": ({"weight_decay": math.inf}, ("weight_decay",), "must be a finite number, got inf"),
    "a whole number beyond all floats": ({"lr": 10**400}, ("lr",), "must be a finite number"),
    "nested NaN": ({"ranks": {"alpha": math.nan}}, ("ranks", "alpha"), "must be a finite number"),
    "unknown format": ({"format": "e4m3"}, ("format",), "unknown format 'e4m3'; did you mean 'E4M3'?"),
    "unknown gradient format": ({"gradient_format": "fp8"}, ("gradient_format",), "unknown format 'fp8'"),
    "unknown optimizer": ({"optimizer": "adam"}, ("optimizer",), "unknown value 'adam' (text); did you mean 'adamw'?"),
    "unknown storage": ({"storage": "masters"}, ("storage",), "did you mean 'master'?"),
    "unknown preset": ({"layers": "atention"}, ("layers",), "unknown preset 'atention'; did you mean 'attention'?"),
    "no layers": ({"layers": []}, ("layers",), "an empty list of rules"),
    "a number for layers": ({"layers": 3}, ("layers",), "expected text, got 3"),
    "a rule that is no rule": ({"layers": ["*"]}, ("layers", 0), "expected keys and values, got '*' (text)"),
    "a rule for nothing": ({"layers": [{"format": "E4M3"}]}, ("layers", 0, "match"), "is missing"),
    "a rule's unknown format": (
        {"layers": [{"match": "*"}, {"match": "*", "format": "E4M4"}]},
        ("layers", 1, "format"),
        "unknown format 'E4M4'; did you mean 'E4M3'?",
    ),
    "unknown tensors": ({"tensors": ["weight"]}, ("tensors",), "did you mean 'weights'?"),
    "no tensors": ({"tensors": []}, ("tensors",), "an empty list quantizes nothing"),
    "heads that do not divide": ({"model": {"n_embd": 10, "n_head": 3}}, ("model", "n_head"), "3 heads do not divide"),
    "no heads": ({"model": {"n_head": 0}}, ("model", "n_head"), "must be at least 1, got 0"),
    "grid with masters": ({"optimizer": "grid"}, ("storage",), "storage must be 'nearest', got 'master'"),
    "grid on bf16": (
        {"optimizer": "grid", "storage": "nearest", "format": "bf16"},
        ("optimizer",),
        "grid moves whole rungs of an 8-bit format, got 'bf16'",
    ),
    "grid without quantized weights": (
        {"optimizer": "grid", "storage": "nearest", "tensors": ["activations"]},
        ("tensors",),
        "grid needs quantized weights",
    ),
    "float32 without masters": ({"format": "fp32", "storage": "nearest"}, ("storage",), "has no meaning for fp32"),
    "storage of what is not quantized": (
        {"storage": "stochastic", "tensors": ["activations"]},
        ("storage",),
        "no meaning where weights are not quantized",
    ),
    "no steps": ({"steps": 0}, ("steps",), "must be at least 1, got 0"),
    "a negative seed": ({"seed": -1}, ("seed",), "must be at least 0, got -1"),
    "a seed no generator takes": ({"seed": 1 << 63}, ("seed",), "must be below 2**63"),
    "no learning rate": ({"lr": 0}, ("lr",), "must be above zero, got 0.0"),
    "negative decay": ({"weight_decay": -0.1}, ("weight_decay",), "must not be negative, got -0.1"),
    "a moment that forgets nothing": ({"beta1": 1.0}, ("beta1",), "must lie in [0, 1), got 1.0"),
    "a cosine that rises": ({"min_lr_ratio": 2}, ("min_lr_ratio",), "must lie in [0, 1], got 2.0"),
    "a threshold of nothing": ({"ranks": {"warn_threshold": 0}}, ("ranks", "warn_threshold"), "must lie in (0, 1]"),
    "no interval": ({"ranks": {"interval": 0}}, ("ranks", "interval"), "must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_run_is_refused_where_it_stands(case: str) -> None:
    values, path, message = BAD[case]
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(values)
    found = {problem.path: problem.message for problem in caught.value.problems}
    assert path in found
    assert message in found[path]
    assert ".".join(map(str, path)) in str(caught.value)


@pytest.mark.parametrize("values", [[], "E4M3", None, 3], ids=repr)
def test_a_config_is_keys_and_values(values: Any) -> None:
    with pytest.raises(ConfigError, match="expected keys and values"):
        RunConfig.from_dict(values)


def test_all_problems_come_at_once() -> None:
    values = {
        "fromat": "E4M3",
        "lr": "fast",
        "steps": 0,
        "beta1": 1.5,
        "format": "E9M9",
        "storage": 5,
        "optimizer": "grid",
        "model": {"n_head": 2.5, "n_embd": True},
        "layers": [{"match": 3}, {"format": "E4M3"}],
    }
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(values)
    assert {problem.path for problem in caught.value.problems} == {
        ("fromat",),
        ("lr",),
        ("steps",),
        ("beta1",),
        ("format",),
        ("storage",),
        ("model", "n_head"),
        ("model", "n_embd"),
        ("layers", 0, "match"),
        ("layers", 1, "match"),
    }


@pytest.mark.parametrize(
    "wrong",
    [{"lr": math.nan}, {"eps": math.nan}, {"grad_clip": math.nan}, {"beta2": math.nan}, {"grid_scale": -math.inf}],
    ids=str,
)
def test_the_constructor_refuses_what_the_door_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RunConfig(**wrong)


CONFIGS = [
    RunConfig(),
    RunConfig(format="fp32", seed=7, lr=0.5, grad_clip=0.0),
    RunConfig(optimizer="grid", storage="nearest", format="E7M0"),
    RunConfig(layers=(LayerRule("*.attn.*", "E5M2"), LayerRule("lm_head", "bf16"), LayerRule("*"))),
    RunConfig(
        tensors=("weights", "activations", "gradients"),
        model=ModelConfig(n_layer=1, n_head=3, n_embd=9, bias=True, tied_head=False),
        ranks=RankConfig(critical_layers=("wte",), reference="initial"),
    ),
]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_plain_data_survives_json_and_comes_back_equal(config: RunConfig) -> None:
    plain = config.to_dict()
    assert RunConfig.from_dict(plain) == config
    assert RunConfig.from_dict(json.loads(json.dumps(plain))) == config
    assert json.loads(json.dumps(plain)) == plain


@given(
    format=st.sampled_from([name for name in FORMAT_REGISTRY if name != "fp32"]),
    storage=st.sampled_from(["master", "nearest", "stochastic"]),
    lr=st.floats(1e-8, 10.0),
    seed=st.integers(0, 2**63 - 1),
    layers=st.one_of(
        st.sampled_from(["all", "head"]),
        st.lists(
            st.fixed_dictionaries({"match": st.text()}, optional={"format": st.sampled_from([*FORMAT_REGISTRY, None])}),
            min_size=1,
        ),
    ),
)
def test_every_valid_dict_round_trips(**values: Any) -> None:
    before = copy.deepcopy(values)
    config = RunConfig.from_dict(values)
    assert values == before
    plain = config.to_dict()
    assert RunConfig.from_dict(plain) == config
    for key in ("format", "storage", "lr", "seed"):
        assert plain[key] == values[key]


def test_whole_numbers_are_numbers() -> None:
    config = RunConfig.from_dict({"lr": 1, "weight_decay": 0})
    assert (config.lr, type(config.lr)) == (1.0, float)


def test_a_config_is_frozen_and_hashable() -> None:
    config = RunConfig()
    for target, key in ((config, "lr"), (config.model, "n_layer"), (config.ranks, "alpha")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(target, key, 1)
    assert hash(config) == hash(RunConfig.from_dict({}))


@pytest.mark.parametrize(
    ("name", "hint"),
    [("E4M", "did you mean 'E4M3'?"), ("e5m2", "did you mean 'E5M2'?"), ("banana", "known: E4M3, E5M2, bf16")],
)
def test_a_hint_names_the_nearest(name: str, hint: str) -> None:
    assert nearest_name(name, ["E4M3", "E5M2", "bf16"]) == hint
