"""What fails around a trial, through the command: said in a line, tried again where that helps, never a traceback."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweeps import SMOKE, altgrad, environment, query, records

STEPS = 300
SPACE = f"""\
name: fragile
parameters:
  format: {{values: [fp32, E4M3]}}
  seed: {{values: [1, 2]}}
control: {{format: fp32, optimizer: adamw, storage: master, layers: all}}
run:
  optimizer: adamw
  model: {{n_layer: 1, n_head: 2, n_embd: 32, block_size: 32}}
  batch_size: 4
  steps: {STEPS}
  warmup_steps: 5
  report_interval: 10
  checkpoint_interval: 50
  eval_batches: 1
  ranks: {{interval: 50, warmup_steps: 50}}
max_failures: 1
wandb: {{mode: disabled}}
"""


def workers(driver: int) -> list[int]:
    """Processes that train for a driver: of its own descendants only."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    processes = [line.split(maxsplit=2) for line in listed.splitlines()]
    family = {driver}
    for _ in range(4):
        family |= {int(pid) for pid, parent, _ in processes if int(parent) in family}
    return [int(pid) for pid, _, name in processes if int(pid) in family and "ray::ImplicitFunc" in name]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A sweep of which one pack cannot be run: in its plan on disk, as the workers read it, a format is garbled."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "space.yaml").write_text(SPACE)
    plan = json.loads(altgrad("plan", "space.yaml", "--json", cwd=folder).stdout)
    for lane in plan["packs"][1]["lanes"]:
        lane["config"]["format"] = "E4M4"
    run = folder / "runs" / "fragile"
    run.mkdir(parents=True)
    (run / "plan.json").write_text(json.dumps(plan))
    return run, altgrad("sweep", "space.yaml", cwd=folder)


def test_a_pack_that_cannot_be_run_does_not_hold_up_the_others(
    broken: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, ended = broken
    assert ended.returncode == 3, ended.stderr
    assert "2 completed, 2 failed" in ended.stdout
    attempts = [record["pack"] for record in records(run) if record["event"] == "pack_started"]
    assert sorted(attempts.count(pack) for pack in set(attempts)) == [1, 2], "it was tried again once"
    assert records(run)[-1]["reason"] == "finished"


def test_a_failure_is_a_line_with_its_reason_and_no_traceback(
    broken: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, ended = broken
    assert "Traceback" not in ended.stderr + ended.stdout
    assert re.search(r"failed: E4M3 \(p001-\w+\): ConfigError: .*E4M4.*did you mean 'E4M3'", ended.stderr)
    assert f"try them again with: altgrad resume {run}" in ended.stderr
    said = altgrad("status", run, "--json", cwd=run.parent)
    failed = [lane for lane in json.loads(said.stdout)["lanes"] if lane["status"] == "failed"]
    assert len(failed) == 2
    assert all("E4M4" in lane["message"] for lane in failed)


@pytest.fixture(scope="module")
def repaired(broken: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """The same sweep, its plan put right, gone on with to the end."""
    run, _ = broken
    plan = run / "plan.json"
    garbled = altgrad("resume", run, cwd=run.parent)
    assert garbled.returncode == 5, garbled.stderr
    assert "E4M4" in garbled.stderr
    plan.write_text(plan.read_text().replace("E4M4", "E4M3"))
    resumed = altgrad("resume", run, cwd=run.parent)
    assert resumed.returncode == 0, resumed.stderr
    return run


def test_what_failed_gets_another_chance_and_what_had_ended_is_not_run_again(repaired: Path) -> None:
    starts = [record["pack"] for record in records(repaired) if record["event"] == "pack_started"]
    assert sorted(starts.count(pack) for pack in set(starts)) == [1, 3]
    (trials,) = query(repaired, "SELECT count(*) AS n, min(step) AS step FROM trials WHERE reason = 'completed'")
    assert trials == {"n": 4, "step": STEPS}


def test_workers_that_are_killed_are_replaced_and_nothing_is_lost(repaired: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    run = tmp_path / "runs" / "fragile"
    command = [sys.executable, "-m", "orchestrator.cli", "sweep", "space.yaml"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 90
        while not (kept := list(run.glob("packs/*/attempt-1/checkpoint-*/checkpoint.json"))):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no checkpoints"
            time.sleep(0.02)
        for worker in workers(process.pid):
            os.kill(worker, signal.SIGKILL)
        while_it_runs = [altgrad(*words, run, cwd=tmp_path) for words in (["status"], ["matrix"])]
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert [done.returncode for done in while_it_runs] == [0, 0], while_it_runs
    assert "fragile: being run" in while_it_runs[0].stdout
    assert "Traceback" not in stderr
    assert "to be tried again" in stderr
    assert "raylet" not in stdout

    hit = kept[0].parents[2].name
    assert hit in [record["pack"] for record in records(run) if record["event"] == "pack_failed"]
    again = [r for r in records(run) if r["event"] == "reported" and r["pack"] == hit and r["attempt"] == 2]
    assert again[0]["step"] > 50, "the new attempt began at a checkpoint"
    ended = [record["key"] for record in records(run) if record["event"] == "lane_ended"]
    assert len(ended) == len(set(ended)) == 4
    for table in ("steps", "layers"):
        rows = f"SELECT * EXCLUDE (pack, attempt) FROM {table} ORDER BY ALL"
        assert query(run, rows) == query(repaired, rows)


@pytest.mark.parametrize("format", ["table", "csv", "json"])
def test_a_reader_that_leaves_early_is_no_error(format: str, repaired: Path) -> None:
    """As in ``altgrad query ... | head -1``. Whether Python hears of it depends on how much it still had to write."""
    command = [sys.executable, "-m", "orchestrator.cli", "query", str(repaired)]
    with subprocess.Popen(
        [*command, "SELECT * FROM steps LIMIT 900", "--format", format],
        env=environment(repaired.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode in (0, 128 + signal.SIGPIPE)
    assert said == ""


def test_data_that_looks_like_markup_is_printed_as_it_is(repaired: Path) -> None:
    said = altgrad("query", repaired, "SELECT '[/x] [red]' AS \"[bold]name\"", cwd=repaired.parent)
    assert said.returncode == 0, said.stderr
    assert "[/x] [red]" in said.stdout
    assert "[bold]name" in said.stdout


def test_a_table_wider_than_the_terminal_loses_nothing(repaired: Path) -> None:
    said = altgrad("query", repaired, "SELECT * FROM trials", cwd=repaired.parent)
    (keys,) = query(repaired, "SELECT list(key) AS all FROM trials")
    assert all(key in said.stdout for key in keys["all"])
    assert "…" not in said.stdout


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--storage", "space.yaml/runs"], "Not a directory"),
        (["--address", "127.0.0.1:1"], "cannot reach Ray at '127.0.0.1:1': "),
        (["--address", "nonsense"], "cannot reach Ray at 'nonsense': "),
        (["resources.cpu=4096"], "each pack asks for 4096 CPUs (resources.cpu), this machine has "),
    ],
    ids=["storage", "nobody at the address", "no address", "room"],
)
def test_surroundings_that_are_not_fit_are_named(options: list[str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    refused = altgrad("sweep", "space.yaml", *options, cwd=tmp_path)
    assert refused.returncode == 4, refused.stderr
    assert expected in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("command", [["status"], ["resume"], ["matrix"], ["consolidate"], ["query", "SELECT 1"]])
def test_a_run_whose_plan_is_garbled_is_damaged(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "runs/x").mkdir(parents=True)
    (tmp_path / "runs/x/plan.json").write_text("{garbled")
    name, *rest = command
    refused = altgrad(name, "runs/x", *rest, cwd=tmp_path)
    assert refused.returncode == 5, refused.stderr
    assert "plan.json cannot be understood" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_ctrl_c_while_planning_is_an_interruption(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    os.mkfifo(tmp_path / "text.txt")
    command = [sys.executable, "-m", "orchestrator.cli", "sweep", "space.yaml", "corpus=text.txt"]
    with (
        subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path), stderr=subprocess.PIPE) as process,
        # Opening the other end waits until the command reads its corpus, which never comes to an end.
        (tmp_path / "text.txt").open("w"),
    ):
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.decode().strip() == "interrupted"
    assert not (tmp_path / "runs").exists()


def test_a_run_without_rows_yet_can_be_asked(tmp_path: Path) -> None:
    plan = altgrad("plan", SMOKE, "--json", cwd=tmp_path)
    (tmp_path / "runs/smoke").mkdir(parents=True)
    (tmp_path / "runs/smoke/plan.json").write_text(plan.stdout)
    asked = {
        words[0]: altgrad(words[0], "smoke", *words[1:], cwd=tmp_path)
        for words in (["status"], ["matrix"], ["query", "SELECT * FROM steps"])
    }
    assert [done.returncode for done in asked.values()] == [0, 0, 0], asked
    assert "10 planned" in asked["status"].stdout
    assert "planned" in asked["matrix"].stdout
    assert "val_loss" in asked["query"].stdout
