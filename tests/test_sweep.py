"""Whole sweeps through the command, as a person runs them: to the end, interrupted, resumed, repeated."""

import shutil
import signal
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sweeps import ROOT, SMOKE, altgrad, interrupt, query, records
from wandb_file import rows

from orchestrator.preflight import disk
from orchestrator.results.store import Store
from orchestrator.run_folder import read_plan

STEPS = 150
LONGER = [f"steps={STEPS}", "format=[fp32,E4M3]", "checkpoint_interval=20", "wandb.interval=4"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished sweep, and what the command printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = altgrad("sweep", SMOKE, *LONGER, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "smoke", done.stdout


def test_a_sweep_prints_its_matrix_how_trials_ended_and_what_to_type_next(undisturbed: tuple[Path, str]) -> None:
    _, printed = undisturbed
    for words in ("fp32", "E4M3", "master", "nearest", "excluded", "Trials: 6 completed", "altgrad query"):
        assert words in printed


def test_its_journal_says_which_process_began_it_when_and_where(undisturbed: tuple[Path, str]) -> None:
    run, _ = undisturbed
    (started,) = [record for record in records(run) if record["event"] == "sweep_started"]
    assert started["folder"] == str(run.resolve())
    before = datetime.fromisoformat(started["time"]) - datetime.fromisoformat(started["began"])
    assert timedelta(seconds=-2) < before < timedelta(minutes=2)


def test_every_step_of_every_trial_is_kept_once(undisturbed: tuple[Path, str]) -> None:
    run, _ = undisturbed
    (steps,) = query(run, "SELECT count(*) AS n, count(DISTINCT (key, step)) AS d, max(step) AS last FROM steps")
    assert steps == {"n": 6 * STEPS, "d": 6 * STEPS, "last": STEPS}
    (layers,) = query(run, "SELECT count(*) AS n, count(DISTINCT matrix) AS m FROM layers")
    assert layers == {"n": 6 * STEPS * 6, "m": 6}
    (flips,) = query(run, "SELECT count(flips) AS n FROM steps JOIN trials USING (key) WHERE format = 'fp32'")
    assert flips["n"] == 0, "float32 has no codes"
    (stalls,) = query(run, "SELECT min(stall_ratio) AS low, max(stall_ratio) AS high FROM layers")
    assert 0 <= stalls["low"] < stalls["high"] <= 1


def test_the_control_is_placed_first_and_every_trial_ends_exactly_once(undisturbed: tuple[Path, str]) -> None:
    run, _ = undisturbed
    started = [record["pack"] for record in records(run) if record["event"] == "pack_started"]
    assert any(pack.startswith("p000-") for pack in started[:2]), "as many packs start at once as there are cores"
    ended = [record["key"] for record in records(run) if record["event"] == "lane_ended"]
    assert len(ended) == len(set(ended)) == 6


def test_what_it_ran_on_and_with_is_recorded(undisturbed: tuple[Path, str]) -> None:
    run, _ = undisturbed
    (started,) = [record for record in records(run) if record["event"] == "sweep_started"]
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    assert started["versions"].get("commit", "") == commit
    (settled,) = [record for record in records(run) if record["event"] == "resources_settled"]
    assert (settled["cpu"], settled["gpu"], settled["device"]) == (1.0, 0, "CPU")


def test_without_a_key_wandb_writes_offline_into_the_runs_folder(undisturbed: tuple[Path, str]) -> None:
    run, _ = undisturbed
    files = list((run / "wandb").rglob("*.wandb"))
    assert len(files) == 6
    steps = [[row["step"] for row in rows(file)] for file in files]
    full = [step for step in range(1, STEPS + 1) if step % 4 == 0 or step % 10 == 0]
    assert full in steps
    assert all(found == full[: len(found)] for found in steps), "some ended early, at a report"
    outside = {path.name for path in run.parent.parent.iterdir()}
    assert outside - {".cache", ".config", ".ray", ".local"} == {"runs"}


def test_what_it_wrote_was_foreseen_and_checkpoints_went_with_their_packs(undisturbed: tuple[Path, str]) -> None:
    run, _ = undisturbed
    foreseen, wandb = disk(read_plan(Store.open(run))), (run / "wandb").rglob("*")
    sizes = Store.open(run).sizes()
    rows = sum(size for path, size in sizes.items() if not path.startswith(("ray/", "wandb/")))
    for estimated, written in ((foreseen.rows, rows), (foreseen.wandb, sum(path.stat().st_size for path in wandb))):
        assert estimated / 2 < written < estimated * 2
    assert foreseen.checkpoints > 0
    assert not [path for path in sizes if "checkpoint-" in path], "a pack that has ended needs none"


def test_a_finished_sweep_is_not_run_again(undisturbed: tuple[Path, str]) -> None:
    run, _ = undisturbed
    before = records(run)
    again = altgrad("sweep", SMOKE, *LONGER, cwd=run.parent.parent)
    assert again.returncode == 0
    assert "nothing is left to run" in again.stderr
    assert "E4M3" in again.stdout
    assert records(run) == before


@pytest.mark.long
@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGINT, signal.SIGINT], 130),
    ],
    ids=["Ctrl-C", "Ctrl-C twice"],
)
def test_an_interrupted_sweep_resumes_to_the_same_rows(
    signals: list[signal.Signals], code: int, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "smoke"
    ended = interrupt(["sweep", SMOKE, *LONGER], run, signals, reports=8, cwd=tmp_path)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert f"altgrad resume {run}" in ended.stderr
    resumed = altgrad("resume", run, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    for table in ("steps", "layers"):
        rows = f"SELECT * EXCLUDE (pack, attempt) FROM {table} ORDER BY ALL"
        assert query(run, rows) == query(undisturbed[0], rows)
    keys = {record["key"] for record in records(run) if record["event"] == "lane_ended"}
    assert len(keys) == 6


def test_another_sweep_does_not_enter_a_folder_that_is_taken(undisturbed: tuple[Path, str]) -> None:
    run, _ = undisturbed
    other = altgrad("sweep", SMOKE, "steps=20", cwd=run.parent.parent)
    assert other.returncode == 2
    assert "already holds another sweep" in other.stderr
    assert "--name" in other.stderr


def test_a_wider_space_runs_what_is_new_and_shows_it_beside_the_rest(
    undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "smoke"
    shutil.copytree(undisturbed[0], run)
    before = records(run)
    wider = altgrad("sweep", SMOKE, *LONGER, "format=[fp32,E4M3,E5M2]", cwd=tmp_path)
    assert wider.returncode == 0, wider.stderr
    assert "widened: 4 new trials in 2 packs; 6 known" in wider.stderr
    assert "Trials: 10 completed" in wider.stdout
    started = [record["pack"] for record in records(run)[len(before) :] if record["event"] == "pack_started"]
    assert sorted(pack[:4] for pack in started) == ["p003", "p004"]
    (trials,) = query(run, "SELECT count(*) AS n, count(DISTINCT pack) AS packs, min(step) AS step FROM trials")
    assert trials == {"n": 10, "packs": 5, "step": STEPS}
    rows = "SELECT * FROM steps JOIN trials USING (key) WHERE format IN ('fp32', 'E4M3') ORDER BY ALL"
    assert query(run, rows) == query(undisturbed[0], rows)


def test_a_damaged_chunk_is_named_and_the_rest_is_read(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    run = tmp_path / "smoke"
    shutil.copytree(undisturbed[0], run)
    shutil.rmtree(run / "dataset")
    chunk = next(iter(sorted(run.glob("packs/*/attempt-1/steps-000001.parquet"))))
    chunk.write_bytes(chunk.read_bytes()[:-100])
    done = altgrad("consolidate", run, cwd=tmp_path)
    assert done.returncode == 5
    assert chunk.name in done.stderr
    (steps,) = query(run, "SELECT count(*) AS n FROM steps")
    assert 0 < steps["n"] < 6 * STEPS
    shown = altgrad("matrix", run, cwd=tmp_path)
    assert shown.returncode == 0
    assert chunk.name in shown.stderr, "who reads an incomplete matrix is told"


@pytest.fixture(scope="module")
def lost_trials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with a learning rate that blows up, beside one that does not, and the halving of rates in a pack."""
    folder = tmp_path_factory.mktemp("lost")
    (folder / "lost.yaml").write_text(
        """
name: lost
parameters:
  format: {values: [fp32, E4M3]}
  lr: {values: [1e-3, 1e-2, 1e30]}
  seed: {values: [1, 2]}
lanes: [seed, lr]
control: {format: fp32, optimizer: adamw, storage: master, layers: all}
run:
  optimizer: adamw
  model: {n_layer: 1, n_head: 2, n_embd: 32, block_size: 32}
  batch_size: 4
  steps: 60
  warmup_steps: 5
  report_interval: 10
  eval_batches: 2
  grad_clip: 0
  ranks: {interval: 10, warmup_steps: 10}
early_terminate: {type: asha, min_iter: 20, eta: 2}
"""
    )
    done = altgrad("sweep", "lost.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "diverged" in done.stdout
    return folder / "runs" / "lost"


def test_a_lane_that_diverges_ends_with_its_reason_and_its_neighbours_go_on(lost_trials: Path) -> None:
    trials = query(lost_trials, "SELECT format, lr, reason, step, val_loss FROM trials ORDER BY format, lr, seed")
    ends = {(trial["format"], trial["lr"]): (trial["reason"], trial["step"]) for trial in trials}
    assert ends["E4M3", 1e30][0] == ends["fp32", 1e30][0] == "diverged"
    assert ends["fp32", 1e-3] == ends["fp32", 1e-2] == ("completed", 60), "a control is never halved"
    assert {ends["E4M3", 1e-3], ends["E4M3", 1e-2]} == {("completed", 60), ("asha", 20)}
    assert all(trial["val_loss"] is None for trial in trials if trial["reason"] == "diverged")


def test_every_decision_is_an_event_with_its_numbers(lost_trials: Path) -> None:
    events = query(lost_trials, "SELECT kind, step, value, reference, message FROM events")
    assert {"diverged", "asha", "completed"} <= {event["kind"] for event in events}
    for event in events:
        assert event["message"]
        if event["kind"] == "asha":
            assert event["value"] > event["reference"]


def test_status_says_where_a_sweep_stands(lost_trials: Path) -> None:
    said = altgrad("status", lost_trials, cwd=lost_trials.parent)
    assert said.returncode == 0
    assert "not being run" in said.stdout
    assert "training loss is" in said.stdout


def test_the_matrix_leaves_what_diverged_out_of_its_means(lost_trials: Path) -> None:
    said = altgrad("matrix", lost_trials, "--json", cwd=lost_trials.parent)
    assert said.returncode == 0
    assert "NaN" not in said.stdout
