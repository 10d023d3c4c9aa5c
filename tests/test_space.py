"""What a search space file may say, what it may not, and where the messages point."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from altgrad.training.config import LANE_FIELDS
from orchestrator.space import SpaceError, SweepSpec, dump_yaml, load_space

Write = Callable[[str], Path]
ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "search_spaces").glob("*.yaml"))
GRID = "name: x\nparameters:\n  format: {values: [fp32, E4M3]}\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a search space and name it as a person would."""
    monkeypatch.chdir(tmp_path)

    def write_text(text: str) -> Path:
        Path("x.yaml").write_text(text, encoding="utf-8")
        return Path("x.yaml")

    return write_text


def problems_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(SpaceError) as error:
        load_space(path, overrides)
    assert [str(problem) for problem in error.value.problems] == str(error.value).splitlines()
    return str(error.value).splitlines()


def error_of(path: Path) -> SpaceError | None:
    try:
        load_space(path)
    except SpaceError as error:
        return error
    return None


#: A bad file, and all that is said about it: line, place, message.
BAD_FILES = {
    "empty file": ("", "1: is empty; a search space has at least a name and parameters"),
    "comments only": ("# to do\n", "1: is empty; a search space has at least a name and parameters"),
    "no mapping": ("- format\n", "1: expected keys and values, got ['format'] (list)"),
    "broken syntax": (
        "name: x\nrun: {steps: 3\nseed: [1",
        "3: while parsing a flow mapping: expected ',' or '}', but got ':'",
    ),
    "tab": (
        "name: x\n\trun: 3\n",
        "2: while scanning for the next token: found character '\\t' that cannot start any token",
    ),
    "control character": ("name: x\na: \x00", "2: the character 0 is not allowed in YAML"),
    "two documents": (GRID + "---\na: 1\n", "4: expected a single document in the stream: but found another document"),
    "alias to itself": ("name: x\nrun: &a\n  lr: *a\n", "3: run.lr: an alias to something it lies in"),
    "tag": (
        GRID + "run: {lr: !!python/name:os.system x}\n",
        "4: run.lr: cannot read 'x' as tag:yaml.org,2002:python/name:os.system",
    ),
    "duplicate key": (GRID + "name: y\n", "4: name: duplicate key; it stands on line 1 already"),
    "duplicate nested key": (
        GRID + "run:\n  steps: 10\n  lr: 0.1\n  steps: 20\n",
        "7: run.steps: duplicate key; it stands on line 5 already",
    ),
    "key that is no text": (GRID + "run: {1: 2}\n", "4: run: keys must be text, got 1"),
    "no name": ("parameters: {seed: {value: 1}}\n", "1: name: is missing"),
    "name outside the folder": (
        GRID.replace("name: x", "name: ../x"),
        "1: name: expected up to 64 letters, digits, '.', '_' or '-', the first a letter or digit, got '../x' (text)",
    ),
    "no parameters": (
        "name: x\n",
        "1: parameters: an empty grid; name at least one parameter, such as format: {values: [E4M3]}",
    ),
    "unknown top-level key": (GRID + "runs: {}\n", "4: runs: unknown key; did you mean 'run'?"),
    "unknown parameter": (
        GRID.replace("format:", "fromat:"),
        "3: parameters.fromat: unknown key; did you mean 'format'?",
    ),
    "unknown nested parameter": (
        GRID + "  model.n_layers: {value: 2}\n",
        "4: parameters.model.n_layers: unknown key; did you mean 'model.n_layer'?",
    ),
    "unknown key of a parameter": (
        GRID + "  lr: {value: 1e-3, rolle: nuisance}\n",
        "4: parameters.lr.rolle: unknown key; did you mean 'role'?",
    ),
    "unknown run field": (GRID + "run:\n  stesp: 3\n", "5: run.stesp: unknown key; did you mean 'steps'?"),
    "unknown nested run field": (
        GRID + "run:\n  model:\n    n_lyer: 3\n",
        "6: run.model.n_lyer: unknown key; did you mean 'n_layer'?",
    ),
    "dotted run field": (
        GRID + "run: {model.n_layer: 3}\n",
        "4: run.model.n_layer: unknown key; in run, groups are nested: {model: {n_layer: 2}}",
    ),
    "parameter in run too": (
        GRID + "run: {format: E5M2}\n",
        "4: run.format: stands in parameters too; give it in one place",
    ),
    "corpus as a parameter": (
        GRID + "  corpus: {values: [a, b]}\n",
        "4: parameters.corpus: cannot be a parameter: a sweep has one corpus; put it into run",
    ),
    "bare value": (
        GRID + "  lr: 1e-3\n",
        "4: parameters.lr: expected {value: ...}, {values: [...]} or {distribution: ...}, got 0.001 (number)",
    ),
    "both value and values": (
        GRID + "  lr: {value: 1e-3, values: [1e-2]}\n",
        "4: parameters.lr: needs exactly one of value, values and distribution, got value and values",
    ),
    "values that are no list": (
        GRID + "  lr: {values: 1e-3}\n",
        "4: parameters.lr.values: expected a list, got 0.001 (number); a single one is written value: ...",
    ),
    "empty grid": (
        GRID + "  seed: {values: []}\n",
        "4: parameters.seed.values: an empty grid; list at least one value",
    ),
    "unknown format": (
        GRID.replace("E4M3", "E4M4"),
        "3: parameters.format.values.1: unknown format 'E4M4'; did you mean 'E4M3'?",
    ),
    "unknown optimizer": (
        GRID + "  optimizer: {value: adam}\n",
        "4: parameters.optimizer.value: unknown value 'adam' (text); did you mean 'adamw'?",
    ),
    "unknown format in a rule": (
        GRID + "  layers:\n    values:\n      - - {match: lm_head}\n        - {match: '*', format: E3M5}\n",
        "7: parameters.layers.values.0.1.format: unknown format 'E3M5'; did you mean 'E3M4'?",
    ),
    "text for a number": (
        GRID + "  lr:\n    values:\n      - 1e-3\n      - fast\n",
        "7: parameters.lr.values.1: expected a number, got 'fast' (text)",
    ),
    "truth for a number": (GRID + "run: {lr: yes}\n", "4: run.lr: expected a number, got 'yes' (text)"),
    "fraction for a whole number": (
        GRID + "run: {steps: 1.5}\n",
        "4: run.steps: expected a whole number, got 1.5 (number)",
    ),
    "NaN": (GRID + "  lr: {values: [.nan]}\n", "4: parameters.lr.values.0: must be a finite number, got nan"),
    "infinity": (GRID + "run: {eps: -.inf}\n", "4: run.eps: must be a finite number, got -inf"),
    "NaN limit": (
        GRID + "early_terminate: {stall_limit: .nan}\n",
        "4: early_terminate.stall_limit: must be a finite number, got nan",
    ),
    "impossible value": (GRID + "  lr: {values: [0]}\n", "4: parameters.lr.values.0: must be above zero, got 0.0"),
    "duplicate value": (GRID + "  lr: {values: [1e-3, 0.001]}\n", "4: parameters.lr.values.1: duplicate value 0.001"),
    "duplicate value, another spelling": (
        GRID + "  lr: {values: [1.0, 1]}\n",
        "4: parameters.lr.values.1: duplicate value 1",
    ),
    "distribution in a grid": (
        GRID + "  lr: {distribution: uniform, min: 1e-4, max: 1e-2}\n",
        "4: parameters.lr: a grid needs values; method: random draws from distributions",
    ),
    "unknown distribution": (
        GRID + "  lr: {distribution: unifrom, min: 1e-4, max: 1e-2}\n",
        "4: parameters.lr.distribution: unknown value 'unifrom' (text); did you mean 'uniform'?",
    ),
    "distribution without an end": (
        GRID + "  lr: {distribution: uniform, min: 1e-4}\n",
        "4: parameters.lr.max: is missing",
    ),
    "distribution upside down": (
        GRID + "  lr: {distribution: uniform, min: 1e-2, max: 1e-4}\nmethod: random\nrun_cap: 9\n",
        "4: parameters.lr.max: must be above min, got min=0.01, max=0.0001",
    ),
    "logarithm of zero": (
        GRID + "  weight_decay: {distribution: log_uniform_values, min: 0, max: 1}\nmethod: random\nrun_cap: 9\n",
        "4: parameters.weight_decay.min: must be above zero on a log scale, got 0.0",
    ),
    "real distribution for a whole number": (
        GRID + "  rung_clip: {distribution: uniform, min: 1, max: 9}\nmethod: random\nrun_cap: 9\n",
        "4: parameters.rung_clip.distribution: rung_clip is a whole number; use int_uniform",
    ),
    "drawn replicates": (
        GRID + "  seed: {distribution: int_uniform, min: 1, max: 9}\nmethod: random\nrun_cap: 9\n",
        "4: parameters.seed.distribution: replicates are all run, not drawn; list their values",
    ),
    "min without a distribution": (
        GRID + "  lr: {value: 1e-3, min: 1e-4}\n",
        "4: parameters.lr.min: needs a distribution",
    ),
    "lane that changes shapes": (
        GRID + "  model.n_layer: {values: [1, 2]}\nlanes: [model.n_layer]\n",
        "5: lanes.0: model.n_layer changes the shape or the schedule of the program; lanes may differ in: "
        f"{', '.join(sorted(LANE_FIELDS))}",
    ),
    "lane across cells": (
        GRID + "lanes: [format]\n",
        "4: lanes.0: format spans the matrix, and a pack is one cell of it",
    ),
    "lane that is no parameter": (GRID + "lanes: [seed]\n", "4: lanes.0: 'seed' is no parameter; known: format"),
    "control of a replicate": (
        GRID + "  seed: {values: [1, 2]}\ncontrol: {seed: 1}\n",
        "5: control.seed: the control runs all values of seed; leave it out",
    ),
    "unknown control key": (
        GRID + "control: {fromat: fp32}\n",
        "4: control.fromat: unknown key; did you mean 'format'?",
    ),
    "impossible control": (
        GRID + "control: {storage: nearest}\n",
        "4: control: cannot run: storage: 'nearest' has no meaning for fp32: float32 weights are their own masters",
    ),
    "exclude of no parameter": (
        GRID + "exclude:\n  - {format: fp32}\n  - {forma: fp32}\n",
        "6: exclude.1.forma: is no parameter; did you mean 'format'?",
    ),
    "exclude of a value that is not there": (
        GRID + "exclude: [{format: [E4M3, E5M2]}]\n",
        "4: exclude.0.format.1: 'E5M2' is no value of format; known: fp32, E4M3",
    ),
    "exclude of nothing": (GRID + "exclude: [{format: []}]\n", "4: exclude.0.format: an empty list excludes nothing"),
    "everything excluded": (
        GRID.replace("fp32", "E5M2") + "exclude: [{format: [E5M2, E4M3]}]\n",
        "4: exclude: every combination is excluded",
    ),
    "combination that cannot run": (
        GRID + "  storage: {values: [master, nearest]}\n  seed: {values: [1, 2]}\n",
        "2: parameters: 'nearest' has no meaning for fp32: float32 weights are their own masters; "
        "trials that cannot run: 2; add to exclude: - {format: fp32, storage: nearest}",
    ),
    "combination of numbers that cannot run": (
        GRID + "  model.n_head: {values: [2, 3]}\n  model.n_embd: {values: [64, 96]}\nexclude: []\n",
        "6: exclude: 3 heads do not divide a width of 64; trials that cannot run: 1; "
        "add to exclude: - {model.n_head: 3, model.n_embd: 64}",
    ),
    "no combination can run": (
        GRID + "run:\n  model:\n    n_head: 3\n",
        "6: run.model.n_head: no combination can run: 3 heads do not divide a width of 128",
    ),
    "run_cap exceeded": (
        GRID + "  seed: {values: [1, 2]}\nrun_cap: 3\n",
        "5: run_cap: the grid has 4 trials with its controls, more than 3; "
        "raise run_cap, list fewer values, or draw some of them with method: random",
    ),
    "random without run_cap": (GRID + "method: random\n", "4: method: random needs run_cap: the most trials to draw"),
    "random with too small a run_cap": (
        GRID + "  seed: {values: [1, 2]}\nmethod: random\nrun_cap: 1\n",
        "6: run_cap: the first draw with its control has more than 1 trials; raise run_cap",
    ),
    "grid beyond reason": (
        "name: x\nparameters:\n"
        + "".join(f"  beta{i}: {{values: {[k / 1000 for k in range(400)]}}}\n" for i in (1, 2)),
        "2: parameters: the grid has 160,000 combinations, more than 100,000; draw some with method: random",
    ),
    "unknown scheduler": (
        GRID + "early_terminate: {type: hyperband}\n",
        "4: early_terminate.type: unknown value 'hyperband' (text); known: none, asha",
    ),
    "eta of one": (GRID + "early_terminate: {eta: 1}\n", "4: early_terminate.eta: must be above 1, got 1.0"),
    "unknown metric": (
        GRID + "metric: {name: vall_loss}\n",
        "4: metric.name: unknown value 'vall_loss' (text); did you mean 'val_loss'?",
    ),
    "negative resources": (GRID + "resources: {gpu: -1}\n", "4: resources.gpu: must be at least 0, got -1.0"),
    "truth for a count": (
        GRID + "max_failures: true\n",
        "4: max_failures: expected a whole number, got True (true or false)",
    ),
    "empty section": (GRID + "wandb:\n", "4: wandb: is empty; leave it out"),
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_refused_with_its_line(write: Write, text: str, message: str) -> None:
    (problem,) = problems_of(write(text))
    assert problem.removeprefix("x.yaml:") == message


def test_every_error_comes_at_once_in_the_order_of_the_lines(write: Write) -> None:
    text = """\
name: x y
metric: {goal: minimise}
parameters:
  fromat: {values: [E4M3]}
  format: {values: [E4M33, 3]}
  lr: {values: [1e-3, fast, 0]}
run: {stesp: 3}
lanes: [sed]
control: {optimizer: sgd}
exclude: [{formt: E4M3}]
early_terminate: {scope: cel}
"""
    places = [problem.partition(": ")[0] for problem in problems_of(write(text))]
    assert places == [f"x.yaml:{line}" for line in (1, 2, 4, 5, 5, 6, 6, 7, 8, 9, 10, 11)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("quickstrat.yaml", None, "quickstrat.yaml: no such file; did you mean 'quickstart.yaml'?"),
        ("latin.yaml", "name: caf\xe9\n".encode("latin-1"), "latin.yaml: is not UTF-8 text (byte 9)"),
        ("folder", "", "folder: cannot be read: Is a directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").touch()
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        (tmp_path / name).mkdir()
    assert problems_of(Path(name)) == [message]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1", 1.0), ("+1.5E+3", 1500.0), (".5", 0.5), ("1_0", 10.0), ("010", 10.0), ("0x10", 16.0)],
)
def test_numbers_are_those_of_yaml_1_2(write: Write, text: str, value: float) -> None:
    spec = load_space(write(GRID + f"run:\n  lr: {text}\n"))
    assert spec.run["lr"] == value
    assert isinstance(spec.run["lr"], float)


def parameter_values(spec: SweepSpec) -> dict[str, tuple[Any, ...]]:
    return {parameter.name: parameter.values for parameter in spec.parameters}


def test_defaults_and_roles(write: Write) -> None:
    text = (
        "name: x\nparameters:\n  seed: {values: [1, 2]}\n  lr: {value: 1e-3}\n  storage: {values: [master, nearest]}\n"
    )
    spec = load_space(write(text))
    assert spec.roles == {"storage": "scientific", "seed": "replicate", "lr": "nuisance"}
    assert spec.lanes == ("seed",)
    assert spec.control == {"format": "fp32", "optimizer": "adamw", "storage": "master", "layers": "all"}
    assert spec.notes == (
        "the file leaves the control open; added {format: fp32, optimizer: adamw, storage: master, layers: all}",
    )
    assert (spec.method, spec.seed, spec.run_cap, spec.max_failures) == ("grid", 0, None, 2)
    assert (spec.early_terminate.type, spec.wandb.mode, spec.resources.cpu) == ("none", "auto", 1.0)


def test_a_control_that_is_written_out_needs_no_note(write: Write) -> None:
    control = "control: {format: E4M3, optimizer: adamw, storage: master, layers: mlp}\n"
    spec = load_space(write(GRID + control))
    assert spec.notes == ()
    assert spec.control == {"format": "E4M3", "optimizer": "adamw", "storage": "master", "layers": "mlp"}


def test_values_are_held_as_the_config_holds_them(write: Write) -> None:
    rules = "  layers: {values: [all, [{match: '*.attn.*'}]]}\n  lr: {values: [1]}\n"
    assert parameter_values(load_space(write(GRID + rules)))["layers"] == (
        "all",
        [{"match": "*.attn.*", "format": None}],
    )
    assert repr(parameter_values(load_space(write(GRID + rules)))["lr"]) == "(1.0,)"


RULES = '[{match: "*.attn.*", format: E5M2}]'
OVERRIDES = {
    "fixes a parameter": (["format=E5M2"], lambda spec: parameter_values(spec)["format"], ("E5M2",)),
    "gives several values": (["format=[E5M2, E4M3]"], lambda spec: parameter_values(spec)["format"], ("E5M2", "E4M3")),
    "keeps a role": (["lr=1e-2"], lambda spec: spec.roles["lr"], "scientific"),
    "reads YAML": (["lr=1e-2"], lambda spec: parameter_values(spec)["lr"], (0.01,)),
    "takes rules as one value": (
        [f"layers={RULES}"],
        lambda spec: parameter_values(spec)["layers"],
        ([{"match": "*.attn.*", "format": "E5M2"}],),
    ),
    "takes a list of rules as several": (
        [f"layers=[all, {RULES}]"],
        lambda spec: len(parameter_values(spec)["layers"]),
        2,
    ),
    "reaches a section": (["early_terminate.scope=sweep"], lambda spec: spec.early_terminate.scope, "sweep"),
    "makes a section": (["wandb.project=a=b"], lambda spec: spec.wandb.project, "a=b"),
    "prefers the file's own key": (["seed=3"], lambda spec: spec.seed, 3),
    "reaches a run field": (["steps=7"], lambda spec: spec.run["steps"], 7),
    "reaches a nested run field": (["model.n_layer=1"], lambda spec: spec.run["model"], {"n_layer": 1, "n_head": 2}),
    "reaches run by name": (["run.seed=5"], lambda spec: spec.run["seed"], 5),
    "reaches a parameter's keys": (["parameters.lr.role=nuisance"], lambda spec: spec.roles["lr"], "nuisance"),
    "adds a parameter": (["parameters.beta1.value=0.5"], lambda spec: parameter_values(spec)["beta1"], (0.5,)),
    "replaces a list": (["lanes=[lr]", "parameters.lr.role=nuisance"], lambda spec: spec.lanes, ("lr",)),
    "the last one wins": (["steps=7", "steps=9"], lambda spec: spec.run["steps"], 9),
    "drops rules about values that are gone": (["format=E4M3"], lambda spec: spec.exclude, ()),
}


@pytest.mark.parametrize(("overrides", "read", "value"), OVERRIDES.values(), ids=OVERRIDES)
def test_an_override(write: Write, overrides: list[str], read: Callable[[SweepSpec], Any], value: Any) -> None:
    extra = "  lr: {values: [1e-3], role: scientific}\n  layers: {values: [all]}\n"
    rest = "exclude: [{format: fp32, lr: 1e-3}]\nrun: {steps: 3, model: {n_layer: 2, n_head: 2}}\n"
    assert read(load_space(write(GRID + extra + rest), overrides)) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("frmat=E4M3", "override 'frmat=E4M3': unknown key 'frmat'; did you mean 'format'?"),
        ("format=E4M4", "override 'format=E4M4': parameters.format.value: unknown format 'E4M4'; did you mean 'E4M3'?"),
        ("format=[]", "override 'format=[]': parameters.format.values: an empty grid; list at least one value"),
        ("stesp=3", "override 'stesp=3': unknown key 'stesp'; did you mean 'steps'?"),
        ("model.n_lyer=3", "override 'model.n_lyer=3': run.model.n_lyer: unknown key; did you mean 'n_layer'?"),
        ("steps=-3", "override 'steps=-3': run.steps: must be at least 1, got -3"),
        ("wandb.mod=3", "override 'wandb.mod=3': wandb.mod: unknown key; did you mean 'mode'?"),
        ("steps", "override 'steps': expected key=value"),
        ("lr=[1", "override 'lr=[1': while parsing a flow sequence: expected ',' or ']', but got '<stream end>'"),
        ("name.x=1", "override 'name.x=1': name: holds a single value, no keys"),
    ],
)
def test_a_bad_override_is_named(write: Write, override: str, message: str) -> None:
    assert problems_of(write(GRID), override) == [message]


def test_an_override_is_not_blamed_for_what_it_leaves(write: Write) -> None:
    text = GRID + "  lr: {value: 1e-3, role: nuisanse}\n"
    message = "x.yaml:4: parameters.lr.role: unknown value 'nuisanse' (text); did you mean 'nuisance'?"
    assert problems_of(write(text), "lr=1e-2") == [message]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_is_written_down_reads_back_the_same(tmp_path: Path, path: Path) -> None:
    spec = load_space(path)
    with (tmp_path / "sweep.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(spec.to_dict(), file)
    assert load_space(tmp_path / "sweep.yaml") == spec


@settings(max_examples=25, deadline=None)
@given(
    formats=st.lists(st.sampled_from(["fp32", "bf16", "E4M3", "E7M0"]), min_size=1, unique=True),
    optimizers=st.lists(st.sampled_from(["adamw", "manifold_adamw", "grid"]), min_size=1, unique=True),
    storages=st.lists(st.sampled_from(["master", "nearest", "stochastic"]), min_size=1, unique=True),
    heads=st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True),
)
def test_the_excludes_that_are_suggested_are_enough(
    tmp_path_factory: pytest.TempPathFactory,
    formats: list[str],
    optimizers: list[str],
    storages: list[str],
    heads: list[int],
) -> None:
    path = tmp_path_factory.mktemp("space") / "x.yaml"
    text = f"name: x\nparameters:\n  format: {{values: {formats}}}\n  optimizer: {{values: {optimizers}}}\n"
    text += f"  storage: {{values: {storages}}}\n  model.n_head: {{values: {heads}}}\nrun: {{model: {{n_embd: 64}}}}\n"
    path.write_text(text)
    if (error := error_of(path)) is None:
        return
    rules = [problem.message.partition("add to exclude: ")[2] for problem in error.problems]
    if not all(rules):
        assert "no combination can run" in str(error) or "control: cannot run" in str(error)
        return
    path.write_text(text + "exclude:\n" + "".join(f"  {rule}\n" for rule in rules))
    second = error_of(path)
    assert second is None or [problem.message for problem in second.problems] == ["every combination is excluded"]


def test_reading_a_space_needs_neither_torch_nor_ray_nor_pyarrow() -> None:
    code = "import sys, orchestrator.plan; print({'torch', 'ray', 'pyarrow', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_space_written_as_it_was_resolved_loads_as_the_same(path: Path, tmp_path: Path) -> None:
    spec = load_space(path)
    (tmp_path / "sweep.yaml").write_text(dump_yaml(spec.to_dict()))
    assert load_space(tmp_path / "sweep.yaml") == spec
