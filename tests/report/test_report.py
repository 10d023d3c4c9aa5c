"""The report as a whole: from the command, on any storage, half way through, large, and without Ray, torch or a GPU."""

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from report.reported_sweep import Reported
from sweeps import altgrad, environment

from orchestrator.cli import reading
from orchestrator.cli.app import UsageError
from orchestrator.results.consolidate import consolidate
from orchestrator.results.report import charts
from orchestrator.results.report.writing import Report, check_place, report
from orchestrator.results.store import ChunkWriter, Store

NO_RAY = "import sys; sys.modules.update(ray=None, torch=None); "
STYLE = (Path(charts.__file__).parent / "style.css").read_text()


def test_the_command_writes_both_forms_into_the_runs_folder(folder: Path, made: Report, tmp_path: Path) -> None:
    program = f"{NO_RAY}sys.argv = ['altgrad', 'report', {str(folder)!r}]; from orchestrator.cli import main; main()"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [f"{folder}/report.html", f"{folder}/report.md"]
    assert (folder / "report.html").read_text() == made.html, "the same bytes for the same data"
    assert (folder / "report.md").read_text() == made.markdown


@pytest.mark.parametrize(
    ("runs", "out", "said"),
    [
        (0, None, "no run named"),
        (2, None, "say where it goes, such as --out report.html"),
        (1, "report.txt", "names an .html file"),
        (1, "nowhere/report.html", "in a folder that exists"),
        (1, "a\\b.html", "is not a path inside"),
        (2, "both.html", "is given twice"),
    ],
)
def test_mistakes_are_told(folder: Path, tmp_path: Path, runs: int, out: str | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        reading.report(*[str(folder)] * runs, out=tmp_path / out if out else None)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_the_same_however_its_path_is_spelled(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    for again in (folder.parent / ".." / folder.parent.name / folder.name, tmp_path / "link"):
        with pytest.raises(UsageError, match="is given twice"):
            reading.report(str(folder), str(again), out=tmp_path / "both.html")


@pytest.mark.parametrize("name", ["study.html", "study.md"])
def test_nobodys_file_is_written_over(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("# My own\n")
    with pytest.raises(UsageError, match=f"{name} was not made by altgrad report: move it away"):
        reading.report(str(folder), out=tmp_path / "study.html")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "# My own\n")]


def test_a_folder_in_the_way_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "study.md").mkdir()
    with pytest.raises(UsageError, match=r"study\.md is a folder"):
        reading.report(str(folder), out=tmp_path / "study.html")
    assert [path.name for path in tmp_path.iterdir()] == ["study.md"]


def test_an_earlier_report_makes_way(made: Report, store: Store) -> None:
    for name, text in zip(("study.html", "study.md"), made, strict=True):
        store.write_bytes(name, text.encode())
    check_place(store, ["study.html", "study.md", "other.html"])


def test_several_runs_stand_side_by_side_in_one_file(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other" / "study")
    done = altgrad("report", folder, other, "--out", tmp_path / "both.html", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    page, card = (tmp_path / "both.html").read_text(), (tmp_path / "both.md").read_text()
    assert page.count(f"<h3>{folder.parent.name}/study</h3>") == page.count("<h3>other/study</h3>") == 7
    assert "What differs between the runs" in page
    assert card.count("★") == 4


def test_a_run_may_be_anywhere(store: Store) -> None:
    Reported(store, ["fp32"], seeds=1)
    consolidate(store)
    assert "fp32 · manifold_adamw has the lowest val_loss" in report([store]).html


def planned(sweep: Reported) -> None:
    sweep.add_pack(2)


def started(sweep: Reported) -> None:
    pack = sweep.add_pack(1)
    key = pack["lanes"][0]["key"]
    ChunkWriter(sweep.store, pack["pack"], 1).append("steps", {"key": [key], "step": [1], "loss": [5.0]})


def diverged(sweep: Reported) -> None:
    sweep.train(sweep.add_pack(2), [None, None], [("diverged", 3)] * 2)


@pytest.mark.parametrize("state", [planned, started, diverged])
def test_a_sweep_with_next_to_nothing_is_reported_as_it_is(state: Callable[[Reported], None], store: Store) -> None:
    state(Reported(store, []))
    consolidate(store)
    made = report([store])
    assert "there is no answer" in made.html
    assert "there is no answer" in made.markdown


def test_two_hundred_trials_fit_in_five_megabytes(store: Store) -> None:
    """100 cells, each with a thousand steps of everything and ranks of 26 matrices at ten checks."""
    sweep = Reported(store, [])
    rows = {name: [0.123456789] * 1000 for name in ("loss", "val_loss", "grad_norm", "stall_ratio", "rung_distance")}
    counts = {name: [12345] * 1000 for name in ("updates", "flips", "oscillations", "rescale_flips")}
    matrices = [f"h.{i}.attn.c_proj" for i in range(26)]
    for i in range(100):
        pack = sweep.add_pack(2, steps=1000, format=f"E{i % 8}M{7 - i % 8}", optimizer=f"optimizer-{i // 8}")
        writer = ChunkWriter(store, pack["pack"], 1)
        keys = [lane["key"] for lane in pack["lanes"]]
        for key in keys:
            jitter = [0.1 + 0.001 * step for step in range(1000)]
            values = {**rows, **counts, "loss": jitter, "stall_ratio": jitter, "weight_underflowed": jitter}
            writer.append("steps", {"key": [key] * 1000, "step": [*range(1, 1001)], **values})
        at = [(key, step, matrix) for key in keys for step in range(100, 1001, 100) for matrix in matrices]
        key, step, matrix = zip(*at, strict=True)
        layers = {"effective_rank": [40.123] * len(at), "elements": [1000] * len(at), "flips": [7] * len(at)}
        writer.append("layers", {"key": key, "step": step, "matrix": matrix, **layers})
    consolidate(store)
    assert len(report([store]).html) < 5_000_000


def test_a_chart_is_the_same_whenever_it_is_drawn_and_shares_no_identifier_with_another() -> None:
    spec = charts.curve_spec(["E4M3"])
    rows = [{"format": "E4M3", "step": step, "mean": 1.0, "lowest": 0.9, "highest": 1.1} for step in (1, 2)]
    first, again, other = (charts.drawn(spec, rows, name) for name in ("a", "a", "b"))
    assert first == again
    names = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (first, other)]
    assert names[0]
    assert names[0].isdisjoint(names[1])


# --- the card


def test_the_card_is_markdown_that_says_the_same(made: Report) -> None:
    card = made.markdown
    tokens = MarkdownIt("commonmark").enable("table").parse(card)
    titles = [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]
    sections = ["The answer", "The matrix: val_loss", "Why trials stopped", "Cost", "What this cannot show"]
    assert titles == ["study", *sections, "To repeat it"]
    assert sum(token.type == "table_open" for token in tokens) == 2
    assert "**" not in card
    assert re.search(r"\| fp32 \|.*1\.980 ± 0\.025 ★", card)


def test_text_in_the_card_stays_text(store: Store) -> None:
    hostile = (
        "> |</td><script>x</script> `a` *b* __b__ [c](javascript:d)\n# @ada a@b.org https://x.org www.x.org #1 $x$"
    )
    sweep = Reported(store, ["fp32", hostile], seeds=1)
    sweep.plan["description"] = hostile
    sweep.save()
    store.write_bytes("sweep.yaml", b"a: |\n  ````\n  <b>\n")
    consolidate(store)
    card = report([store]).markdown
    assert not re.search(r"@\w|://|www\.|(?<!&)#\d|(?<!\\)\$", card), (
        "nobody is called, nothing is linked or mathematics"
    )
    tokens = MarkdownIt("commonmark").enable("table").parse(card)
    inline = [child.type for token in tokens for child in token.children or ()]
    assert set(inline) <= {"text", "softbreak", "text_special"}
    assert [token.content for token in tokens if token.type == "fence" and token.info == "yaml"] == [
        "a: |\n  ````\n  <b>\n"
    ]
    flat = " ".join(hostile.split())
    seen = ["".join(child.content for child in token.children or ()).replace("\u200b", "") for token in tokens]
    assert flat in seen, "and nothing of it is lost"


# --- colours


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def variable(name: str, theme: int) -> str:
    found = re.search(rf"--{name}: light-dark\((#\w{{6}}), (#\w{{6}})\)", STYLE)
    assert found
    return found[theme + 1]


@pytest.mark.parametrize("theme", [0, 1])
def test_lines_and_text_stand_out_and_lightness_alone_orders_the_formats(theme: int) -> None:
    paper = variable("paper", theme)
    lines = [variable(f"e{i}", theme) for i in range(8)]
    assert all(contrast(line, paper) >= 3 for line in [*lines, variable("wide", theme)])
    assert all(contrast(variable(name, theme), paper) >= 4.5 for name in ("ink", "soft", "link"))
    assert [*map(luminance, lines)] == sorted(map(luminance, lines))


def test_formats_of_like_dashes_are_far_apart_in_colour() -> None:
    drawn = charts.styles([f"E{i}M{7 - i}" for i in range(8)])
    assert len({colour for colour, _ in drawn.values()}) == 8
    assert all(drawn[f"E{i}M{7 - i}"][1] != drawn[f"E{i + d}M{7 - i - d}"][1] for i in range(5) for d in (1, 2, 3))


def test_numbers_stand_out_on_every_colour_of_the_heat_map() -> None:
    levels = re.findall(r"\.h\d \{ background: (#\w{6}); color: #(\w)\2\2; \}", STYLE)
    assert len(levels) == 9
    assert all(contrast(background, f"#{text * 6}") >= 4.5 for background, text in levels)
    shades = [luminance(background) for background, _ in levels]
    assert shades == sorted(shades, reverse=True)
