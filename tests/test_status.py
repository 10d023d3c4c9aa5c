"""`altgrad status`: where a sweep stands, from its plan and journal alone, live or dead, once or watched."""

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from command import Command
from results.synthetic_sweep import Sweep
from rich.console import Console

from orchestrator.cli import running
from orchestrator.results.journal import Journal
from orchestrator.results.store import Store
from orchestrator.status import Disk, Status, Watch, status

LONG = "*.attn.[cq]*:E2M5,*.mlp.c_proj:bf16,*.wte.*:E5M2,lm_head:bf16 adamw nearest"
NOON = datetime(2026, 1, 1, 12)


class Told:
    """A sweep of six packs with two lanes and 400 steps each, and a journal told by hand; minutes count from noon."""

    def __init__(self, folder: Path) -> None:
        self.sweep = Sweep(Store.open(folder / "run"))
        self.sweep.plan["space"]["early_terminate"] = {"type": "asha", "scope": "cell", "min_iter": 100, "eta": 2}
        for number_format in ("fp32", "E4M3", "E5M2"):
            for lr in (0.001, 0.01):
                self.sweep.add_pack(2, format=number_format, lr=lr)
        self.packs = self.sweep.plan["packs"]
        self.records: list[dict[str, Any]] = []

    def note(self, minute: float, event: str, **more: Any) -> None:
        time = (NOON + timedelta(minutes=minute)).isoformat(timespec="milliseconds")
        self.records.append({"time": time, "event": event, **more})

    def begin(self, minute: float, host: str | None = None, pid: int | None = None) -> None:
        self.note(minute, "sweep_started", host=host or socket.gethostname(), pid=pid or os.getppid())

    def start(self, minute: float, *packs: int) -> None:
        for number in packs:
            self.note(minute, "pack_started", pack=self.packs[number]["pack"])

    def report(self, minute: float, number: int, step: int, value: float | None = 3.0, **metrics: Any) -> None:
        measured = {"lanes": 2, "warnings": 0, **metrics} | ({} if value is None else {"val_loss": value})
        self.note(minute, "reported", pack=self.packs[number]["pack"], attempt=1, step=step, metrics=measured)

    def end(self, minute: float, number: int, reason: str, step: int) -> None:
        for lane in self.packs[number]["lanes"]:
            message = f"{reason}, on these numbers"
            self.note(minute, "lane_ended", pack=self.packs[number]["pack"], key=lane["key"], reason=reason, step=step,
                      message=message)  # fmt: skip

    def fail(self, minute: float, number: int, again: bool) -> None:
        error = "OutOfMemoryError: a worker was killed"
        self.note(minute, "pack_failed", pack=self.packs[number]["pack"], kind="lost", again=again, error=error)

    def at(self, minute: float) -> Status:
        return status(self.sweep.plan, self.records, NOON + timedelta(minutes=minute), Disk(46_000_000, 120 * 10**9))

    def kept(self) -> Path:
        """The run's folder with this journal."""
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        self.sweep.store.write_bytes("journal.jsonl", lines.encode())
        return Path(self.sweep.store.uri)


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path)


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever drives is alive: these journals are older than any process."""
    monkeypatch.setattr("orchestrator.results.driver.Driver.is_alive", True)


@pytest.fixture
def halfway(told: Told, alive: None) -> Told:
    """A sweep that runs: two packs have ended, one waits for its next attempt, two are at work, one waits."""
    told.begin(0)
    told.start(1, 0, 1)
    told.report(2, 0, 200, 2.5)
    told.report(2, 1, 200, 2.75)
    told.end(2, 1, "asha", 200)
    told.report(3, 0, 400, 2.25)
    told.end(3, 0, "completed", 400)
    told.start(3, 2, 3, 4)
    told.report(4, 2, 100, 3.5)
    told.report(4, 3, 100, 3.25, warnings=3)
    told.fail(4, 4, again=True)
    return told


def drawn(found: Status, width: int = 80) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as captured:
        console.print(found.picture())
    return captured.get()


def row(found: Status, name: str) -> str:
    return next((line for line in drawn(found).splitlines() if line.startswith(name)), "")


def test_trials_are_counted_by_state(halfway: Told) -> None:
    found = halfway.at(5)
    assert found.trials == {"planned": 2, "running": 4, "completed": 2, "asha": 2, "failed": 2}
    assert "6/12" in row(found, "trials")


def test_rungs_name_the_packs_that_reached_them(halfway: Told) -> None:
    found = halfway.at(5)
    assert found.rungs == {100: ["p000", "p001", "p002", "p003"], 200: ["p000", "p001"]}
    assert "step 100: 4  step 200: 2" in row(found, "rungs")


def test_without_halving_there_are_no_rungs(halfway: Told) -> None:
    halfway.sweep.plan["space"] = {}
    assert halfway.at(5).rungs == {}
    assert row(halfway.at(5), "rungs") == ""


@pytest.mark.parametrize(
    ("goal", "best"),
    [("minimize", [("p000", 2.25, 400), ("p003", 3.25, 100)]), ("maximize", [("p002", 3.5, 100), ("p001", 2.75, 200)])],
)
def test_the_best_pack_of_every_cell_comes_with_the_step_it_was_measured_at(
    goal: str, best: list[tuple[str, float, int]], halfway: Told
) -> None:
    halfway.sweep.plan["metric"]["goal"] = goal
    found = halfway.at(5)
    assert [(each.pack, each.value, each.value_step) for each in found.best] == best


class Mixed(Told):
    """Two seeds of two learning rates side by side in each of three packs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sweep.plan["packs"].clear()
        for number_format in ("fp32", "E4M3", "E5M2"):
            rates = {"seed": [0, 0, 1, 1], "lr": [0.001, 0.01] * 2}
            self.sweep.add_pack(4, format=number_format, lane_values=rates)["nuisance"].clear()

    def end_lanes(self, minute: float, number: int, reason: str, step: int, *lanes: int, event: str = "ended") -> None:
        pack = self.packs[number]
        for lane in lanes:
            key = pack["lanes"][lane]["key"]
            self.note(minute, f"lane_{event}", pack=pack["pack"], key=key, reason=reason, step=step)


@pytest.fixture
def mixed(tmp_path: Path, alive: None) -> Mixed:
    told = Mixed(tmp_path)
    told.begin(0)
    told.start(1, 0, 1, 2)
    return told


def settings(found: Status) -> list[tuple[str, int]]:
    return [(each.pack, each.settings) for each in found.best]


def test_a_mean_over_several_settings_says_so_and_stands_behind_those_over_one(mixed: Mixed) -> None:
    for number, value in enumerate((2.5, 2.75, 3.0)):
        mixed.report(2, number, 80, value, lanes=4)
    assert settings(mixed.at(3)) == [("p000", 2), ("p001", 2), ("p002", 2)]
    assert "2.5000  step 80  mean over 2 settings  fp32" in row(mixed.at(3), "best")
    assert "80/400  val_loss 2.5000  mean over 2 settings  fp32" in row(mixed.at(3), "now")
    mixed.report(4, 2, 100, 2.9, lanes=2)  # the mean is that of the lanes that the halving left
    mixed.end_lanes(4, 2, "asha", 100, 1, 3)
    assert settings(mixed.at(5)) == [("p002", 1), ("p000", 2), ("p001", 2)]
    assert "2.9000  step 100  E5M2" in row(mixed.at(5), "best")


def test_the_settings_of_a_mean_are_those_that_lived_at_its_report(mixed: Mixed) -> None:
    mixed.report(2, 0, 100, lanes=2)
    mixed.end_lanes(2, 0, "asha", 100, 1, 3)
    mixed.end_lanes(2, 0, "asha", 100, 0, 2)  # stopped by its peers at the report at which it was halved
    mixed.report(2, 1, 100, lanes=2)
    mixed.end_lanes(2, 1, "diverged", 90, 0, 3)  # one of either learning rate
    mixed.report(2, 2, 400, lanes=4)
    mixed.end_lanes(2, 2, "completed", 400, 0, 1, 2, 3)
    assert dict(settings(mixed.at(3))) == {"p000": 1, "p001": 2, "p002": 2}


def test_what_an_audit_spared_is_in_no_mean(mixed: Mixed) -> None:
    mixed.report(2, 0, 100, lanes=4)
    mixed.end_lanes(2, 0, "asha", 100, 1, 3, event="audited")
    mixed.report(2, 1, 100, lanes=4)
    mixed.end_lanes(3, 1, "asha", 200, 1, 3, event="audited")
    assert dict(settings(mixed.at(4))) == {"p000": 1, "p001": 2}


def test_what_was_lost_is_not_among_the_best_and_a_report_without_the_metric_keeps_the_last(halfway: Told) -> None:
    halfway.end(5, 0, "diverged", 400)
    halfway.report(5, 3, 200, None)
    found = halfway.at(5)
    assert [(each.pack, each.value, each.value_step) for each in found.best] == [
        ("p001", 2.75, 200),
        ("p003", 3.25, 100),
    ]


def test_warnings_are_those_of_the_last_reports_of_packs_that_go_on(halfway: Told) -> None:
    assert [(each.pack, each.warnings) for each in halfway.at(5).warned] == [("p003", 3)]
    assert "3 at step 100  E4M3 adamw master lr=0.01" in row(halfway.at(5), "warned")
    halfway.report(5, 3, 200, 3.0)
    assert halfway.at(5).warned == []
    halfway.report(6, 3, 300, 3.0, warnings=1)
    halfway.end(6, 3, "rank_collapse", 300)
    assert halfway.at(6).warned == []


def test_failures_have_their_reason_until_the_pack_is_placed_again(halfway: Told) -> None:
    (failure,) = halfway.at(5).failures
    assert (failure.pack, failure.kind, failure.again) == ("p004", "lost", True)
    assert "E5M2 adamw master lr=0.001, to be tried again: OutOfMemoryError" in row(halfway.at(5), "failed")
    halfway.start(5, 4)
    assert halfway.at(5).failures == []
    halfway.fail(6, 4, again=False)
    assert not halfway.at(6).failures[0].again


def test_packs_at_work_say_how_far_they_are(halfway: Told) -> None:
    found = halfway.at(5)
    assert [(each.pack, each.step, each.steps) for each in found.at_work] == [("p002", 100, 400), ("p003", 100, 400)]
    text = drawn(found)
    assert "100/400  val_loss 3.5000  E4M3 adamw master lr=0.001" in text
    assert "100/400  val_loss 3.2500  rank warnings 3  E4M3" in text


# --- time left


def test_the_time_left_is_what_is_planned_at_the_pace_since_the_first_pack_was_placed(halfway: Told) -> None:
    # 2 lanes x (400 + 200 + 100 + 100) steps in four minutes; two packs have 300 steps to go, two have 400.
    assert halfway.at(5).seconds_left == pytest.approx(240 * (2 * 1400) / 1600)
    assert "at most 7:00 left" in drawn(halfway.at(5))


def test_a_pack_that_was_given_up_takes_no_more_time(halfway: Told) -> None:
    halfway.fail(5, 4, again=False)
    assert halfway.at(5).seconds_left == pytest.approx(240 * (2 * 1000) / 1600)


def test_a_resume_has_its_own_pace_and_what_is_measured_again_brings_nothing(halfway: Told) -> None:
    halfway.begin(60)
    assert halfway.at(61).seconds_left is None
    halfway.start(61, 2)
    halfway.report(62, 2, 50)
    assert halfway.at(62).seconds_left is None
    halfway.report(63, 2, 150)
    assert halfway.at(63).seconds_left == pytest.approx(120 * (2 * (250 + 300 + 400 + 400)) / 100)


# --- who runs it


def test_who_runs_it_is_said(told: Told, alive: None) -> None:
    assert told.at(0).driver == "none"
    assert "not begun yet" in drawn(told.at(0))
    told.begin(0)
    assert (told.at(1).driver, told.at(1).running) == ("alive", True)
    assert f"being run (process {os.getppid()}, last heard 1:00 ago)" in drawn(told.at(1))
    told.note(2, "sweep_ended", reason="SIGTERM")
    assert (told.at(3).driver, told.at(3).running) == ("ended", False)
    assert "not being run: ended 2026-01-01 12:02 UTC (SIGTERM)" in drawn(told.at(3))


def test_a_driver_that_is_gone_without_a_word_runs_nothing(halfway: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.results.driver.Driver.is_alive", False)
    found = halfway.at(5)
    assert (found.driver, found.running, found.at_work, found.seconds_left) == ("vanished", False, [], None)
    assert "running" not in found.trials
    assert "is gone without a word" in drawn(found)


def test_one_on_another_host_may_still_run(told: Told) -> None:
    told.begin(0, host="node-7", pid=12)
    told.start(1, 0)
    told.report(2, 0, 100)
    found = told.at(3)
    assert (found.driver, found.running, found.seconds_left is not None) == ("elsewhere", True, True)
    assert "begun on node-7 (process 12, not to be seen from here), at most" in drawn(found, 120)


# --- the command


def test_what_would_steer_the_terminal_is_seen_and_steers_nothing(told: Told, command: Command) -> None:
    told.begin(0)
    told.note(2, "sweep_ended", reason="\x1b[2J")
    told.packs[0]["cell"] = "fp32 \x1b]0;title\x07 \x9b31m\r"
    told.sweep.save()
    told.fail(1, 0, again=False)
    told.records[-1]["error"] = "\x1b[31mred\x1b[0m"
    done = command("status", told.kept())
    assert done.code == 0
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set(done.out + done.err)
    for words in (r"\x1b[2J", r"\x1b]0;title\x07", r"\x9b31m\x0d", r"\x1b[31mred"):
        assert words in done.out, words
    missing = command("status", "no\x1b[2Jrun")
    assert (missing.code, "\x1b" in missing.err) == (2, False)


def test_the_command_shows_why_trials_ended_and_how_to_go_on(halfway: Told, command: Command, monkeypatch) -> None:
    monkeypatch.setattr("orchestrator.results.driver.Driver.is_alive", False)
    run = halfway.kept()
    done = command("status", run)
    assert done.code == 0
    assert "asha, on these numbers" in done.out
    assert "OutOfMemoryError" in done.out
    assert "disk" in done.out
    assert f"go on with: altgrad resume {run}" in done.err


def test_of_many_ends_the_command_tells_those_first_that_need_somebody(told: Told, command: Command) -> None:
    for _ in range(4):
        told.sweep.add_pack(2)
    for number in range(9):
        told.end(1, number, "asha", 200)
    told.end(2, 9, "diverged", 7)
    done = command("status", told.kept())
    assert done.out.index("diverged @7") < done.out.index("asha @200")
    assert done.out.count("asha @200") == 7
    assert f"and 2 more: altgrad query {told.sweep.store.uri} @ends" in done.out


def test_json_has_all_of_it(halfway: Told, command: Command) -> None:
    done = command("status", halfway.kept(), "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out, parse_constant=lambda text: pytest.fail(f"not JSON: {text}"))
    assert found["running"] is True
    assert found["trials"] == halfway.at(5).trials
    assert found["rungs"]["200"] == ["p000", "p001"]
    assert found["best"][0]["value"] == 2.25
    assert [each["pack"] for each in found["at_work"]] == ["p002", "p003"]
    assert found["failures"][0]["error"].startswith("OutOfMemoryError")
    assert found["disk"]["used"] > 0
    assert found["heard"] == "2026-01-01T12:04:00"
    assert [lane["reason"] for lane in found["lanes"] if lane["pack"] == "p001"] == ["asha", "asha"]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_picture_keeps_to_the_width_with_long_names(width: int, halfway: Told) -> None:
    for pack in halfway.packs:
        pack["cell"] = LONG
    lines = drawn(halfway.at(5), width).splitlines()
    assert max(map(len, lines)) <= width
    assert any("100/400  val_loss 3.5000" in line for line in lines), "numbers are not cut"


def test_the_table_keeps_to_the_width_and_leaves_nothing_out(halfway: Told, command: Command) -> None:
    for pack in halfway.packs:
        pack["cell"] = LONG
    halfway.sweep.save()
    done = command("status", halfway.kept())
    assert max(map(len, done.out.splitlines())) <= 80
    assert "rank_collapse" not in done.out
    for words in ("asha", "failed", "k0010", "lm_head:bf16"):
        assert words in done.out


def happenings(monkeypatch: pytest.MonkeyPatch, *each: Callable[[], None]) -> list[float]:
    """What happens while the command sleeps, one thing after another; returns how long it meant to sleep."""
    left, slept = list(each), []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        left.pop(0)()

    monkeypatch.setattr(running.time, "sleep", sleep)
    return slept


def test_a_watched_sweep_is_shown_again_when_something_is_new_until_it_has_ended(
    halfway: Told, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, journal = halfway.kept(), Journal(halfway.sweep.store)
    slept = happenings(
        monkeypatch,
        lambda: None,
        lambda: journal.append({"event": "pack_started", "pack": "p005"}),
        lambda: journal.append({"event": "sweep_ended", "reason": "SIGTERM"}),
    )
    done = command("status", run, "--watch", "--every", "0.5")
    assert done.code == 0
    assert slept == [0.5] * 3
    assert [words in done.out for words in ("4 running", "6 running", "(SIGTERM)")] == [True] * 3
    assert done.out.count("4 running") == 1, "nothing was new"


def test_on_a_terminal_it_is_redrawn_in_its_place(
    halfway: Told, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(running, "out", Console(file=screen, force_terminal=True, width=80, no_color=True))
    run, journal = halfway.kept(), Journal(halfway.sweep.store)
    happenings(monkeypatch, lambda: None, lambda: journal.append({"event": "sweep_ended", "reason": "SIGINT"}))
    assert command("status", run, "--watch").code == 0
    drawn_over = screen.getvalue()
    assert drawn_over.count("4 running") >= 2
    assert "\x1b[1A" in drawn_over, "the cursor goes up again"
    assert "(SIGINT)" in drawn_over


def test_watched_as_json_it_is_a_line_each_time(
    halfway: Told, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, journal = halfway.kept(), Journal(halfway.sweep.store)
    happenings(monkeypatch, lambda: None, lambda: journal.append({"event": "sweep_ended", "reason": "finished"}))
    done = command("status", run, "--watch", "--json")
    assert [json.loads(line)["running"] for line in done.out.splitlines()] == [True, False]


def test_ctrl_c_leaves_the_picture_and_is_no_error(
    halfway: Told, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ctrl_c() -> None:
        raise KeyboardInterrupt

    happenings(monkeypatch, ctrl_c)
    done = command("status", halfway.kept(), "--watch")
    assert done.code == 0
    assert "4 running" in done.out


def test_what_does_not_run_is_not_waited_for(halfway: Told, command: Command) -> None:
    halfway.note(9, "sweep_ended", reason="finished")
    assert command("status", halfway.kept(), "--watch").code == 0


def test_the_size_of_a_folder_is_not_measured_at_every_look(halfway: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    halfway.kept()
    measured, watch = [], Watch(halfway.sweep.store)
    monkeypatch.setattr("orchestrator.status.watch._disk", lambda store: measured.append(store))
    for _ in range(5):
        watch.look()
    assert len(measured) == 1


def test_a_run_in_a_bucket_has_no_disk(halfway: Told) -> None:
    store = halfway.sweep.store
    store.uri = "s3://bucket/run"
    found, _ = Watch(store).look()
    assert found.disk is None
    assert row(found, "disk") == ""


def test_it_needs_neither_ray_nor_torch(halfway: Told) -> None:
    code = (
        f"import sys; sys.argv = ['altgrad', 'status', {str(halfway.kept())!r}]\n"
        "from orchestrator.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'ray', 'duckdb', 'wandb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
