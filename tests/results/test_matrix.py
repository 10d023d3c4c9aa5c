"""The matrix against numbers worked out by hand and by SciPy."""

import csv
import io
import json
import math
import re
from typing import Any

import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from synthetic_sweep import Sweep

from orchestrator.cli import app
from orchestrator.cli.app import UsageError
from orchestrator.results.cells import Setting, Trial, best_setting
from orchestrator.results.consolidate import consolidate
from orchestrator.results.matrix import Matrix, matrix, savings
from orchestrator.results.matrix_text import to_csv, to_markdown
from orchestrator.results.render import render
from orchestrator.results.store import ChunkWriter
from orchestrator.results.wording import Wording

ASHA = [("asha", 120)] * 3


def made(sweep: Sweep, **options: Any) -> Matrix:
    consolidate(sweep.store)
    return matrix(sweep.store, **options)


# --- numbers


def test_a_cell_is_the_mean_over_replicates_of_its_best_setting(any_sweep: Sweep) -> None:
    any_sweep.train(any_sweep.add_pack(lanes=3, lr=0.01), [4.0, 5.0, 6.0], ASHA)
    any_sweep.train(any_sweep.add_pack(lanes=3, lr=0.001), [2.0, 2.5, 3.0])
    cell = made(any_sweep).cells["E4M3", ()]
    assert (cell.nuisance, cell.n, cell.replicates) == ({"lr": 0.001}, 3, 3)
    assert cell.mean == 2.5
    assert cell.std == 0.5
    # t quantile of 97.5 % with two degrees of freedom, from a table: 4.303.
    assert cell.interval == pytest.approx(4.303 * 0.5 / math.sqrt(3), rel=1e-4)
    assert (cell.ended, cell.ended_at, cell.last_step) == ({"completed": 3}, {"completed": 400}, 400)
    assert cell.ended_all == {"asha": 3, "completed": 3}
    assert cell.values == {"seed=0": 2.0, "seed=1": 2.5, "seed=2": 3.0}
    assert (cell.settings, cell.stopped_at) == (2, {})


@pytest.mark.parametrize(("values", "std"), [([2.0], None), ([2.0, 3.0], math.sqrt(0.5))])
def test_fewer_than_three_replicates_get_no_interval(sweep: Sweep, values: list[float], std: float | None) -> None:
    sweep.train(sweep.add_pack(lanes=len(values)), values)
    cell = made(sweep).cells["E4M3", ()]
    assert cell.std == (None if std is None else pytest.approx(std))
    assert cell.interval is None


@pytest.mark.parametrize(
    ("values", "ends", "mean", "n", "undefined", "ended"),
    [
        ([2.0, 3.0, None], ["completed", "completed", "diverged"], 2.5, 2, 1, {"completed": 2, "diverged": 1}),
        ([2.0, 3.0, math.inf], ["completed", "completed", "diverged"], 2.5, 2, 1, {"completed": 2, "diverged": 1}),
        ([None, None, None], ["diverged"] * 3, None, 0, 3, {"diverged": 3}),
        ([2.0, 3.0, 9.5], ["completed", "completed", "failed"], 2.5, 2, 0, {"completed": 2, "failed": 1}),
        ([2.0, 3.0, 9.5], ["failed"] * 3, None, 0, 0, {"failed": 3}),
        ([2.0, 3.0, 4.0], ["rank_collapse"] * 3, 3.0, 3, 0, {"rank_collapse": 3}),
    ],
)
def test_undefined_is_never_a_number_and_the_cell_says_how_trials_ended(
    sweep: Sweep,
    values: list[float | None],
    ends: list[str],
    mean: float | None,
    n: int,
    undefined: int,
    ended: dict[str, int],
) -> None:
    sweep.train(sweep.add_pack(lanes=3), values, [(reason, 200) for reason in ends])
    cell = made(sweep).cells["E4M3", ()]
    assert (cell.mean, cell.n, cell.undefined, cell.ended) == (mean, n, undefined, ended)
    assert (cell.interval is not None) == (n == 3), "what the survivors alone say is no estimate"


def setting(name: str, *values: float | str | None) -> Setting:
    """Replicates by value: None where it diverged, ``missing`` where it failed, a text where it was stopped at that."""
    return Setting({"lr": name}, [replicate(value) for value in values])


def replicate(value: float | str | None) -> Trial:
    match value:
        case None:
            return Trial("diverged", 1, None)
        case "missing":
            return Trial("failed", 1, None)
        case str():
            return Trial("asha", 1, float(value))
    return Trial("completed", 1, value)


@pytest.mark.parametrize(
    ("settings", "goal", "best"),
    [
        ([setting("a", 3.0, 3.0), setting("b", 1.0, 4.0)], "minimize", "b"),
        ([setting("a", 3.0, 3.0), setting("b", 1.0, 4.0)], "maximize", "a"),
        ([setting("a", 3.0, 3.0), setting("b", 1.0, None)], "minimize", "a"),
        ([setting("a", None, None), setting("b", 1.0, None)], "minimize", "b"),
        ([setting("a", 3.0, 3.0), setting("b", 1.0, "missing")], "minimize", "a"),
        ([setting("a", 3.0, 3.0), setting("b", "1.0", "1.0")], "minimize", "a"),
        ([setting("a", 3.0, "missing"), setting("b", 1.0, None)], "minimize", "a"),
        ([setting("a", 3.0, "2.0"), setting("b", 1.0, "missing")], "minimize", "a"),
        ([setting("a", None, None)], "minimize", None),
        ([], "minimize", None),
    ],
)
def test_the_best_setting_is_not_the_lucky_survivor(settings: list[Setting], goal: str, best: str | None) -> None:
    found = best_setting(settings, goal)
    assert (found.nuisance["lr"] if found else None) == best


def test_an_early_stop_shows_beside_its_mean(sweep: Sweep) -> None:
    sweep.train(sweep.add_pack(lanes=3), [4.0, 5.0, 6.0], [("asha", 120), ("asha", 120), ("stalled", 90)])
    cell = made(sweep).cells["E4M3", ()]
    assert cell.mean == 5.0
    assert (cell.ended, cell.ended_at, cell.last_step) == ({"asha": 2, "stalled": 1}, {"asha": 120, "stalled": 90}, 90)
    assert cell.stopped_at == {"seed=0": 120, "seed=1": 120, "seed=2": 90}
    assert cell.interval is None, "the numbers are of different steps"


def test_a_sweep_still_running_shows_what_there_is(sweep: Sweep) -> None:
    sweep.train(sweep.add_pack(lanes=2), [4.0, 5.0], [None, ("completed", 400)])
    sweep.add_pack(lanes=2, format="E5M2")
    found = made(sweep)
    cell, planned = found.cells["E4M3", ()], found.cells["E5M2", ()]
    assert (cell.mean, cell.ended, cell.last_step) == (4.5, {"running": 1, "completed": 1}, 100)
    assert (planned.mean, planned.n, planned.nuisance, planned.ended) == (None, 0, None, {"planned": 2})


def test_settings_may_be_lanes_of_one_pack(sweep: Sweep) -> None:
    pack = sweep.add_pack(lanes=4, lane_values={"lr": [0.1, 0.1, 0.01, 0.01], "seed": [0, 1, 0, 1]})
    sweep.train(pack, [5.0, 6.0, 2.0, 3.0])
    cell = made(sweep).cells["E4M3", ()]
    assert (cell.nuisance, cell.mean, cell.n) == ({"lr": 0.01}, 2.5, 2)


# --- the best, and what cannot be told from it


def marks(sweep: Sweep, **options: Any) -> dict[str, str]:
    found = made(sweep, **options)
    return {cell.row: Wording(found).mark(cell) for cell in found.cells.values()}


def test_the_best_cell_is_marked_and_those_that_pairs_cannot_tell_from_it(sweep: Sweep) -> None:
    values = {"E2M5": [2.0, 2.1, 2.2], "E4M3": [2.1, 2.05, 2.35], "E5M2": [2.1, 2.201, 2.299], "E6M1": [2.05, 2.15]}
    for name, losses in values.items():
        sweep.train(sweep.add_pack(lanes=len(losses), format=name), losses)
    # The separate intervals of E5M2 and E2M5 overlap, and yet it is worse by 0.1 with every seed.
    assert marks(sweep) == {"E2M5": "*", "E4M3": "~", "E5M2": "", "E6M1": "?"}
    cells = made(sweep).cells
    assert [cell.indistinct for cell in cells.values()] == [False, True, False, False]
    assert [cell.judged for cell in cells.values()] == [True, True, True, False]
    assert cells["E5M2", ()].against_best is not None
    assert cells["E5M2", ()].against_best.difference == pytest.approx(0.1, abs=1e-6)
    assert cells["E2M5", ()].against_best is None


def test_what_diverged_or_was_stopped_is_not_the_best_and_not_held_against_it(sweep: Sweep) -> None:
    sweep.train(sweep.add_pack(lanes=3, format="E2M5"), [2.0, 2.1, 2.2])
    sweep.train(sweep.add_pack(lanes=3, format="E4M3"), [1.0, 1.1, 1.2], [("stalled", 120)] * 3)
    sweep.train(sweep.add_pack(lanes=3, format="E5M2"), [1.0, 1.1, None], [("completed", 400)] * 2 + [("diverged", 40)])
    assert marks(sweep) == {"E2M5": "*", "E4M3": "", "E5M2": ""}
    sweep.train(sweep.add_pack(lanes=3, format="E6M1"), [2.2, 2.1, 2.0])
    assert marks(sweep) == {"E2M5": "*", "E4M3": "?", "E5M2": "?", "E6M1": "~"}
    assert "* lowest of what is complete; " in "\n".join(Wording(made(sweep)).caption())
    whys = [cell.against_best and cell.against_best.why for cell in made(sweep).cells.values()]
    assert whys == [None, "steps", "undefined", None]


def test_one_lucky_survivor_of_failures_is_not_the_best(sweep: Sweep) -> None:
    sweep.train(sweep.add_pack(lanes=3, format="E2M5"), [2.0, 2.1, 2.2])
    sweep.train(sweep.add_pack(lanes=3, format="E4M3"), [1.0, 1.1, 1.2], [("completed", 400)] + [("failed", 9)] * 2)
    sweep.train(sweep.add_pack(lanes=3, format="E5M2"), [2.1, 2.2, 2.0])
    assert marks(sweep) == {"E2M5": "*", "E4M3": "?", "E5M2": "~"}


def test_cells_that_agree_to_the_last_bit_are_both_the_best(sweep: Sweep) -> None:
    for name in ("E0M7", "E1M6"):
        sweep.train(sweep.add_pack(lanes=3, format=name), [2.0, 2.1, 2.2])
    assert marks(sweep) == {"E0M7": "*", "E1M6": "~"}


def test_larger_is_better_where_the_plan_says_so(sweep: Sweep) -> None:
    sweep.plan["metric"]["goal"] = "maximize"
    for name, value in (("E4M3", 2.0), ("E5M2", 3.0)):
        sweep.train(sweep.add_pack(format=name), [value])
    assert made(sweep).cells["E5M2", ()].best
    assert made(sweep, metric="loss").goal == "minimize"


# --- axes


def test_varying_parameters_span_the_columns_and_constant_ones_are_named_once(sweep: Sweep) -> None:
    sweep.plan["roles"]["layers"] = "scientific"
    rules = [{"match": "*.attn.*", "format": "bf16"}]
    for layers in ("all", rules):
        for optimizer in ("adamw", "manifold_adamw"):
            sweep.train(sweep.add_pack(optimizer=optimizer, layers=layers), [2.0])
    found = made(sweep)
    assert found.column_parameters == ("optimizer", "layers")
    assert found.columns == [(o, x) for o in ("adamw", "manifold_adamw") for x in ("all", json.dumps(rules))]
    assert found.fixed == {"storage": "master"}
    assert len(found.cells) == 4


def test_rows_and_columns_may_be_any_parameter(sweep: Sweep) -> None:
    for lr in (0.1, 0.01):
        for name in ("E4M3", "E5M2"):
            sweep.train(sweep.add_pack(format=name, lr=lr), [lr + 2])
    found = made(sweep, rows="lr", columns=["format"])
    assert (found.rows, found.columns) == (["0.1", "0.01"], [("E4M3",), ("E5M2",)])
    assert found.cells["0.1", ("E4M3",)].mean == pytest.approx(2.1)
    assert found.cells["0.1", ("E4M3",)].nuisance == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": "formt"}, "unknown parameter 'formt'; known: format, optimizer, storage"),
        ({"columns": ["model.width"]}, "unknown parameter 'model.width'"),
        ({"metric": "accuracy"}, "unknown metric 'accuracy'; known: loss, val_loss"),
        ({"metric": "1; DROP TABLE trials"}, "unknown metric"),
        ({"metric": "key"}, "unknown metric"),
    ],
)
def test_unknown_names_are_refused_with_the_known(sweep: Sweep, options: dict[str, Any], message: str) -> None:
    sweep.train(sweep.add_pack(), [2.0])
    with pytest.raises(ValueError, match=message):
        made(sweep, **options)


@pytest.mark.parametrize(
    ("metric", "value"), [("val_loss", 2.0), ("best_val_loss", 2.0), ("loss", 1.0), ("tokens", None)]
)
def test_other_metrics_are_their_last_defined_value(sweep: Sweep, metric: str, value: float | None) -> None:
    sweep.train(sweep.add_pack(), [2.0])
    assert made(sweep, metric=metric).cells["E4M3", ()].mean == value


def test_every_metric_is_of_the_setting_that_the_sweeps_own_metric_chooses(sweep: Sweep) -> None:
    for lr, val_loss, norm in ((0.1, 3.0, 0.25), (0.01, 2.0, 0.75)):
        pack = sweep.add_pack(lr=lr)
        sweep.train(pack, [val_loss])
        ChunkWriter(sweep.store, pack["pack"], 1).append(
            "steps", {"key": [pack["lanes"][0]["key"]], "step": [401], "grad_norm": [norm]}
        )
    found = made(sweep, metric="grad_norm")
    assert (found.metric, found.objective) == ("grad_norm", "val_loss")
    assert (found.cells["E4M3", ()].nuisance, found.cells["E4M3", ()].mean) == ({"lr": 0.01}, 0.75)
    assert "In each cell the best by val_loss: lr." in Wording(found).caption()
    assert any("flattered" in line for line in Wording(made(sweep)).caption())


def test_a_metric_of_steps_alone_is_taken_at_its_last_row_and_not_after_divergence(sweep: Sweep) -> None:
    for name, end in (("E4M3", "completed"), ("E5M2", "diverged")):
        pack = sweep.add_pack(format=name)
        sweep.train(pack, [2.0], [(end, 300)])
        key = pack["lanes"][0]["key"]
        rows = {"key": [key] * 3, "step": [301, 302, 303], "grad_norm": [1.0, 0.5, float("nan")]}
        ChunkWriter(sweep.store, pack["pack"], 1).append("steps", rows)
    cells = made(sweep, metric="grad_norm").cells
    assert cells["E4M3", ()].mean == 0.5
    assert (cells["E5M2", ()].mean, cells["E5M2", ()].undefined) == (None, 1)


def test_what_the_plan_excludes_is_marked_with_its_reason(sweep: Sweep) -> None:
    for name in ("fp32", "E4M3"):
        sweep.train(sweep.add_pack(format=name), [2.0])
    sweep.train(sweep.add_pack(format="E4M3", optimizer="grid", storage="nearest"), [2.0])
    whole = {"format": "fp32", "optimizer": "grid", "storage": "nearest"}
    sweep.plan["excluded"] = [{"cell": "fp32 grid nearest", "scientific": whole, "why": "fp32 has no rungs"}]
    sweep.plan["excluded"] += [{"cell": "E7M0", "scientific": {**whole, "format": "E7M0"}, "why": "no such"}]
    sweep.save()
    found = made(sweep)
    assert found.rows == ["fp32", "E4M3", "E7M0"]
    assert found.columns == [("adamw", "master"), ("grid", "nearest")]
    assert found.cells["fp32", ("grid", "nearest")].excluded == "fp32 has no rungs"
    assert found.cells["E7M0", ("grid", "nearest")].excluded == "no such"
    assert ("E7M0", ("adamw", "master")) not in found.cells
    assert found.cells["fp32", ("adamw", "master")].excluded is None


def test_an_exclusion_that_names_some_parameters_covers_all_that_agree(sweep: Sweep) -> None:
    for name, optimizer in (("fp32", "adamw"), ("E4M3", "adamw"), ("E4M3", "grid")):
        sweep.train(sweep.add_pack(format=name, optimizer=optimizer), [2.0])
    sweep.plan["excluded"] = [{"cell": "", "scientific": {"format": "fp32", "storage": "nearest"}, "why": "wrong one"}]
    sweep.plan["excluded"] += [{"cell": "", "scientific": {"format": "fp32", "optimizer": "grid"}, "why": "no rungs"}]
    sweep.save()
    assert made(sweep).cells["fp32", ("grid",)].excluded == "no rungs"


def test_the_control_is_told(sweep: Sweep) -> None:
    sweep.train(sweep.add_pack(format="fp32", control=True), [2.0])
    sweep.train(sweep.add_pack(), [2.0])
    assert [cell.control for cell in made(sweep).cells.values()] == [True, False]


def test_a_folder_never_consolidated_is_refused(sweep: Sweep) -> None:
    sweep.add_pack()
    for read in (matrix, savings):
        with pytest.raises(FileNotFoundError, match="consolidate it first"):
            read(sweep.store)


def test_plain_data_survives_json(sweep: Sweep) -> None:
    sweep.train(sweep.add_pack(lanes=3), [2.0, 2.5, 3.0])
    values = json.loads(json.dumps(made(sweep).to_dict(), allow_nan=False))
    assert values["rows"] == ["E4M3"]
    assert values["cells"][0]["mean"] == 2.5
    assert values["cells"][0]["row"] == "E4M3"


# --- savings


def test_savings_count_the_steps_of_stopped_trials_only(sweep: Sweep) -> None:
    ends = [("asha", 100), ("asha", 150), ("diverged", 50), ("completed", 400), ("failed", 30), None]
    sweep.train(sweep.add_pack(lanes=6), [2.0] * 6, ends)
    sweep.add_pack()
    consolidate(sweep.store)
    found = savings(sweep.store)
    assert found.planned == 7 * 400
    assert found.done == 100 + 150 + 50 + 400 + 30 + 100
    assert found.saved == 300 + 250 + 350
    assert found.saved_by_reason == {"asha": 550, "diverged": 350}
    assert found.lanes_by_reason == {"asha": 2, "diverged": 1, "completed": 1, "failed": 1, "running": 1, "planned": 1}
    assert json.loads(json.dumps(found.to_dict()))["saved"] == 900


# --- in words


def shown(found: Matrix, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False, no_color=True)
    console.print(render(found))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.fixture
def varied(sweep: Sweep) -> Sweep:
    """Formats of which each came to another end."""
    ends = {"E2M5": [("completed", 400)] * 3, "E4M3": ASHA, "E5M2": [("rank_collapse", 200)] * 3}
    ends |= {"E6M1": [("completed", 400), ("completed", 400), ("diverged", 40)], "E7M0": [("diverged", 40)] * 3}
    losses = {"E2M5": [2.13, 2.14, 2.15], "E4M3": [2.2, 2.3, 2.1], "E5M2": [4.0, 4.0, 4.1], "E6M1": [3.0, 3.1, None]}
    for name, reasons in ends.items():
        sweep.train(sweep.add_pack(lanes=3, format=name), losses.get(name, [None] * 3), reasons)
    sweep.train(sweep.add_pack(lanes=3, format="E3M4"), [2.16, 2.14, 2.13])
    return sweep


def test_the_table_says_everything_without_colour(varied: Sweep) -> None:
    lines = shown(made(varied))
    assert lines[2:] == [
        "E2M5    2.140 ±0.025*",
        "E4M3    2.200 ±0.248?",
        "        asha @120",
        "E5M2    4.033 ±0.143?",
        "        collapsed @200",
        "E6M1    3.050?",
        "        n = 2",
        "        1 diverged @40",
        "E7M0    -",
        "        diverged @40",
        "E3M4    2.143 ±0.038~",
        "",
        "val_loss, mean over replicates ± 95 % interval; n = 3, all completed, unless a",
        "cell says otherwise.",
        "* lowest; ~ not distinguishable from it (95 % each); ? cannot be held against",
        "it; @ smallest last step.",
        "In each cell the best by val_loss: lr.",
        "Everywhere: optimizer adamw, storage master.",
        "Trials: 8 completed, 3 asha, 3 rank_collapse, 4 diverged.",
    ]


def test_with_two_seeds_there_is_no_interval_and_no_mark_but_the_best(sweep: Sweep) -> None:
    for name, lr, losses in (("E2M5", 0.1, [2.0, 2.1]), ("E4M3", 0.1, [2.1, 2.2]), ("E4M3", 0.01, [2.3, 2.2])):
        sweep.train(sweep.add_pack(lanes=2, format=name, lr=lr), losses)
    assert shown(made(sweep), 200)[2:] == [
        "E2M5    2.050*",
        "E4M3    2.150",
        "",
        "val_loss, mean over replicates; n = 2, all completed, unless a cell says otherwise.",
        "* lowest; comparing takes 3 replicates that both have.",
        "In each cell the best by val_loss: lr; chosen on the replicates shown, so a little flattered.",
        "Everywhere: optimizer adamw, storage master.",
        "Trials: 6 completed.",
    ]


def test_four_columns_fit_eighty_characters_unbroken(sweep: Sweep) -> None:
    for name in ("E4M3", "E5M2"):
        for optimizer in ("adamw", "manifold_adamw"):
            for storage in ("master", "stochastic"):
                pack = sweep.add_pack(lanes=3, format=name, optimizer=optimizer, storage=storage)
                sweep.train(pack, [12.345, 12.456, 12.567], [("rank_collapse", 2000)] * 3)
    lines = shown(made(sweep))
    assert max(map(len, lines)) <= 80
    assert sum(line.count("12.456 ±0.276") for line in lines) == 8
    assert sum(line.count("collapsed @2000") for line in lines) == 8
    assert sum(line.startswith("format") for line in lines) == 1


def test_what_does_not_fit_comes_below_and_no_number_is_broken(sweep: Sweep) -> None:
    for i in range(7):
        sweep.train(sweep.add_pack(lanes=3, optimizer=f"opt{i}"), [12.345, 12.456, 12.567])
    found = made(sweep)
    for width, parts in ((200, 1), (80, 2), (40, 4), (24, 7)):
        lines = shown(found, width)
        assert max(map(len, lines)) <= width
        assert sum(line.count("12.456 ±0.276") for line in lines) == 7
        assert sum(line.startswith("format") for line in lines) == parts


def test_long_names_fold_and_brackets_are_not_markup(sweep: Sweep) -> None:
    sweep.plan["roles"]["layers"] = "scientific"
    rules = [{"match": f"*.{i}.attn.c_proj[bold]", "format": "bf16"} for i in range(6)]
    for layers in ("all", rules):
        sweep.train(sweep.add_pack(layers=layers, format="A" * 60), [2.0])
    lines = shown(made(sweep))
    assert max(map(len, lines)) <= 80
    assert sum(line.count("A") for line in lines) == 60
    assert sum(line.count("2.000") for line in lines) == 2
    assert "".join("".join(lines).split()).count("attn.c_proj[bold]") == 6


# --- for other programs


def test_markdown_has_a_line_a_row_and_is_not_changed_by_what_names_hold(varied: Sweep) -> None:
    varied.train(varied.add_pack(lanes=3, format="<b>|*x*"), [5.0, 5.1, 5.0])
    text = to_markdown(made(varied), ["grid hurts <b>.", "Of 2."])
    html = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    cells = re.findall(r"<td>(.*?)</td>", html)
    assert cells[:4] == ["E2M5", "2.140 ±0.025*", "E4M3", "2.200 ±0.248?<br>asha @120"]
    assert cells[-2:] == ["&lt;b&gt;|*x*", "5.033 ±0.143"]
    assert len(re.findall("<table>", html)) == 1
    assert "<li>grid hurts &lt;b&gt;.</li>\n<li>Of 2.</li>" in html
    assert "* lowest; ~ not distinguishable from it (95 % each)" in html


def test_csv_has_a_row_a_cell_with_all_that_is_known(varied: Sweep) -> None:
    whole = {"format": "fp32", "optimizer": "adamw", "storage": "master"}
    varied.plan["excluded"] = [{"cell": "", "scientific": whole, "why": 'no, "never"'}]
    varied.save()
    found = made(varied)
    rows = {row["format"]: row for row in csv.DictReader(io.StringIO(to_csv(found)))}
    assert list(rows) == [cell.row for cell in found.cells.values()]
    best, asha = rows["E2M5"], rows["E4M3"]
    cell = found.cells["E2M5", ()]
    assert (best["optimizer"], best["nuisance.lr"], best["best"], best["indistinct"]) == (
        "adamw", "0.001", "true", "false",
    )  # fmt: skip
    assert (float(best["mean"]), float(best["interval"]), int(best["n"])) == (cell.mean, cell.interval, 3)
    assert [float(best[f"values.seed={seed}"]) for seed in range(3)] == list(cell.values.values())
    assert (asha["ended.asha"], asha["ended_at.asha"], asha["ended.completed"], best["ended.asha"]) == (
        "3", "120", "0", "0",
    )  # fmt: skip
    assert (asha["against_best.why"], best["against_best.why"]) == ("steps", "")
    assert (rows["E7M0"]["mean"], rows["E7M0"]["undefined"]) == ("", "3")
    assert (rows["fp32"]["excluded"], rows["fp32"]["mean"], rows["fp32"]["n"]) == ('no, "never"', "", "0")


# --- as a command


@pytest.fixture
def run(sweep: Sweep) -> str:
    for optimizer, losses in (("adamw", [2.0, 2.1, 2.2]), ("grid", [2.5, 2.6, 2.8])):
        sweep.train(sweep.add_pack(lanes=3, optimizer=optimizer), losses)
    return sweep.store.uri


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert app(["matrix", *arguments], exit_on_error=False) == 0
    return capsys.readouterr().out


def test_the_command_prints_the_matrix_and_then_the_sentences(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "grid hurts E4M3 by 0.53 ± 0.14 nats, n = 3."
    assert asked(capsys, run).splitlines()[-2:] == ["", sentence]
    assert asked(capsys, run, "--markdown").splitlines()[-2:] == ["", f"- {sentence}"]


def test_the_command_prints_data(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    built = json.loads(asked(capsys, run, "--json"))
    assert [each["verdict"] for each in built["benefits"]] == ["hurts"]
    assert [cell["best"] for cell in built["cells"]] == [True, False]
    rows = list(csv.DictReader(io.StringIO(asked(capsys, run, "--csv"))))
    assert [row["optimizer"] for row in rows] == ["adamw", "grid"]


@pytest.mark.parametrize("cols", [("--cols", "storage", "optimizer"), ("--cols", "storage", "--cols", "optimizer")])
def test_columns_are_named_one_after_another_or_each_by_itself(
    run: str, cols: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    built = json.loads(asked(capsys, run, "--json", "--rows", "lr", *cols))
    assert (built["row_parameter"], built["column_parameters"]) == ("lr", ["optimizer"])
    assert built["fixed"] == {"storage": "master", "format": "E4M3"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "--csv"], "--json, --markdown and --csv are three ways to print the same: give one"),
        (["--rows", "formt"], "unknown parameter 'formt'; known: format"),
        (["--metric", "accuracy"], "unknown metric 'accuracy'; known: loss"),
    ],
)
def test_a_mistaken_command_is_refused_with_what_would_be_right(run: str, arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        app(["matrix", run, *arguments], exit_on_error=False)
