"""What each section says, against what the folder was made from."""

import json
from dataclasses import replace
from typing import Any

import pytest
from report.reported_sweep import BASE, CHECK, ELEMENTS, MATRICES, REPORT, SECONDS, SPACE, STEPS, TOKENS, Reported

from orchestrator.results.consolidate import consolidate
from orchestrator.results.intervals import LEAST_REPLICATES
from orchestrator.results.report.answer import answer
from orchestrator.results.report.compare import differences, shared_cells
from orchestrator.results.report.cost import cost
from orchestrator.results.report.curves import DISCRETE, LEARNING, curves
from orchestrator.results.report.ends import ends, saved
from orchestrator.results.report.heat import LEVELS, heat
from orchestrator.results.report.limits import limits
from orchestrator.results.report.ranks import ranks
from orchestrator.results.report.repeat import repeat
from orchestrator.results.report.run import ReportedRun, read_run
from orchestrator.results.report.wording import DASH, duration, shown
from orchestrator.results.report.writing import report
from orchestrator.results.store import ChunkWriter, Store


def read(sweep: Reported) -> ReportedRun:
    consolidate(sweep.store)
    return read_run("run", sweep.store)


# --- the answer


def test_the_answer_begins_with_what_optimizers_gain_then_comes_the_best_cell(run: ReportedRun) -> None:
    # Seeds 0, 1, 2 lie 0.00, 0.01, 0.02 above their level; Student's t over three: 4.303 * 0.01 / sqrt(3) = 0.0248.
    said = answer(run)
    assert "not distinguishable from adamw" in said[0]
    assert said[1] == "Of 4 comparisons at 95 %, chance alone would tell 0.2 apart."
    assert said[2] == "fp32 · manifold_adamw has the lowest val_loss: 1.980 ± 0.025 (n = 3), at lr=0.001."
    assert said[3] == "Not distinguishable from it: fp32 · adamw."
    assert said[4] == "The control, fp32 · adamw, has 2.010 ± 0.025 (n = 3)."


def test_cells_that_do_not_overlap_are_told_apart(store: Store) -> None:
    assert answer(read(Reported(store, ["fp32"], gain=0.06)))[2].startswith("Every cell that can be held against it is")


def test_cells_that_cannot_be_held_against_the_best_are_named_and_marked(store: Store) -> None:
    sweep = Reported(store, ["fp32"])
    for bits in range(7):
        pack = sweep.add_pack(3, steps=STEPS, format=f"E{bits}M{7 - bits}")
        sweep.train(pack, [3.0, 3.1, 3.2], [("rank_collapse", 50)] * 3)
    run = read(sweep)
    names = ", ".join(f"E{bits}M{7 - bits} · adamw" for bits in range(6))
    why = "pairs that ended at different steps"
    assert f"{names} and 1 more cannot be held against it: {why}." in answer(run)
    shown = heat(run.matrix)
    tiles = dict(shown.rows)["E4M3"]
    assert [tile.judgement for tile in tiles] == ["unjudged", ""]
    assert shown.key == "★ lowest; ≈ not distinguishable from it (95 % each); ? cannot be held against it"
    made = report([store])
    assert "| E4M3 | 3.100 ± 0.248 ? (n = 3; lr=0.001; collapsed at step 50) |" in made.markdown
    assert f"(from three on); {shown.key}." in made.markdown
    assert '3.100 ± 0.248<abbr title="cannot be held against it">?</abbr>' in made.html
    assert f"{shown.key}. Cells differ" in made.html


def test_two_seeds_have_no_interval_and_the_answer_says_so(store: Store) -> None:
    said = answer(read(Reported(store, ["fp32", "E4M3"], seeds=2)))
    assert said[0] == "fp32 · manifold_adamw has the lowest val_loss: 1.975 (n = 2), at lr=0.001."
    assert f"Comparing takes {LEAST_REPLICATES} replicates" in said[1]


def test_a_mean_of_fewer_or_shorter_runs_says_so(store: Store) -> None:
    sweep = Reported(store, [])
    for name, value, step in (("E4M3", 1.0, 50), ("E5M2", 2.0, 200)):
        pack = sweep.add_pack(3, steps=STEPS, format=name)
        sweep.train(pack, [value, value, None], [("asha", step), ("asha", step), ("diverged", 50)])
    assert answer(read(sweep))[0] == (
        "E4M3 has the lowest val_loss: 1.000 (n = 2 of 3), at lr=0.001, at step 50 where others are at 200."
    )


def test_the_best_is_complete_and_a_better_mean_that_is_not_is_told(store: Store) -> None:
    sweep = Reported(store, ["fp32"], seeds=2)
    sweep.train(sweep.add_pack(2, steps=STEPS, format="E4M3"), [1.0, 1.0], [("asha", 50), ("asha", 50)])
    said = answer(read(sweep))[0]
    assert said.startswith("fp32 · manifold_adamw has the lowest val_loss of the cells that are complete: 1.975")


def test_a_sweep_under_way_says_so_first_and_one_without_a_number_says_that(store: Store) -> None:
    sweep = Reported(store, ["fp32"], seeds=1)
    sweep.add_pack(2, steps=STEPS, format="E4M3")
    assert answer(read(sweep))[0].startswith("The sweep is not finished: of 6 trials 2 completed, 2 asha, 2 planned.")
    empty = Reported(store.sub("empty"), [])
    empty.add_pack(1, steps=STEPS)
    assert answer(read(empty))[-1] == "No trial has a val_loss yet: there is no answer."


# --- the matrix


def test_colours_run_from_the_best_to_the_worst_and_marks_say_the_same(run: ReportedRun) -> None:
    shown = heat(run.matrix)
    tiles = {
        (row, column[0]): tile for row, tiles in shown.rows for column, tile in zip(shown.columns, tiles, strict=True)
    }
    assert tiles["fp32", "manifold_adamw"][:3] == ("1.980 ± 0.025", ["n = 3", "lr=0.001"], 0)
    assert [place for place, tile in tiles.items() if tile.judgement == "best"] == [("fp32", "manifold_adamw")]
    assert [place for place, tile in tiles.items() if tile.judgement == "indistinct"] == [("fp32", "adamw")]
    assert tiles["E7M0", "adamw"].level == LEVELS - 1
    by_mean = sorted(run.matrix.cells.values(), key=lambda cell: cell.mean or 0)
    levels = [tiles[cell.row, cell.column[0]].level for cell in by_mean]
    assert levels == sorted(levels)


def test_what_is_not_judged_has_no_best_cell(run: ReportedRun) -> None:
    of = {each.metric: each for each in run.further_matrices}
    assert set(of) == {"best_val_loss", "loss", "stall_ratio"}
    shown = heat(of["stall_ratio"], judged=False)
    tiles = [tile for _, row in shown.rows for tile in row]
    assert not shown.key
    assert not any(tile.judgement for tile in tiles)
    assert [tile.text for tile in tiles].count(DASH) == 2, "fp32 has no stalls"


# --- curves


def test_a_curve_is_the_mean_and_range_over_replicates(run: ReportedRun) -> None:
    lines = {line.place: line for line in curves(run, LEARNING)}
    assert len(lines) == 2 * len(BASE)
    points = lines["E4M3", ("adamw",)].values["val_loss"]
    assert [step for step, *_ in points] == list(range(REPORT, STEPS + 1, REPORT))
    low = [5 + (2.1 - 5) * step / STEPS for step, *_ in points]
    for (step, *numbers), value in zip(points, low, strict=True):
        assert numbers == pytest.approx([value + 0.01 * step / STEPS, value, value + 0.02 * step / STEPS], abs=1e-3)


def test_a_curve_is_thinned_by_means_over_a_few_steps(run: ReportedRun) -> None:
    points = curves(run, LEARNING)[0].values["loss"]
    steps = [step for step, *_ in points]
    assert len(points) <= 50
    assert (steps[0], steps[-1]) == (4, STEPS)
    assert points[0][2] == pytest.approx(5.5 + (BASE["fp32"] - 5) * 2.5 / STEPS, abs=1e-3)


def test_flips_are_shares_of_the_quantized_weights(run: ReportedRun) -> None:
    lines = {line.place: line.values for line in curves(run, DISCRETE)}
    assert ("fp32", ("adamw",)) not in lines
    assert {mean for _, mean, *_ in lines["E4M3", ("adamw",)]["flip_rate"]} == {300 / (len(MATRICES) * ELEMENTS)}
    assert {mean for _, mean, *_ in lines["E4M3", ("adamw",)]["oscillation_share"]} == {0.1}


def test_a_line_ends_where_its_first_replicate_did(store: Store) -> None:
    sweep = Reported(store, ["fp32"], seeds=2)
    pack = sweep.add_pack(2, steps=STEPS, format="E4M3")
    for lane, last in zip(pack["lanes"], (50, 100), strict=True):
        steps = range(1, last + 1)
        rows = {"key": [lane["key"]] * last, "step": [*steps], "loss": [2.0] * last, "val_loss": [2.0] * last}
        ChunkWriter(store, pack["pack"], 1).append("steps", rows)
    lines = {line.place: line for line in curves(read(sweep), LEARNING)}
    assert lines["E4M3", ("adamw",)].values["loss"][-1] == [pytest.approx(50, abs=3), 2.0, 2.0, 2.0]


def test_a_cell_without_a_number_has_a_curve_all_the_same(store: Store) -> None:
    sweep = Reported(store, ["fp32"], seeds=1)
    sweep.train(sweep.add_pack(2, steps=STEPS, format="E4M3"), [None, None], [("diverged", 60)] * 2)
    run = read(sweep)
    assert run.matrix.cells["E4M3", ("adamw",)].mean is None
    assert [line.values["loss"][-1][0] for line in curves(run, LEARNING) if line.place[0] == "E4M3"] == [60]


# --- ranks


def test_ranks_are_held_against_the_control_and_the_sick_come_first(run: ReportedRun) -> None:
    found = ranks(run)
    assert len(found) == 2 * len(BASE)
    first = found[0]
    assert (first.setting.place[0], first.warned, first.is_ratio) == ("E7M0", 3, True)
    assert first.matrices == list(MATRICES), "the tenth layer behind the second"
    assert first.steps == [*range(CHECK, STEPS + 1, CHECK)]
    assert first.values[0] == pytest.approx([0.5 ** (step / STEPS) for step in first.steps], abs=1e-3)
    assert first.lowest == (0.5, MATRICES[0], STEPS)
    assert first.warnings[-1] == [0, 0, 0, 3]
    control = next(each for each in found if each.setting.place == ("fp32", ("adamw",)))
    assert not control.is_ratio
    assert control.values[0] == [40.0 - step / 10 for step in control.steps]


# --- why trials stopped


def test_every_decision_is_told_with_its_numbers(run: ReportedRun) -> None:
    found = ends(run)
    assert len(found) == 2 * len(BASE), "one row for the three seeds of a setting"
    end = found[0]
    assert (end.setting, end.replicates) == ("lr=0.01", "seed=0, seed=1, seed=2")
    assert (end.reason, end.step, end.value, end.reference, end.audited) == ("asha", STEPS // 2, 2.5, 2.25, False)
    said = " ".join(saved(run))
    assert f"Stopping saved {24 * STEPS // 2:,} of {48 * STEPS:,} steps (25%)" in said
    assert "Nothing was audited" in said


def test_failures_come_first_and_an_audit_is_told(store: Store) -> None:
    sweep = Reported(store, ["fp32"], seeds=1)
    spared, failed = sweep.plan["packs"][0], sweep.add_pack(1, steps=STEPS, format="E4M3")
    for pack, step in ((spared, 80), (failed, 90)):
        sweep.audit(pack, pack["lanes"][0]["key"], "asha", step)
    sweep.journal.append({"event": "pack_started", "pack": failed["pack"]})
    sweep.journal.append({"event": "pack_failed", "pack": failed["pack"], "error": "the disk is full"})
    run = read(sweep)
    found = ends(run)
    assert (found[0].reason, found[0].message, found[0].step) == ("failed", "the disk is full", None)
    assert [(end.reason, end.step) for end in found if end.audited] == [("asha", 80), ("asha", 90)]
    assert "Nothing was audited" not in " ".join(saved(run))
    assert "1 trial failed and count" in answer(run)[-1]


# --- cost, limits, repeating


def test_the_cost_counts_packs_once_and_tokens_of_every_lane(run: ReportedRun) -> None:
    found = cost(run)
    packs, lanes = 4 * len(BASE), 12 * len(BASE)
    assert found.total.seconds == packs * SECONDS
    assert found.total.tokens == lanes / 2 * (STEPS + STEPS / 2) * TOKENS
    assert (found.held.device, found.device_hours) == ("a CPU", packs * SECONDS * 2 / 3600)
    assert [(spent.what, spent.trials) for spent in found.columns] == [
        ("adamw", lanes / 2),
        ("manifold_adamw", lanes / 2),
    ]
    assert sum(spent.tokens for spent in found.columns) == found.total.tokens
    assert "CPU core-hours (2 CPU cores a pack)" in found.sentence


@pytest.mark.parametrize(("gpu", "said"), [(0.5, "GPU-hours (0.5 GPU a pack)"), ("auto", "hours of packs training")])
def test_a_device_is_named_where_it_is_known(store: Store, gpu: object, said: str) -> None:
    sweep = Reported(store, ["fp32"], seeds=1)
    sweep.plan["space"]["resources"]["gpu"] = gpu
    sweep.save()
    assert said in cost(read(sweep)).sentence


def settled(run: ReportedRun, **resources: Any) -> ReportedRun:
    """The run as if its last driver had settled on these; one before it on others."""
    record = {"event": "resources_settled", "time": run.records[-1]["time"]}
    return replace(run, records=[*run.records, record | {"cpu": 4.0, "gpu": 1.0, "device": "a"}, record | resources])


def test_what_was_settled_is_what_was_held(run: ReportedRun) -> None:
    of = settled(run, cpu=1.0, gpu=0.125, device="NVIDIA H200")
    assert cost(of).device_hours == 4 * len(BASE) * SECONDS * 0.125 / 3600
    assert "GPU-hours (0.125 GPU a pack, NVIDIA H200)" in cost(of).sentence
    assert "Formats are simulated on NVIDIA H200:" in " ".join(limits(of))
    assert differences([run, of]) == [("device", ["a CPU", "NVIDIA H200"])]
    assert "CPU core-hours (1 CPU core a pack)" in cost(settled(run, cpu=1.0, gpu=0.0, device="CPU")).sentence


def test_limits_are_counted(run: ReportedRun) -> None:
    said = " ".join(limits(run))
    for words in (
        "at most 3 replicates",
        "200 steps of a model of 3,000 weights in matrices, 102,400 tokens a trial: at most 34.1 tokens a weight",
        "One corpus, stdlib",
        "simulated on a CPU",
        "lr was tuned over 0.001, 0.01: 8 of 8 cells chose an end of that range",
    ):
        assert words in said


def test_both_ends_of_a_tuned_range_are_ends(store: Store) -> None:
    sweep = Reported(store, ["fp32"], seeds=1)
    for lr, value in ((0.001, 3.0), (0.003, 1.0), (0.01, 2.0)):
        sweep.train(sweep.add_pack(1, lr=lr, steps=STEPS, format="E4M3"), [value])
        sweep.train(sweep.add_pack(1, lr=lr, steps=STEPS, format="E5M2"), [1.0 - lr])
    said = " ".join(limits(read(sweep)))
    assert "lr was tuned over 0.001, 0.003, 0.01: 3 of 4 cells chose an end of that range" in said


def test_trials_of_unlike_lengths_are_told(store: Store) -> None:
    sweep = Reported(store, ["fp32"], seeds=1)
    sweep.add_pack(1, steps=400, format="E4M3")
    assert "200 to 400 steps of a model" in " ".join(limits(read(sweep)))


def test_few_replicates_are_a_limit(store: Store) -> None:
    assert limits(read(Reported(store, ["fp32"], seeds=2)))[0].startswith("At most 2 replicates a cell: no intervals")


def test_what_is_needed_to_repeat_it_is_there(run: ReportedRun) -> None:
    found = repeat(run)
    assert found.commands == ["altgrad sweep 'a study.yaml'"]
    assert found.versions == {"altgrad": "0.1.0", "python": "3.11.7", "commit": "abc1234"}
    assert found.hashes["corpus stdlib"] == "c0ffee" * 10
    assert found.space == SPACE


def test_a_command_is_told_without_where_it_lies_and_a_commit_that_is_not_known_is_not_left_out(
    run: ReportedRun,
) -> None:
    started = {"event": "sweep_started", "time": run.records[0]["time"], "versions": {"altgrad": "0.1.0"}}
    typed = ["/home/ada/.venv/bin/altgrad", "/home/ada/altgrad/orchestrator/cli/__main__.py"]
    found = repeat(replace(run, records=[started, *(started | {"command": [path, "resume", "x"]} for path in typed)]))
    assert found.commands == ["altgrad resume x", "python -m orchestrator.cli resume x"]
    assert found.versions == {"altgrad": "0.1.0", "commit": "not recorded"}


@pytest.mark.parametrize(("count", "said"), [(999, "999"), (118784, "118,784"), (11_354_835, "11.4 million")])
def test_counts_are_shown_short(count: int, said: str) -> None:
    assert shown(count) == said


@pytest.mark.parametrize(("seconds", "said"), [(90, "1.5 minutes"), (9000, "2.5 hours")])
def test_durations_are_shown_short(seconds: float, said: str) -> None:
    assert duration(seconds) == said


# --- several runs


def test_runs_are_compared_by_what_differs_and_by_what_they_share(run: ReportedRun, store: Store) -> None:
    sweep = Reported(store, ["E4M3"], seeds=2)
    sweep.plan["space"] = json.loads(json.dumps(sweep.plan["space"]))
    sweep.plan["space"]["early_terminate"]["type"] = "none"
    sweep.save()
    runs = [run, read(sweep)]
    assert differences(runs) == [("early_terminate.type", ["asha", "none"])]
    cells = "format=E4M3 optimizer=adamw storage=master"
    assert (cells, ["2.110 ± 0.025 (n = 3)", "2.105 (n = 2)"]) in shared_cells(runs)
    assert len(shared_cells(runs)) == 2
