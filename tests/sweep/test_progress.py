"""What the person watching sees: counts, rungs, the best so far and the time left, on narrow terminals too."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_plan import SPACE, small_plan

from orchestrator.plan import Plan
from orchestrator.sweep import progress as module
from orchestrator.sweep.progress import Progress

#: A cell whose name alone is wider than a narrow terminal.
LONG = [{"match": "*.attn.[cq]*", "format": "E2M5"}, {"match": "*.mlp.c_proj", "format": "bf16"}]


class Clock:
    """Stands in for the module's clock."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Six packs of two lanes (seeds) and 80 steps; the rungs are 10, 20 and 40."""
    return small_plan(tmp_path, {"lanes": ["seed"]})


def report(progress: Progress, pack: str, step: int, value: float | None = 3.0, **more: Any) -> None:
    result = {"step": step, "resumed_at": 0, "lanes": 2, "warnings": 0, "alive": [], "ended": [], **more}
    progress.reported(pack, result if value is None else result | {"val_loss": value})


def drawn(progress: Progress, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(progress)
    return console.export_text()


def row(progress: Progress, name: str, width: int = 80) -> str:
    """What stands beside a name in the first column."""
    lines = [line for line in drawn(progress, width).splitlines() if line.startswith(name)]
    return lines[0].removeprefix(name).strip() if lines else ""


def test_before_anything_runs_all_trials_wait(plan: Plan) -> None:
    progress = Progress(plan, {})
    progress.say("starting Ray")
    assert progress.counts() == {"waiting": 12}
    assert "starting Ray" in row(progress, "now")
    assert "0/12" in row(progress, "trials")


def test_trials_are_counted_by_state(plan: Plan) -> None:
    progress = Progress(plan, {})
    first, second, third, *_ = plan.packs
    for pack in (first, second, third):
        progress.started(pack.pack)
    progress.ended(first.lanes[0].key, "diverged")
    for lane in second.lanes:
        progress.ended(lane.key, "asha")
    progress.left(second.pack)
    assert progress.counts() == {"waiting": 6, "running": 3, "asha": 2, "diverged": 1}
    assert "3/12" in row(progress, "trials")
    assert "6 waiting  3 running" in drawn(progress, 60)


def test_trials_that_ended_before_a_resume_count_as_ended(plan: Plan) -> None:
    progress = Progress(plan, {lane.key: "completed" for lane in plan.packs[0].lanes})
    assert progress.counts() == {"waiting": 10, "completed": 2}


def test_a_pack_that_is_to_be_tried_again_waits(plan: Plan) -> None:
    progress = Progress(plan, {})
    told: list[str] = []
    progress.echo = told.append
    progress.started(plan.packs[2].pack)
    progress.retried(plan.packs[2].pack, "the worker died")
    assert progress.counts() == {"waiting": 12}
    assert told == ["to be tried again  E4M3 lr=0.001: the worker died"]


def test_rungs_count_packs_and_count_them_once(plan: Plan) -> None:
    progress = Progress(plan, {})
    first, second, *_ = plan.packs
    for step in (10, 15, 20):
        report(progress, first.pack, step)
    report(progress, second.pack, 45)
    assert row(progress, "rungs") == "step 10: 2  step 20: 2  step 40: 1"


def test_without_halving_there_are_no_rungs(tmp_path: Path) -> None:
    plan = small_plan(tmp_path, {"early_terminate": {"type": "none"}})
    assert row(Progress(plan, {}), "rungs") == ""


@pytest.mark.parametrize(
    ("goal", "best"),
    [("minimize", "2.5000  step 10  fp32 lr=0.01"), ("maximize", "4.0000  step 20  E4M3 lr=0.001")],
)
def test_the_best_is_the_best_of_what_was_measured(goal: str, best: str, tmp_path: Path) -> None:
    plan = small_plan(tmp_path, {"lanes": ["seed"], "metric": {"name": "val_loss", "goal": goal}})
    progress = Progress(plan, {})
    first, second, third, *_ = plan.packs
    report(progress, first.pack, 10, 3.0)
    report(progress, second.pack, 10, 2.5)
    report(progress, second.pack, 20, 2.75)
    report(progress, third.pack, 20, 4.0)
    report(progress, third.pack, 30, float("nan"))
    report(progress, third.pack, 40, None, lanes=0)
    assert row(progress, "best") == best


def test_a_mean_over_several_settings_says_so_and_is_best_only_where_there_is_no_other(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    progress = Progress(plan, {})
    first, second, _ = plan.packs
    both = [lane.key for lane in first.lanes]
    one_rate = [lane.key for lane in first.lanes if lane.config.lr == first.lanes[0].config.lr]
    report(progress, first.pack, 10, 2.5, alive=both)
    assert row(progress, "best") == "2.5000  step 10  mean over 2 settings  fp32"
    assert "10/80  val_loss 2.5000  mean over 2 settings  fp32" in drawn(progress, 80)
    report(progress, first.pack, 20, 2.75, alive=one_rate)
    assert row(progress, "best") == "2.7500  step 20  fp32"
    report(progress, second.pack, 20, 2.25, alive=[lane.key for lane in second.lanes])
    assert row(progress, "best") == "2.7500  step 20  fp32"
    audited = [{"key": lane.key, "audited": True} for lane in first.lanes if lane.key not in one_rate]
    report(progress, first.pack, 30, 2.0, alive=both, ended=audited)
    assert row(progress, "best") == "2.0000  step 30  fp32", "what an audit spared is in no mean"


def test_a_trials_end_is_told_where_nobody_watches(plan: Plan) -> None:
    progress = Progress(plan, {plan.packs[0].lanes[0].key: "completed"})
    told: list[str] = []
    progress.echo = told.append
    progress.ended(plan.packs[3].lanes[1].key, "rank_collapse")
    assert told == ["2/12  rank_collapse  E4M3 lr=0.01 seed=2"]


# --- time left


def test_the_time_left_is_unknown_until_something_was_done(plan: Plan, clock: Clock) -> None:
    progress = Progress(plan, {})
    assert progress.seconds_left() is None
    progress.started(plan.packs[0].pack)
    clock.now = 100.0
    assert progress.seconds_left() is None
    assert "left" not in row(progress, "", 80)


def test_the_time_left_is_what_is_planned_at_the_pace_so_far(plan: Plan, clock: Clock) -> None:
    progress = Progress(plan, {})
    clock.now = 1000.0  # Starting Ray took long, and counts for nothing.
    progress.started(plan.packs[0].pack)
    clock.now = 1008.0
    report(progress, plan.packs[0].pack, 40)
    # 2 lanes x 40 steps in 8 s; there are 12 lanes x 80 steps in all.
    assert progress.seconds_left() == pytest.approx((12 * 80 - 80) / 10)
    assert "at most 1:28 left" in drawn(progress, 80)


def test_trials_that_end_early_shorten_it(plan: Plan, clock: Clock) -> None:
    progress = Progress(plan, {})
    progress.started(plan.packs[0].pack)
    clock.now = 8.0
    report(progress, plan.packs[0].pack, 40)
    for pack in plan.packs[1:]:
        for lane in pack.lanes:
            progress.ended(lane.key, "diverged")
    assert progress.seconds_left() == pytest.approx(8.0)


def test_steps_done_before_a_resume_are_not_taken_for_speed(plan: Plan, clock: Clock) -> None:
    progress = Progress(plan, {})
    progress.started(plan.packs[0].pack)
    clock.now = 8.0
    report(progress, plan.packs[0].pack, 80, resumed_at=40)
    assert progress.seconds_left() == pytest.approx((12 * 80 - 160) / 10)


def test_steps_repeated_by_a_retry_are_still_to_be_done(plan: Plan, clock: Clock) -> None:
    progress = Progress(plan, {})
    pack = plan.packs[0].pack
    progress.started(pack)
    clock.now = 8.0
    report(progress, pack, 40)
    progress.retried(pack, "")
    progress.started(pack)
    clock.now = 10.0
    report(progress, pack, 30, resumed_at=20)
    left = progress.seconds_left()
    assert left == pytest.approx((12 * 80 - 60) * 10 / 80), "ten seconds brought no more than the 80 steps of before"


def test_a_sweep_that_is_done_has_no_time_left(plan: Plan, clock: Clock) -> None:
    progress = Progress(plan, {})
    for pack in plan.packs:
        progress.started(pack.pack)
        clock.now += 8.0
        report(progress, pack.pack, 80)
        for lane in pack.lanes:
            progress.ended(lane.key, "completed")
        progress.left(pack.pack)
    progress.say("letting Ray go")
    assert progress.seconds_left() == 0
    text = drawn(progress, 80)
    assert "12/12" in text
    assert "letting Ray go" in text
    assert "left " not in text


# --- width


@pytest.fixture
def busy(tmp_path: Path) -> Progress:
    """Twelve packs at work, half of them with a name that does not fit."""
    parameters = {**SPACE["parameters"], "layers": {"values": ["all", LONG]}}
    plan = small_plan(tmp_path, {"lanes": ["seed"], "parameters": parameters})
    progress = Progress(plan, {})
    for pack in plan.packs:
        progress.started(pack.pack)
        report(progress, pack.pack, 16, 3.125, warnings=2)
    return progress


@pytest.mark.parametrize("width", [120, 80, 60, 40])
def test_the_picture_keeps_to_the_width_and_cuts_names_not_numbers(width: int, busy: Progress) -> None:
    text = drawn(busy, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert sum("16/80  val_loss 3.1250" in line for line in lines) == 8
    assert "and 4 more" in text
    assert "0/24" in text
    assert len(lines) < 24, "it fits a terminal of 24 lines"


def test_a_name_with_brackets_is_shown_as_it_is(busy: Progress) -> None:
    assert "*.attn.[cq]*:E2M5" in drawn(busy, 120)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3600, "1:00:00"), (90_061, "25:01:01")]
)
def test_times_read_as_clocks(seconds: float, shown: str, plan: Plan, clock: Clock) -> None:
    progress = Progress(plan, {})
    clock.now = seconds
    assert f"small  {shown}," in drawn(progress, 80)
