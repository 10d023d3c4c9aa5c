"""``altgrad query``: what it prints and writes, in each format, over one run and several, and how it refuses."""

import csv
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_sweep import Sweep

from orchestrator.cli import main
from orchestrator.results import load
from orchestrator.results.named import NAMED
from orchestrator.results.store import ChunkWriter, Store
from orchestrator.terminal import ENVIRONMENT, INTEGRITY, OK, USAGE

# The command takes its words from sys.argv, as it does outside of tests.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

ROWS = "SELECT key, step, val_loss FROM steps WHERE step IN (1, 400) ORDER BY step"
EXPECTED = [{"key": "k0000", "step": 1, "val_loss": None}, {"key": "k0000", "step": 400, "val_loss": 2.5}]


class Said(NamedTuple):
    """How the command ended, and what it said."""

    code: int
    out: bytes
    err: str


@pytest.fixture
def altgrad(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture) -> Callable[..., Said]:
    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["altgrad", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfdbinary.readouterr()
        return Said(int(ended.value.code or 0), captured.out, captured.err.decode())

    return run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return make(tmp_path / "runs" / "quickstart", 2.5)


def make(folder: Path, loss: float) -> Path:
    sweep = Sweep(Store.open(folder))
    sweep.train(sweep.add_pack(), [loss])
    return folder


def read(data: bytes, format: str) -> list[dict]:
    """The rows of a file in one of the formats."""
    match format:
        case "json":
            return json.loads(data, parse_constant=lambda text: pytest.fail(f"no JSON: {text}"))
        case "csv":
            rows = csv.DictReader(io.StringIO(data.decode()))
            return [
                {**row, "step": int(row["step"]), "val_loss": float(row["val_loss"]) if row["val_loss"] else None}
                for row in rows
            ]
        case "parquet":
            return pq.read_table(pa.BufferReader(data)).to_pylist()
        case "arrow":
            return pa.ipc.open_file(data).read_all().to_pylist()
    header, _, *lines = data.decode().splitlines()
    names = [name.strip() for name in header.strip("|").split("|")]
    rows = [dict(zip(names, map(str.strip, line.strip("|").split("|")), strict=True)) for line in lines]
    return [
        {**row, "step": int(row["step"]), "val_loss": None if row["val_loss"] == "-" else float(row["val_loss"])}
        for row in rows
    ]


@pytest.mark.parametrize("format", ["json", "csv", "markdown", "parquet", "arrow"])
def test_every_format_holds_the_same_rows(altgrad: Callable[..., Said], run: Path, format: str) -> None:
    said = altgrad("query", run, ROWS, "--format", format)
    assert (said.code, said.err) == (OK, "")
    assert read(said.out, format) == EXPECTED


@pytest.mark.parametrize(
    ("name", "format"),
    [("a.csv", "csv"), ("a.JSON", "json"), ("a.md", "markdown"), ("x/a.parquet", "parquet"), ("a.arrow", "arrow")],
)
def test_a_file_has_the_format_of_its_suffix(altgrad: Callable[..., Said], run: Path, name: str, format: str) -> None:
    said = altgrad("query", run, ROWS, "--out", name)
    assert (said.code, said.out) == (OK, b"")
    assert read(Path(name).read_bytes(), format) == EXPECTED


def test_a_format_that_is_named_is_not_the_suffixs(altgrad: Callable[..., Said], run: Path) -> None:
    assert altgrad("query", run, ROWS, "--out", "rows.txt", "--format", "json").code == OK
    assert read(Path("rows.txt").read_bytes(), "json") == EXPECTED


def test_a_file_is_left_as_it_was_where_the_query_fails(altgrad: Callable[..., Said], run: Path) -> None:
    Path("rows.csv").write_text("before")
    assert altgrad("query", run, "SELECT nope FROM steps", "--out", "rows.csv").code == USAGE
    assert Path("rows.csv").read_text() == "before"
    assert sorted(path.name for path in Path().iterdir()) == ["rows.csv", "runs"]


def test_without_a_format_it_is_a_table(altgrad: Callable[..., Said], run: Path) -> None:
    lines = altgrad("query", "quickstart", ROWS).out.decode().splitlines()
    assert [line.replace("│", " ").split() for line in lines[3:5]] == [["k0000", "1", "-"], ["k0000", "400", "2.5"]]


@pytest.mark.parametrize(
    ("sql", "value", "text"),
    [
        ("'NaN'::FLOAT", None, ""),
        ("'-inf'::DOUBLE", None, ""),
        ("0.1::FLOAT", 0.10000000149011612, "0.1"),
        ("0.1::DOUBLE", 0.1, "0.1"),
        ("sum(9007199254740993)", 9007199254740993, "9007199254740993"),
        ("1.25::DECIMAL(5, 2)", 1.25, "1.25"),
        ("[1.5, NULL, 'nan'::DOUBLE]", [1.5, None, None], "[1.5, null, null]"),
        ("{'a': 1, 'b': 'x'}", {"a": 1, "b": "x"}, '{"a": 1, "b": "x"}'),
        ("MAP {'a': 1}", [["a", 1]], '[["a", 1]]'),
        ("TIMESTAMP '2026-01-02 03:04:05'", "2026-01-02T03:04:05", "2026-01-02T03:04:05"),
        ("DATE '2026-01-02'", "2026-01-02", "2026-01-02"),
        ("INTERVAL 90 SECOND", None, None),
        ("'\\xFF'::BLOB", "ff", "ff"),
        ("true", True, "True"),
        ("'a,\"b'", 'a,"b', 'a,"b'),
    ],
)
def test_values_beyond_plain_numbers(
    altgrad: Callable[..., Said], run: Path, sql: str, value: object, text: str | None
) -> None:
    (found,) = json.loads(altgrad("query", run, f"SELECT {sql} AS x", "--format", "json").out)
    (row,) = csv.DictReader(io.StringIO(altgrad("query", run, f"SELECT {sql} AS x", "--format", "csv").out.decode()))
    if text is None:
        assert "90" in row["x"]
    else:
        assert (found["x"], row["x"]) == (value, text)


def test_markdown_shows_text_as_it_is(altgrad: Callable[..., Said], run: Path) -> None:
    said = altgrad("query", run, "SELECT 'a|b*c' AS \"x|y\"", "--format", "markdown")
    assert said.out.decode().splitlines() == [r"| x\|y |", "| --- |", r"| a\|b\*c |"]


def test_no_rows_are_an_empty_answer(altgrad: Callable[..., Said], run: Path) -> None:
    for format, out in (("json", b"[]\n"), ("csv", b"key\n"), ("markdown", b"| key |\n| --- |\n")):
        assert altgrad("query", run, "SELECT key FROM steps WHERE false", "--format", format).out == out


# --- several runs, and names


def test_several_runs_have_a_column_that_tells_them_apart(altgrad: Callable[..., Said], run: Path) -> None:
    make(Path("monday/quickstart"), 3.5)
    sql = "SELECT run, val_loss FROM trials ORDER BY run"
    said = altgrad("query", run, "monday/quickstart", sql, "--format", "csv")
    assert said.out.decode().splitlines() == ["run,val_loss", "monday/quickstart,3.5", "runs/quickstart,2.5"]
    named = altgrad("query", run, "monday/quickstart", "@best", "--format", "json")
    assert [(row["run"], row["val_loss"]) for row in json.loads(named.out)] == [
        ("runs/quickstart", 2.5),
        ("monday/quickstart", 3.5),
    ]


def test_names_are_listed_without_a_run(altgrad: Callable[..., Said], tmp_path: Path) -> None:
    said = altgrad("query", "--list")
    assert said.code == OK
    for name, each in NAMED.items():
        assert f"@{name} " in said.out.decode()
        assert each.description in said.out.decode()
    listed = json.loads(altgrad("query", "--list", "--format", "json").out)
    assert [row["name"] for row in listed] == [f"@{name}" for name in NAMED]


def test_reading_needs_neither_ray_nor_torch(
    altgrad: Callable[..., Said], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("ray", "torch"):
        monkeypatch.setitem(sys.modules, module, None)
    assert altgrad("query", run, "@stalls").code == OK
    assert altgrad("consolidate", run).code == OK


# --- misuse


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a run, then ask"),
        (["{run}"], "name a run, then ask"),
        (["{run}", "quickstart"], "quickstart is a run: SQL or the @name of a query is missing after it"),
        (["{run}", "SELECT nope FROM steps"], 'Referenced column "nope" not found'),
        (["{run}", "@stals"], "did you mean @stalls?"),
        (["nowhere", "SELECT 1"], "no sweep in 'nowhere'"),
        (["~nobody-at-all/x", "SELECT 1"], "no sweep in '~nobody-at-all/x'"),
        (["{run}", "{run}", "SELECT 1"], "quickstart is given twice"),
        (["{run}", "runs/quickstart", "SELECT 1"], "quickstart is given twice"),
        (["{run}", "SELECT 1", "--timeout", "0"], "needs some seconds to answer in, got 0"),
        (["{run}", "SELECT 1", "--timeout", "nan"], "needs some seconds to answer in, got nan"),
        (["{run}", "SELECT 1", "--memory", "lots"], "'lots' is not a size; write 500MB"),
        (["{run}", "SELECT max(a) FROM range(1e14::BIGINT) t(a)", "--timeout", "0.1"], "no answer within 0.1 s"),
        (["{run}", "SELECT array_agg(a) FROM range(100000000) t(a)", "--memory", "30MB"], "not enough memory"),
        (["{run}", "SELECT 1", "--out", "rows.xlsx"], "does not say which format"),
        (["{run}", "SELECT 1", "--out", "runs"], "runs is a folder: --out names a file"),
        (["{run}", "SELECT 1", "--out", "a.md", "--format", "table"], "a table is for the terminal"),
    ],
)
def test_misuse_is_answered_in_words(altgrad: Callable[..., Said], run: Path, words: list[str], message: str) -> None:
    said = altgrad("query", *(word.format(run=run) for word in words))
    assert (said.code, said.out) == (USAGE, b"")
    assert f"{message}" in said.err
    assert all(line.startswith("error: ") for line in said.err.splitlines())


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_binary_formats_are_nothing_for_a_terminal(
    altgrad: Callable[..., Said], run: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    said = altgrad("query", run, "SELECT 1", "--format", format)
    assert (said.code, said.out) == (USAGE, b"")
    assert f"{format} is nothing for a terminal: name a file with --out" in said.err


TWINS = "SELECT a.seed, b.seed, 1 AS x, 2 AS x FROM trials a JOIN trials b USING (cell)"


@pytest.mark.parametrize(
    ("format", "line"), [("table", "│ 0    │ 0    │ 1 │ 2 │"), ("csv", "0,0,1,2"), ("markdown", "| 0 | 0 | 1 | 2 |")]
)
def test_columns_of_one_name_keep_their_own_values(
    altgrad: Callable[..., Said], run: Path, format: str, line: str
) -> None:
    said = altgrad("query", run, TWINS, "--format", format)
    assert (said.code, said.err) == (OK, "")
    assert line in said.out.decode().splitlines()


@pytest.mark.parametrize("format", ["json", "parquet", "arrow"])
def test_columns_of_one_name_are_refused_where_values_are_found_by_it(
    altgrad: Callable[..., Said], run: Path, format: str
) -> None:
    said = altgrad("query", run, TWINS, "--out", f"answer.{format}")
    assert (said.code, said.out) == (USAGE, b"")
    assert "several are called seed, x: name them with AS" in said.err
    assert not Path(f"answer.{format}").exists()


def test_a_damaged_chunk_is_named_and_what_is_left_is_shown(altgrad: Callable[..., Said], run: Path) -> None:
    ChunkWriter(Store.open(run), "p000", 1).append("steps", {"key": ["k0000"], "step": [401]})
    (run / "packs/p000/attempt-1/steps-000000.parquet").write_bytes(b"not a table")
    said = altgrad("query", run, "SELECT count(*) AS n FROM steps", "--format", "json")
    assert (said.code, json.loads(said.out)) == (OK, [{"n": 1}])
    assert "damaged, left out" in said.err
    assert altgrad("consolidate", run).code == INTEGRITY


def test_altered_bytes_of_the_dataset_are_made_again_or_an_error(altgrad: Callable[..., Said], run: Path) -> None:
    load(run)
    for is_there in (True, False):
        path = run / "dataset/steps/p000.parquet"
        data, facts = bytearray(path.read_bytes()), path.stat()
        data[data.index(b"(\xb5\x2f\xfd") + 12] ^= 1
        path.write_bytes(bytes(data))
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        if not is_there:
            Store.open(run).delete("packs")
        asked = ("query", run, "SELECT count(DISTINCT key) AS n FROM steps", "--format", "csv")
        assert altgrad(*asked)[:2] == ((OK, b"n\n1\n") if is_there else (INTEGRITY, b""))
    assert "dataset/steps/p000.parquet" in altgrad(*asked).err


def test_results_of_a_later_version_are_refused(altgrad: Callable[..., Said], run: Path) -> None:
    newer = pa.table({"key": ["k0000"], "step": [401]}).replace_schema_metadata({"altgrad_schema": "7"})
    pq.write_table(newer, run / "packs/p000/attempt-1/steps-000001.parquet")
    said = altgrad("query", run, "SELECT 1")
    assert (said.code, said.out) == (ENVIRONMENT, b"")
    assert "schema version 7, this program reads up to 1: use a newer altgrad" in said.err
