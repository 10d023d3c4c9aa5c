"""TEST_MATRIX.md is what the program says of itself today."""

import difflib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from altgrad.training.config import RunConfig
from orchestrator.facts import decisions
from orchestrator.facts.markdown import code, escape, inert, number, prose, table
from orchestrator.facts.sources import doc_comments
from orchestrator.facts.steering import optimizer_forms, steering_fields
from orchestrator.facts.tested_where import Reach, reach
from orchestrator.results.schema import EVENT_KINDS
from orchestrator.test_matrix import COMMAND, PATH, document, main, refusal

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
TEXTS = st.text(st.sampled_from("ab_*|`\\<>&~[]()!#-+.1 \n"), max_size=20)


def test_the_page_in_the_repository_is_current():
    kept, now = PATH.read_text(encoding="utf-8").splitlines(), document().splitlines()
    changed = list(difflib.unified_diff(kept, now, "kept", "now", lineterm="", n=0))[:20]
    assert not changed, "\n".join([f"{PATH.name} is out of date: run `{COMMAND}`", *changed])


def test_the_page_is_printed_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr("orchestrator.test_matrix.document", lambda: "the page\n")
    monkeypatch.setattr("orchestrator.test_matrix.PATH", tmp_path / "page.md")
    main([])
    assert capsys.readouterr().out == "the page\n"
    assert not (tmp_path / "page.md").exists()
    main(["--write"])
    assert (tmp_path / "page.md").read_text() == "the page\n"


SCHEDULE = {"warmup_steps", "steps", "min_lr_ratio"}
ADAM = {"lr", "beta1", "beta2", "eps"} | SCHEDULE
STEERED = [
    ("adamw", ADAM | {"weight_decay"}),
    ("manifold_adamw, gradient", ADAM | {"weight_decay", "precondition"}),
    ("manifold_adamw, update", ADAM | {"weight_decay", "precondition", "rung_lr"}),
    ("muon", {"lr", "weight_decay", "muon_momentum"} | SCHEDULE),
    ("grid", SCHEDULE | {"weight_decay", "seed", "grid_scale", "grid_momentum", "rung_clip"}),
]


def test_every_form_of_every_optimizer_is_known():
    assert list(optimizer_forms()) == [form for form, _ in STEERED]


@pytest.mark.parametrize(("form", "fields"), STEERED)
def test_the_fields_that_steer_an_optimizer_are_those_of_its_formula(form: str, fields: set[str]):
    assert steering_fields(optimizer_forms()[form]) == fields


@pytest.mark.parametrize("form", [form for form, _ in STEERED if form != "grid"])
def test_vectors_take_the_step_of_adamw(form: str):
    assert steering_fields(optimizer_forms()[form], is_matrix=False) == ADAM


def test_vectors_take_the_step_of_adamw_under_grid_too():
    assert steering_fields(optimizer_forms()["grid"], is_matrix=False) == ADAM


@pytest.mark.parametrize(
    ("format", "optimizer", "storage", "why"),
    [
        ("E4M3", "adamw", "stochastic", None),
        ("E4M3", "grid", "nearest", None),
        ("E4M3", "grid", "master", "grid keeps weights on the grid by nature: storage must be 'nearest'"),
        ("bf16", "grid", "nearest", "grid moves whole rungs of an 8-bit format"),
        ("fp32", "adamw", "nearest", "'nearest' has no meaning for fp32: float32 weights are their own masters"),
    ],
)
def test_a_combination_that_cannot_run_has_its_reason(format: str, optimizer: str, storage: str, why: str | None):
    assert refusal(format, optimizer, storage) == why


def test_every_rule_says_something_about_its_events():
    said = decisions.examples()
    assert set(EVENT_KINDS) - set(said) == {"completed", "failed"}
    assert all(said.values())


def cells_of(markdown: str) -> list[str]:
    """What a reader sees in the only row of a table."""
    inline = [token for token in MARKDOWN.parse(markdown) if token.type == "inline"]
    children = [[*token.children] for token in inline]
    assert all(child.type in ("text", "text_special", "code_inline") for row in children for child in row)
    return ["".join(child.content for child in row) for row in children][2:]


@given(TEXTS, TEXTS)
def test_escaped_text_is_seen_as_it_is(left: str, right: str):
    assert cells_of(table(["a", "b"], [[escape(left), escape(right)]])) == [" ".join(t.split()) for t in (left, right)]


@given(TEXTS.filter(str.strip))
def test_inert_text_is_a_paragraph_also_where_it_begins_one(text: str):
    tokens = MARKDOWN.parse(inert(text))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    seen = "".join(child.content for child in tokens[1].children or ())
    assert seen.replace("\u200b", "") == " ".join(text.split())


@given(TEXTS.filter(str.strip), TEXTS.filter(str.strip))
def test_code_is_seen_as_it_is(left: str, right: str):
    assert cells_of(table(["a", "b"], [[code(left), code(right)]])) == [" ".join(t.split()) for t in (left, right)]


def test_what_stands_between_backticks_becomes_code():
    text = prose("``a|b`` of `*c*` is |d|")
    assert cells_of(table(["a", "b"], [[text, ""]])) == ["a|b of *c* is |d|", ""]
    assert text.count("`") == 4


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (448.0, "448"),
        (127 / 128, "0.9921875"),
        (6442450944.0, "6442450944"),
        (1.0, "1"),
        (0.5, "2^-1"),
        (2.0**-149, "2^-149"),
        (2.0**64, "2^64"),
        (3.3895313892515355e38, "3.38953e+38"),
    ],
)
def test_numbers_are_shown_in_full_where_they_are_short(value: float, shown: str):
    assert number(value) == shown


def test_comments_belong_to_the_name_below_them():
    comments = doc_comments(RunConfig)
    assert comments["lr"] == "Peak learning rate."
    assert "beta1" not in comments


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    files = {
        "pyproject.toml": '[tool.pytest.ini_options]\ntestpaths = ["tests", "altgrad"]\n',
        "altgrad/__init__.py": "",
        "altgrad/wing/__init__.py": "from altgrad.wing.inside import thing\n",
        "altgrad/wing/inside.py": "thing = 1\n",
        "altgrad/shown.py": '"""\n>>> 1\n1\n"""\n',
        "altgrad/helped.py": "x = 1\n",
        "orchestrator/started.py": '"""\n>>> 1\n1\n"""\n',
        "orchestrator/user.py": "from altgrad import used\n",
        "altgrad/used.py": "x = 1\n",
        "tests/help.py": "import altgrad.helped\n",
        "tests/part/test_a.py": "from altgrad.wing import thing\nimport help\n",
        "tests/test_b.py": '"""altgrad.used"""\nprogram = "import altgrad.shown; orchestrator/started.py"\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("altgrad.wing", Reach(("part/test_a",), False, ())),
        ("altgrad.wing.inside", Reach(("part/test_a",), False, ("altgrad.wing",))),
        ("altgrad.helped", Reach(("part/test_a",), False, ())),
        ("altgrad.shown", Reach(("test_b",), True, ())),
        ("orchestrator.started", Reach(("test_b",), False, ())),
        ("altgrad.used", Reach((), False, ("orchestrator.user",))),
    ],
    ids=["package", "through its package", "through a helper", "in a string", "as a path", "in a docstring only"],
)
def test_a_module_is_reached_by_imports_strings_and_helpers(repository: Path, module: str, expected: Reach):
    assert reach(repository)[module] == expected


def test_empty_files_need_no_tests(repository: Path):
    assert "altgrad" not in reach(repository)
