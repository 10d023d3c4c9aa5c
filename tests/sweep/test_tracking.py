"""Weights & Biases: what is sent, where it is written, and that its trouble stays its own."""

import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import wandb
from wandb.sdk.mailbox.mailbox import MailboxClosedError
from wandb_file import records, rows

from orchestrator.sweep.tracking import HISTOGRAMS, Tracker, choose_mode

NAN = math.nan
CANARY = "c0ffee" * 6 + "cafe"


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """A tracker points W&B's folders into its own through the environment: undone after each test."""
    with mock.patch.dict(os.environ):
        yield


class FakeRun:
    """What the tracker does to a run, written down."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.summary = options, {}
        self.rows: list[dict[str, Any]] = []
        self.alerts: list[dict[str, str]] = []
        self.exit_code: int | None = None

    def define_metric(self, name: str, **options: Any) -> None: ...

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def alert(self, **options: str) -> None:
        self.alerts.append(options)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeRun]:
    """The runs that trackers open, by id; none of them reaches W&B."""
    opened: dict[str, FakeRun] = {}

    def init(**options: Any) -> FakeRun:
        opened[options["id"]] = FakeRun(options)
        return opened[options["id"]]

    monkeypatch.setattr(wandb, "init", init)
    return opened


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker("offline", tmp_path, "project", None, "sweep", 1)


def steps(*rows: tuple[str, int, float], **more: list[Any]) -> dict[str, Any]:
    keys, numbers, losses = zip(*rows, strict=True)
    return {"key": list(keys), "step": list(numbers), "loss": list(losses), **more}


# Mode


@pytest.mark.parametrize(
    ("requested", "environ", "netrc", "mode"),
    [
        ("online", {}, "", "online"),
        ("offline", {"WANDB_API_KEY": "k"}, "", "offline"),
        ("disabled", {"WANDB_MODE": "online"}, "", "disabled"),
        ("auto", {}, "", "offline"),
        ("auto", {"WANDB_API_KEY": ""}, "", "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "", "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "", "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": ""}, "", "online"),
        ("auto", {"WANDB_MODE": "disabled"}, "", "disabled"),
        ("auto", {"WANDB_MODE": "dryrun", "WANDB_API_KEY": "k"}, "", "offline"),
        ("auto", {"WANDB_MODE": "run"}, "", "online"),
        ("auto", {}, "machine api.wandb.ai login user password k", "online"),
        ("auto", {}, "machine api.wandb.ai login user", "offline"),
        ("auto", {}, "machine github.com login user password k", "offline"),
        ("auto", {}, "default login user password k", "offline"),
        ("auto", {}, "machine api.wandb.ai nonsense", "offline"),
        ("auto", {"WANDB_BASE_URL": "https://wb.lab"}, "machine api.wandb.ai login u password k", "offline"),
        ("auto", {"WANDB_BASE_URL": "http://wb.lab:8080"}, "machine wb.lab:8080 login u password k", "online"),
    ],
)
def test_the_mode_is_known_before_wandb_is_asked(
    requested: str, environ: dict[str, str], netrc: str, mode: str, tmp_path: Path
) -> None:
    path = tmp_path / "netrc"
    if netrc:
        path.write_text(netrc + "\n")
    assert choose_mode(requested, environ, path) == mode


def test_the_netrc_file_is_the_one_that_wandb_would_read(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere"
    path.write_text("machine api.wandb.ai login user password k\n")
    assert choose_mode("auto", {"NETRC": str(path)}) == "online"


@pytest.mark.parametrize(("requested", "environ"), [("on", {}), ("", {}), ("auto", {"WANDB_MODE": "shared"})])
def test_an_unknown_mode_is_refused_by_name(requested: str, environ: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=repr(environ.get("WANDB_MODE", requested))):
        choose_mode(requested, environ, Path("none"))


# What is sent


def test_a_row_reaches_the_run_of_its_key_only_with_what_is_defined(tracker: Tracker, runs: dict[str, FakeRun]) -> None:
    for key in "ab":
        tracker.start(key, key, {})
    batch = steps(("b", 2, 0.5), ("a", 1, 4.0), ("b", 1, NAN), ("gone", 1, 1.0), ("a", 2, math.inf))
    more = {
        "pack": ["p"] * 5,
        "attempt": [1] * 5,
        "flips": np.array([7, 8, 9, 0, 3]),
        "val_loss": [None, np.float32(2.5), None, None, None],
    }
    tracker.log(batch | more, {})
    assert runs["sweep-a"].rows == [
        {"step": 1, "loss": 4.0, "flips": 8, "val_loss": 2.5},
        {"step": 2, "loss": math.inf, "flips": 3},
    ]
    assert runs["sweep-b"].rows == [{"step": 1, "flips": 9}, {"step": 2, "loss": 0.5, "flips": 7}]


@pytest.mark.parametrize(("interval", "sent"), [(1, range(1, 26)), (10, [10, 12, 20, 25]), (100, [12, 25])])
def test_sent_are_the_steps_of_the_interval_the_last_and_those_with_histograms(
    interval: int, sent: Sequence[int], tmp_path: Path, runs: dict[str, FakeRun]
) -> None:
    tracker = Tracker("offline", tmp_path, "project", None, "sweep", interval)
    tracker.start("a", "a", {})
    tracker.log(steps(*(("a", step, float(step)) for step in range(1, 26))), {"key": ["a"], "step": [12], "flips": [3]})
    rows = runs["sweep-a"].rows
    assert [(row["step"], row["loss"]) for row in rows] == [(step, float(step)) for step in sent]
    assert [row["step"] for row in rows if "matrices/flips" in row] == [12]


def test_histograms_span_the_matrices_at_the_last_step_where_they_are_defined(
    tracker: Tracker, runs: dict[str, FakeRun]
) -> None:
    tracker.start("a", "a", {})
    tracker.start("b", "b", {})
    layers = {
        "key": ["a"] * 4 + ["b"] * 2,
        "step": [1, 1, 2, 2, 2, 2],
        "matrix": ["wte", "c_fc"] * 3,
        "flips": [0, 0, 2, 4, 5, 5],
        "stall_ratio": [0.5, 0.5, NAN, 0.75, NAN, NAN],
        "stable_rank": np.array([9, 9, 1, 3, math.inf, 2], dtype=np.float32),
        "effective_rank": [6.0, 8.0, None, None, None, None],
    }
    tracker.log(steps(("a", 1, 1.0), ("a", 2, 1.0), ("b", 2, 1.0)), layers)
    found = {
        key: [
            {name.split("/")[1]: (sum(h.histogram), h.bins[0], h.bins[-1]) for name, h in row.items() if "/" in name}
            for row in runs[f"sweep-{key}"].rows
        ]
        for key in "ab"
    }
    # Of each: how many matrices, the smallest value, the largest; numpy widens a single value by half to each side.
    assert found["a"] == [
        {"effective_rank": (2, 6.0, 8.0)},
        {"flips": (2, 2.0, 4.0), "stall_ratio": (1, 0.25, 1.25), "stable_rank": (2, 1.0, 3.0)},
    ]
    assert found["b"] == [{"flips": (2, 4.5, 5.5), "stable_rank": (1, 1.5, 2.5)}]


def test_one_matrix_warns_once_in_a_run(tracker: Tracker, runs: dict[str, FakeRun]) -> None:
    tracker.start("a", "a", {})
    tracker.start("b", "b", {})
    for key, kind, title in [
        ("a", "rank_warning", "Rank of wte"),
        ("a", "rank_warning", "Rank of wte"),
        ("a", "rank_warning", "Rank of " + "x" * 80),
        ("b", "rank_warning", "Rank of wte"),
        ("a", "diverged", "Diverged"),
        ("a", "completed", "Completed"),
        ("gone", "diverged", "Diverged"),
    ]:
        tracker.alert(key, kind, title, "text")
    sent = {key: [(a["title"], a["level"]) for a in run.alerts] for key, run in runs.items()}
    long_title = ("Rank of " + "x" * 80)[:63]
    assert sent == {
        "sweep-a": [("Rank of wte", "WARN"), (long_title, "WARN"), ("Diverged", "ERROR")],
        "sweep-b": [("Rank of wte", "WARN")],
    }


@pytest.mark.parametrize(("reason", "exit_code"), [("completed", 0), ("diverged", 0), ("asha", 0), ("failed", 1)])
def test_only_a_fault_marks_a_run_failed(
    tracker: Tracker, runs: dict[str, FakeRun], reason: str, exit_code: int
) -> None:
    tracker.start("a", "a", {})
    tracker.finish("a", reason, {"val_loss": 2.0, "loss": NAN, "best": None, "step": 9})
    tracker.finish("a", reason, {})
    tracker.log(steps(("a", 10, 1.0)), {})
    run = runs["sweep-a"]
    assert (run.exit_code, run.summary) == (exit_code, {"val_loss": 2.0, "step": 9, "reason": reason})
    assert not run.rows


def test_closing_ends_what_is_still_open_without_giving_a_reason(tracker: Tracker, runs: dict[str, FakeRun]) -> None:
    for key in "abc":
        tracker.start(key, key, {})
    tracker.finish("b", "completed", {})
    tracker.close()
    tracker.close()
    assert {key: (run.exit_code, run.summary) for key, run in runs.items()} == {
        "sweep-a": (0, {}),
        "sweep-b": (0, {"reason": "completed"}),
        "sweep-c": (0, {}),
    }


@pytest.mark.parametrize(("mode", "resume"), [("online", "allow"), ("offline", None)])
def test_a_retried_lane_goes_on_in_its_own_run(
    mode: str, resume: str | None, tmp_path: Path, runs: dict[str, FakeRun]
) -> None:
    Tracker(mode, tmp_path, "project", "team", "sweep", 1).start("a", "E4M3", {"lr": 1e-3}, ["t" * 70, ""])
    options = runs["sweep-a"].options
    expected = {"mode": mode, "resume": resume, "group": "sweep", "entity": "team", "tags": ["t" * 63]}
    assert {name: options[name] for name in expected} == expected
    assert (options["name"], options["config"], options["reinit"]) == ("E4M3", {"lr": 1e-3}, "create_new")


# Trouble


@pytest.mark.parametrize("place", ["init", "define_metric", "log", "alert", "finish"])
@pytest.mark.parametrize(
    "error",
    [
        wandb.errors.CommError("no answer"),
        wandb.errors.UsageError("bad project"),
        ConnectionResetError("lost"),
        TimeoutError("slow"),
        ValueError("not a number"),
        MailboxClosedError("closed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_trouble_is_one_warning_and_then_silence(
    place: str,
    error: Exception,
    tracker: Tracker,
    runs: dict[str, FakeRun],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = mock.Mock(side_effect=error)
    monkeypatch.setattr(wandb if place == "init" else FakeRun, place, failing)
    for key in "ab":
        tracker.start(key, key, {})
        tracker.log(steps((key, 1, 1.0)), {})
        tracker.alert(key, "diverged", "Diverged", "text")
        tracker.finish(key, "diverged", {})
    tracker.close()
    assert failing.call_count == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert type(error).__name__ in caplog.text
    assert str(error) in caplog.text


def test_a_trial_being_stopped_is_not_held_back(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", mock.Mock(side_effect=SystemExit(1)))
    with pytest.raises(SystemExit):
        tracker.start("a", "a", {})


def test_a_folder_that_cannot_be_made_is_trouble_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    Tracker("offline", tmp_path / "file", None, None, "sweep", 1).start("a", "a", {})
    assert "NotADirectoryError" in caplog.text or "FileExistsError" in caplog.text


# The real wandb, in processes of their own

OFFLINE = """
from pathlib import Path
from orchestrator.sweep.tracking import Tracker, choose_mode
import os, sys
tracker = Tracker(choose_mode("auto", os.environ), Path(sys.argv[1]), "project", None, "sweep", 1)
lanes = "ab"
for lane, key in enumerate(lanes):
    tracker.start(key, f"lane {key}", {"lr": 0.5, "layers": [{"match": "*"}]}, ["E4M3"])
for first in (1, 4):
    rows = [(key, step) for step in range(first, first + 3) for key in lanes]
    keys, steps = [key for key, _ in rows], [step for _, step in rows]
    tracker.log(
        {"key": keys, "step": steps, "loss": [1 / step + (key == "b") for key, step in rows]},
        {"key": keys * 3, "step": steps * 3, "flips": range(3 * len(rows))},
    )
tracker.alert("a", "diverged", "Diverged", "the loss is not finite")
tracker.finish("a", "diverged", {"best": 0.25})
tracker.close()
"""

KILLED = """
import os, signal, sys
from pathlib import Path
from orchestrator.sweep.tracking import Tracker
tracker = Tracker("offline", Path(sys.argv[1]), "project", None, "sweep", 1)
tracker.start("a", "a", {})
parents = {int(p.name): (p / "stat").read_text().rsplit(")")[-1].split()[1] for p in Path("/proc").glob("[0-9]*")}
service, = [pid for pid, parent in parents.items() if parent == str(os.getpid())]
os.kill(service, signal.SIGKILL)
os.waitpid(service, 0)
for step in range(1, 4):
    tracker.log({"key": ["a"], "step": [step], "loss": [1.0]}, {})
tracker.finish("a", "completed", {})
tracker.close()
print("trained on")
"""


def python(code: str, home: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process whose home, temporary and working folders are new and empty."""
    places = {name: home / name for name in ("home", "tmp", "work")}
    for place in places.values():
        place.mkdir()
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2]), "WANDB_API_KEY": CANARY}
    environ |= {"HOME": str(places["home"]), "TMPDIR": str(places["tmp"]), "WANDB_MODE": "offline"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environ, cwd=places["work"], capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A sweep's two lanes tracked offline in a fresh process; what it left, and what it said."""
    home = tmp_path_factory.mktemp("offline")
    process = python(OFFLINE, home, home / "runs")
    files = {path.name: path for path in (home / "runs").glob("wandb/offline-run-*/*.wandb")}
    return SimpleNamespace(home=home, process=process, files=files)


def test_an_offline_run_is_quiet_and_leaves_one_file_a_lane(offline: SimpleNamespace) -> None:
    assert (offline.process.returncode, offline.process.stdout, offline.process.stderr) == (0, "", "")
    assert sorted(offline.files) == ["run-sweep-a.wandb", "run-sweep-b.wandb"]


@pytest.mark.parametrize(("lane", "offset"), [("a", 0), ("b", 1)])
def test_the_file_holds_every_scalar_of_every_step_of_its_lane(
    offline: SimpleNamespace, lane: str, offset: int
) -> None:
    found = list(records(offline.files[f"run-sweep-{lane}.wandb"]))
    history = rows(offline.files[f"run-sweep-{lane}.wandb"])
    assert [(row["step"], row["loss"]) for row in history] == [(step, 1 / step + offset) for step in range(1, 7)]
    shown = {row["step"]: (row["matrices/flips._type"], sum(row["matrices/flips.values"])) for row in history[2::3]}
    assert shown == {3: ("histogram", 3), 6: ("histogram", 3)}
    assert sum("matrices/flips._type" in row for row in history) == 2
    (run,) = [record.run for record in found if record.HasField("run")]
    assert (run.display_name, run.run_group, list(run.tags)) == (f"lane {lane}", "sweep", ["E4M3"])


def test_the_file_holds_the_alert_and_the_reason(offline: SimpleNamespace) -> None:
    found = list(records(offline.files["run-sweep-a.wandb"]))
    assert [(r.alert.title, r.alert.level) for r in found if r.HasField("alert")] == [("Diverged", "ERROR")]
    summary = {item.key: item.value_json for r in found if r.HasField("summary") for item in r.summary.update}
    assert (summary["reason"], summary["best"]) == ('"diverged"', "0.25")


def test_nothing_is_written_outside_the_folder(offline: SimpleNamespace) -> None:
    assert sorted(path.name for path in offline.home.iterdir()) == ["home", "runs", "tmp", "work"]
    assert [path for name in ("home", "tmp", "work") for path in (offline.home / name).rglob("*")] == []


def test_the_key_in_the_environment_is_in_no_file(offline: SimpleNamespace) -> None:
    written = [path for path in (offline.home / "runs").rglob("*") if path.is_file()]
    assert written
    assert [path for path in written if CANARY.encode() in path.read_bytes()] == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds W&B's service process through /proc")
def test_a_trial_outlives_the_service_process_of_wandb(tmp_path: Path) -> None:
    process = python(KILLED, tmp_path, tmp_path / "runs")
    assert (process.returncode, process.stdout) == (0, "trained on\n")
    assert process.stderr.count("W&B could not") == 1


def test_disabled_touches_nothing_and_imports_nothing(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from orchestrator.sweep.tracking import Tracker
tracker = Tracker("disabled", Path(sys.argv[1]), None, None, "sweep", 1)
tracker.start("a", "a", {}, [])
tracker.log({"key": ["a"], "step": [1], "loss": [1.0]}, {})
tracker.alert("a", "diverged", "title", "text")
tracker.finish("a", "diverged", {})
tracker.close()
print("wandb" in sys.modules)
"""
    process = python(code, tmp_path, tmp_path / "runs")
    assert (process.stdout, process.stderr) == ("False\n", "")
    assert not (tmp_path / "runs").exists()


def test_the_histograms_are_columns_of_the_layers_table() -> None:
    from orchestrator.results.schema import SCHEMAS

    assert set(HISTOGRAMS) <= set(SCHEMAS["layers"].names)
