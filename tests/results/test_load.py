"""A sweep's tables as Arrow, the recipes on the page that tells of them, and that page's generated parts."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from markdown_it import MarkdownIt
from synthetic_sweep import Sweep

from orchestrator.results import Tables, dictionary, load
from orchestrator.results.errors import DamagedError
from orchestrator.results.matrix import matrix
from orchestrator.results.schema import SCHEMAS
from orchestrator.results.store import ChunkWriter, Store


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A run under the name that the page gives it, seen from the folder above ``runs``."""
    monkeypatch.chdir(tmp_path)
    sweep = Sweep(Store.open(tmp_path / "runs" / "quickstart"))
    losses = iter([2.0, 2.2, 2.5, 2.7, 3.0, 3.4, 1.5, 1.7])
    for format in ("E4M3", "E5M2"):
        for lr in (0.001, 0.01):
            sweep.train(sweep.add_pack(lanes=2, format=format, lr=lr), [next(losses), next(losses)])
    return sweep


@pytest.mark.parametrize("where", ["runs/quickstart", "quickstart", "file://{}/runs/quickstart"])
def test_a_run_is_found_by_path_name_and_uri(trained: Sweep, tmp_path: Path, where: str) -> None:
    assert load(where.format(tmp_path)).trials.num_rows == 8
    assert load(tmp_path / "runs" / "quickstart").trials.num_rows == 8


def test_each_table_has_its_schema_and_is_read_once(trained: Sweep) -> None:
    run = load("quickstart")
    assert isinstance(run, Tables)
    for table, schema in SCHEMAS.items():
        assert getattr(run, table).schema.equals(schema)
        assert getattr(run, table) is getattr(run, table)
    assert (run.steps.num_rows, run.layers.num_rows, run.events.num_rows) == (3200, 0, 8)
    assert run.steps.filter(pa.compute.field("key") == "k0000")["step"].to_pylist() == [*range(1, 401)]


def test_a_table_is_read_only_when_it_is_asked_for(trained: Sweep) -> None:
    load("quickstart")
    trained.store.write_bytes("dataset/steps/p000.parquet", b"not a table")
    run = load("quickstart", refresh=False)
    assert run.trials.num_rows == 8
    with pytest.raises(DamagedError, match=r"dataset/steps/p000\.parquet"):
        _ = run.steps


def test_new_rows_are_seen_unless_nothing_may_be_written(trained: Sweep) -> None:
    load("quickstart")
    ChunkWriter(trained.store, "p000", 1).append("steps", {"key": ["k0000"], "step": [401], "loss": [0.5]})
    before = trained.store.facts()
    assert load("quickstart", refresh=False).steps.num_rows == 3200
    assert trained.store.facts() == before
    assert load("quickstart").steps.num_rows == 3201


def test_damaged_chunks_are_named(trained: Sweep) -> None:
    path = "packs/p000/attempt-1/steps-000000.parquet"
    trained.store.write_bytes(path, b"not a table")
    run = load("quickstart")
    assert [chunk.path for chunk in run.damaged] == [path]
    assert run.steps.num_rows == 2800


def test_where_there_is_no_run_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no sweep in 'nothing'"):
        load("nothing")


def test_reading_needs_neither_ray_nor_torch(trained: Sweep) -> None:
    program = (
        "import sys; import orchestrator.results; assert 'pyarrow' not in sys.modules\n"
        "from orchestrator.results import load; from orchestrator.results.named import ask\n"
        "run = load('quickstart'); assert len(ask(run.store, '@best')) == len(run.trials) // 2\n"
        "assert not {'ray', 'torch', 'altgrad', 'wandb'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


# --- the page

PROGRAMS = [
    token.content
    for token in MarkdownIt("commonmark").parse(dictionary.PATH.read_text(encoding="utf-8"))
    if token.type == "fence" and token.info == "python"
]


def made_by(name: str) -> Any:
    """What the one program on the page that makes a variable of this name makes of it."""
    (program,) = (program for program in PROGRAMS if f"\n{name} =" in program)
    names: dict[str, Any] = {}
    exec(compile(program, "results.md", "exec"), names)
    return names[name]


def test_the_recipe_for_pandas_gives_the_matrix(trained: Sweep) -> None:
    found: pd.DataFrame = made_by("matrix")
    cells = matrix(trained.store).cells
    assert {cell.row: cell.mean for cell in cells.values()} == pytest.approx(found["adamw"]["master"].to_dict())
    assert found["adamw"]["master"].to_dict() == pytest.approx({"E4M3": 2.1, "E5M2": 1.6})


def test_the_recipe_for_polars_gives_curves(trained: Sweep) -> None:
    curves = made_by("curves")
    assert curves.columns == ["format", "step", "loss"]
    assert curves.height == 800
    assert curves.filter(format="E5M2", step=1)["loss"].to_list() == [5.0]


def test_the_recipes_for_arrow_and_sql_run(trained: Sweep) -> None:
    assert made_by("ends").to_pylist() == [
        {"cell": f"{format} adamw master", "reason": "completed", "key_count": 4} for format in ("E4M3", "E5M2")
    ]
    assert made_by("longest") == 400
    assert len(made_by("slowest")) == 8


def test_the_generated_parts_of_the_page_are_current() -> None:
    page = dictionary.PATH.read_text(encoding="utf-8")
    assert dictionary.document(page) == page, f"out of date: run `{dictionary.COMMAND}`"
    assert dictionary.columns() in page
    assert dictionary.questions() in page


def test_every_column_has_its_meaning_on_the_page() -> None:
    text = dictionary.columns()
    assert text.count("\n| `") == sum(len(schema) for schema in SCHEMAS.values())
    assert "| `val_loss` | float | Last validation loss. |" in text


def test_the_page_is_printed_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    stale = dictionary.document(dictionary.PATH.read_text(encoding="utf-8")).replace("| `key` |", "| `cay` |")
    monkeypatch.setattr(dictionary, "PATH", tmp_path / "page.md")
    dictionary.PATH.write_text(stale)
    dictionary.main([])
    assert "| `key` |" in capsys.readouterr().out
    assert dictionary.PATH.read_text() == stale
    dictionary.main(["--write"])
    assert "`cay`" not in dictionary.PATH.read_text()
