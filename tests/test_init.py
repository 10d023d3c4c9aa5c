"""`altgrad init`: what it writes loads, says what it means, and runs no combination without a meaning."""

import itertools
from pathlib import Path

import pytest
from command import Command
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from altgrad.training.config import OPTIMIZER_NAMES, RunConfig
from orchestrator.init_space import InitError, Wish, space_text, write_space
from orchestrator.space import SweepSpec, load_space
from orchestrator.space.combinations import drafts, excluded_cells

WISH = {
    "formats": "fp32,E4M3,E5M2",
    "optimizers": "adamw,grid",
    "storage": "master,nearest",
    "seeds": 3,
    "steps": 500,
    "lr": "1e-3,3e-3",
    "model": "2x64",
    "corpus": "stdlib",
}


CONTROL = ("adamw", "fp32", "master")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values(spec: SweepSpec) -> dict[str, tuple]:
    return {parameter.name: parameter.values for parameter in spec.parameters}


def test_the_flags_are_what_the_space_has(command: Command) -> None:
    flags = ["--formats", "fp32,E5M2", "--optimizers", "muon", "--storage", "master", "--seeds", "2", "--steps", "300"]
    done = command("init", "mine.yaml", *flags, "--lr", "2e-3,0.01", "--model", "4x128", "--corpus", "my text.txt")
    assert done.code == 0, done.err
    spec = load_space(Path("mine.yaml"))
    assert spec.name == "mine"
    assert values(spec) == {
        "format": ("fp32", "E5M2"),
        "optimizer": ("muon",),
        "storage": ("master",),
        "seed": (1, 2),
        "lr": (0.002, 0.01),
    }
    assert spec.roles["lr"] == "nuisance"
    assert spec.run["model"] == {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}
    assert (spec.run["steps"], spec.run["corpus"]) == (300, "my text.txt")
    assert spec.early_terminate.type == "asha"


def test_it_says_what_it_wrote_and_what_to_type_next(command: Command) -> None:
    done = command("init", "a b.yaml", "--formats", "E4M3")
    assert done.code == 2, "a blank cannot be in the name of a sweep"
    done = command("init")
    assert (done.code, done.out) == (0, "wrote my-first.yaml\n")
    assert done.err.splitlines()[-1] == "next: altgrad plan my-first.yaml"


def test_combinations_without_a_meaning_are_excluded_with_the_reason() -> None:
    spec = write_space(Path("x.yaml"), Wish(**WISH))
    left_out = {(cell["format"], cell["optimizer"], cell["storage"]): why for cell, why in excluded_cells(spec)}
    assert set(left_out) == {
        ("fp32", "adamw", "nearest"),
        ("fp32", "grid", "master"),
        ("fp32", "grid", "nearest"),
        ("E4M3", "grid", "master"),
        ("E5M2", "grid", "master"),
    }
    assert all(left_out.values())


def some(*names: str) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(names), min_size=1, unique=True).map(",".join)


@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    formats=some("fp32", "bf16", "E0M7", "E1M6", "E4M3"),
    optimizers=some(*OPTIMIZER_NAMES),
    storage=some("master", "nearest", "stochastic"),
    lr=some("1e-3", "3e-3", "0.01"),
    seeds=st.integers(1, 4),
    steps=st.integers(1, 3000),
)
def test_whatever_is_asked_for_loads_or_is_refused_by_the_name_of_a_flag(
    formats: str, optimizers: str, storage: str, lr: str, seeds: int, steps: int
) -> None:
    wish = Wish(formats, optimizers, storage, seeds, steps, lr, "1x32", "stdlib")
    file = Path("any.yaml")
    meant = any(itertools.starmap(_means_something, itertools.product(*_lists(optimizers, formats, storage))))
    if not meant or ("grid" in optimizers and "nearest" not in storage):
        with pytest.raises(InitError, match=r"^--"):
            write_space(file, wish, force=True)
        return
    spec = write_space(file, wish, force=True)
    assert all(len(line) <= 120 for line in file.read_text().splitlines() if "#" in line)
    run = set(itertools.product(*_lists(optimizers, formats, storage)))
    planned = {(c["optimizer"], c["format"], c["storage"]) for c in (d.scientific for d in drafts(spec))}
    assert planned == {combination for combination in run if _means_something(*combination)} | {CONTROL}


def _lists(*texts: str) -> list[list[str]]:
    return [text.split(",") for text in texts]


def _means_something(optimizer: str, number_format: str, storage: str) -> bool:
    """RunConfig's own answer; and that float32 has no spacing to step by."""
    try:
        RunConfig(optimizer=optimizer, format=number_format, storage=storage)
    except ValueError:
        return False
    return (optimizer, number_format) != ("manifold_adamw", "fp32")


def test_every_axis_is_explained() -> None:
    wish = Wish(**WISH | {"formats": "fp32,E0M7,E1M6", "optimizers": ",".join(OPTIMIZER_NAMES)})
    text = space_text(Path("x.yaml"), wish)
    for words in (
        "E0M7: 0 exponent and 7 mantissa bits",
        "same grid up to a factor of two",
        "every cell",
        "altgrad plan",
    ):
        assert words.removeprefix("every ") in text
    for name in (*OPTIMIZER_NAMES, "master", "nearest"):
        assert f"{name}: " in text
    assert "At steps 100, 200 and 400 the worse half" in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"formats": "E4M4"}, "--formats: unknown format 'E4M4'; did you mean 'E4M3'?"),
        ({"formats": "E4M3,,E5M2"}, "--formats: expected words with commas between them"),
        ({"formats": "E4M3,E4M3"}, "--formats: duplicate value"),
        ({"formats": "E4M3], x: ["}, "--formats: unknown format 'E4M3]'"),
        ({"formats": "E4M3\nrun_cap: 1"}, "--formats: expected words"),
        ({"formats": "fp32", "optimizers": "adamw", "storage": "nearest"}, "every combination is excluded"),
        ({"optimizers": "adamv"}, "--optimizers: unknown value 'adamv' (text); did you mean 'adamw'?"),
        ({"storage": "maste,nearest"}, "--storage: unknown value 'maste' (text); did you mean 'master'?"),
        ({"storage": "master"}, "--storage: the optimizer grid keeps its weights on the grid; add nearest"),
        ({"lr": "fast"}, "--lr: expected a number"),
        ({"lr": "-1"}, "--lr: must be above zero"),
        ({"seeds": 0}, "--seeds: at least one run"),
        ({"seeds": 10**9}, "--seeds: at most 1,000 runs of each configuration, got 1,000,000,000"),
        ({"steps": 0}, "--steps: must be at least 1, got 0"),
        ({"steps": 10**400}, "--steps: at most 1,000,000,000"),
        ({"model": "big"}, "--model: expected LAYERSxWIDTH, such as 4x128, got 'big'"),
        ({"model": "99999999x99999999999"}, "--model: at most 1,000 layers and a width of 100,000"),
        ({"model": f"2x{'9' * 5000}"}, "--model: expected LAYERSxWIDTH"),
    ],
    ids=str,
)
def test_a_flag_that_cannot_be_is_refused_by_its_name_and_nothing_is_written(
    flags: dict, said: str, command: Command, folder: Path
) -> None:
    words = [word for name, value in (WISH | flags).items() for word in (f"--{name}", str(value))]
    done = command("init", "x.yaml", *words)
    assert done.code == 2
    assert said.replace("(text)", "") in done.err.replace("(text)", ""), done.err
    assert done.out == ""
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("width", "heads"), [(32, 1), (64, 2), (128, 4), (384, 6), (100, 2), (33, 1)])
def test_heads_divide_the_width(width: int, heads: int) -> None:
    spec = write_space(Path("x.yaml"), Wish(**WISH | {"model": f"2x{width}"}))
    assert spec.run["model"]["n_head"] == heads


def test_a_file_that_is_there_is_replaced_only_by_force(command: Command, folder: Path) -> None:
    (folder / "mine.yaml").write_text("mine")
    refused = command("init", "mine.yaml")
    assert refused.code == 2
    assert "mine.yaml is there already; name another file, or replace it with --force" in refused.err
    assert (folder / "mine.yaml").read_text() == "mine"
    assert command("init", "mine.yaml", "--force").code == 0
    assert load_space(folder / "mine.yaml").name == "mine"


def test_a_folder_that_is_not_there_is_said_to_be_missing(command: Command) -> None:
    done = command("init", "nowhere/x.yaml")
    assert done.code == 2
    assert "there is no folder nowhere" in done.err
