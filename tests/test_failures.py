"""What fails around a trial, through the command: said in a line, tried again where that helps, never a traceback."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweeps import PATIENCE, ROOT, SMOKE, altgrad, environment, interrupt, query, records

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


#: The command, one pack at a time, with a trainable whose worker dies when it is first to go on to another pack.
DIES_BETWEEN_PACKS = """\
import functools, os, sys
from pathlib import Path

import ray
from ray.tune.trainable import wrap_function

from orchestrator.cli import main
from orchestrator.sweep import tuner


class Dying(wrap_function(tuner.run_pack)):
    def reset_config(self, config):
        died = Path(os.environ["HOME"]) / "died"
        if not died.exists():
            died.touch()
            os._exit(1)
        return super().reset_config(config)


ray.init = functools.partial(ray.init, num_cpus=1)
tuner.run_pack = Dying
sys.exit(main())
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
    """A sweep of which one pack cannot be run: in two attempts, a folder stands where its first rows are to go."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "space.yaml").write_text(SPACE)
    plan = json.loads(altgrad("plan", "space.yaml", "--json", cwd=folder).stdout)
    run = folder / "runs" / "fragile"
    for attempt in ("attempt-1", "attempt-2"):
        (run / "packs" / plan["packs"][1]["pack"] / attempt / "steps-000001.parquet").mkdir(parents=True)
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
    failures = [(record["kind"], record["again"]) for record in records(run) if record["event"] == "pack_failed"]
    assert failures == [("application", True), ("application", False)]
    told = sorted(run.glob("packs/*/attempt-*/error.txt"))
    assert [file.parent.name for file in told] == ["attempt-1", "attempt-2"]
    assert all(file.read_text().startswith("Traceback") for file in told)


def test_a_failure_is_a_line_with_its_reason_and_no_traceback(
    broken: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, ended = broken
    assert "Traceback" not in ended.stderr + ended.stdout
    assert re.search(r"failed: E4M3 \(p001-\w+\): IsADirectoryError: .*steps-000001.parquet", ended.stderr)
    assert f"try them again with: altgrad resume {run}" in ended.stderr
    said = altgrad("status", run, "--json", cwd=run.parent)
    failed = [lane for lane in json.loads(said.stdout)["lanes"] if lane["status"] == "failed"]
    assert len(failed) == 2
    assert all("steps-000001.parquet" in lane["message"] for lane in failed)


@pytest.fixture(scope="module")
def gone_on(
    broken: tuple[Path, subprocess.CompletedProcess[str]],
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The same sweep, gone on with to the end; not before its plan can be read."""
    run, _ = broken
    plan = run / "plan.json"
    written = plan.read_text()
    plan.write_text(written.replace("E4M3", "E4M4"))
    garbled = altgrad("resume", run, cwd=run.parent)
    assert garbled.returncode == 5, garbled.stderr
    assert "unknown format 'E4M4'; did you mean 'E4M3'" in garbled.stderr
    plan.write_text(written)
    resumed = altgrad("resume", run, cwd=run.parent)
    assert resumed.returncode == 0, resumed.stderr
    return run, resumed


@pytest.fixture(scope="module")
def repaired(gone_on: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    return gone_on[0]


def test_resume_tells_what_it_found(gone_on: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    found = [line for line in gone_on[1].stderr.splitlines() if line.startswith("found: ")]
    assert found == [
        "found: 2 of 4 trials ended, 1 pack starts",
        "found: 1 of these packs had failed and gets another chance",
        "found: Ray's own state is whole; it is not used",
    ]


def test_what_failed_gets_another_chance_and_what_had_ended_is_not_run_again(repaired: Path) -> None:
    starts = [record["pack"] for record in records(repaired) if record["event"] == "pack_started"]
    assert sorted(starts.count(pack) for pack in set(starts)) == [1, 3]
    (trials,) = query(repaired, "SELECT count(*) AS n, min(step) AS step FROM trials WHERE reason = 'completed'")
    assert trials == {"n": 4, "step": STEPS}


def test_a_run_whose_journal_is_gone_stands_where_it_stood(repaired: Path, tmp_path: Path) -> None:
    run = tmp_path / "fragile"
    shutil.copytree(repaired, run)
    (run / "journal.jsonl").unlink()
    resumed = altgrad("resume", run, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "found: records that the journal lacked: " in resumed.stderr
    assert "nothing is left to run" in resumed.stderr
    trials = "SELECT key, status, reason, step, val_loss, attempts FROM trials ORDER BY key"
    assert query(run, trials) == query(repaired, trials)


def new_checkpoints(run: Path, attempt: int, process: subprocess.Popen[str]) -> list[Path]:
    """Wait for the first complete checkpoints of any pack's attempt."""
    deadline = time.monotonic() + PATIENCE
    while not (kept := list(run.glob(f"packs/*/attempt-{attempt}/checkpoint-*/checkpoint.json"))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoints"
        time.sleep(0.02)
    return kept


@pytest.mark.long
def test_workers_that_are_killed_are_replaced_as_often_as_it_takes_and_nothing_is_lost(
    repaired: Path, tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    run = tmp_path / "runs" / "fragile"
    command = [sys.executable, "-m", "orchestrator.cli", "sweep", "space.yaml", "max_failures=0"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for attempt in (1, 2):
            kept = new_checkpoints(run, attempt, process)
            for worker in workers(process.pid):
                os.kill(worker, signal.SIGKILL)
        while_it_runs = [altgrad(*words, run, cwd=tmp_path) for words in (["status"], ["matrix"])]
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, stderr
    assert [done.returncode for done in while_it_runs] == [0, 0], while_it_runs
    assert "fragile  being run" in while_it_runs[0].stdout
    assert "Traceback" not in stderr
    assert "to be tried again" in stderr
    assert "raylet" not in stdout

    hit = kept[0].parents[2].name
    failures = [record for record in records(run) if record["event"] == "pack_failed"]
    assert sum(record["pack"] == hit for record in failures) == 2
    assert {(record["kind"], record["again"]) for record in failures} == {("lost", True)}
    again = [r for r in records(run) if r["event"] == "reported" and r["pack"] == hit and r["attempt"] == 3]
    assert again[0]["step"] > 50, "the new attempt began at a checkpoint"
    ended = [record["key"] for record in records(run) if record["event"] == "lane_ended"]
    assert len(ended) == len(set(ended)) == 4
    for table in ("steps", "layers"):
        rows = f"SELECT * EXCLUDE (pack, attempt) FROM {table} ORDER BY ALL"
        assert query(run, rows) == query(repaired, rows)


@pytest.mark.long
def test_a_machine_without_memory_is_said_to_be_one_and_a_sweep_that_only_fails_is_ended(tmp_path: Path) -> None:
    """Ray kills every worker where a thousandth of the memory is in use."""
    (tmp_path / "space.yaml").write_text(SPACE)
    overrides = ["format=fp32", "max_consecutive_failures=2"]
    ended = altgrad("sweep", "space.yaml", *overrides, cwd=tmp_path, RAY_memory_usage_threshold="0.001")
    assert ended.returncode == 3, ended.stderr
    assert "the machine's memory is full though the pack ran alone: train fewer lanes" in ended.stderr
    assert "ended: 2 attempts in a row failed (max_consecutive_failures), the last with " in ended.stderr
    assert f"altgrad resume {tmp_path}/runs/fragile" in ended.stderr
    assert "Traceback" not in ended.stderr
    journal = records(tmp_path / "runs" / "fragile")
    failures = [(record["kind"], record["again"]) for record in journal if record["event"] == "pack_failed"]
    assert failures == [("host_memory", True), ("host_memory", False)]
    assert journal[-1]["reason"] == "failures"


def test_a_pack_whose_worker_dies_before_it_begins_is_tried_again(tmp_path: Path) -> None:
    """Ray Tune itself gives such a pack up, though it is told to try everything again."""
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "command.py").write_text(DIES_BETWEEN_PACKS)
    command = [sys.executable, "command.py", "sweep", "space.yaml", "steps=20"]
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(tmp_path) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "died").exists()
    journal = records(tmp_path / "runs" / "fragile")
    failures = [(record["kind"], record["again"]) for record in journal if record["event"] == "pack_failed"]
    assert failures == [("lost", True)], journal
    assert sum(record["event"] == "lane_ended" and record["reason"] == "completed" for record in journal) == 4
    assert journal[-1]["reason"] == "finished"


def test_a_pytorch_that_kills_whoever_loads_it_ends_the_sweep_and_not_its_driver(tmp_path: Path) -> None:
    (tmp_path / "broken" / "torch").mkdir(parents=True)
    (tmp_path / "broken" / "torch" / "__init__.py").write_text("import os\nos._exit(1)\n")
    (tmp_path / "broken" / "torch" / "version.py").write_text('__version__ = "0"\n')
    (tmp_path / "space.yaml").write_text(SPACE)
    overrides = ["format=fp32", "max_consecutive_failures=3"]
    ended = altgrad("sweep", "space.yaml", *overrides, cwd=tmp_path, PYTHONPATH=str(tmp_path / "broken"))
    assert ended.returncode == 3, ended.stderr
    assert "ended: 3 attempts in a row failed (max_consecutive_failures), the last with " in ended.stderr
    assert "Traceback" not in ended.stderr
    journal = records(tmp_path / "runs" / "fragile")
    assert [record["kind"] for record in journal if record["event"] == "pack_failed"] == ["lost"] * 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small filesystem: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.long
def test_a_full_disk_ends_a_sweep_and_what_was_written_is_read_and_gone_on_with(
    small_disk: Path, repaired: Path, tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    run, rest = small_disk / "fragile", small_disk / "rest"
    command = [sys.executable, "-m", "orchestrator.cli", "sweep", "space.yaml", "--storage", str(small_disk)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while not any(record["event"] == "reported" for record in records(run)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no reports"
            time.sleep(0.02)
        with contextlib.suppress(OSError), rest.open("wb", buffering=0) as file:
            while file.write(bytes(2**16)):
                pass
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 4, said
    assert f"error: no space is left for {run}" in said
    assert f"altgrad resume {run}" in said
    assert "Traceback" not in said
    assert len([record for record in records(run) if record["event"] == "pack_failed"]) <= 2, "it ended at once"
    rest.unlink()
    assert altgrad("matrix", run, cwd=tmp_path).returncode == 0
    (steps,) = query(run, "SELECT count(*) AS n, count(DISTINCT (key, step)) AS d FROM steps")
    assert 0 < steps["n"] == steps["d"]
    resumed = altgrad("resume", run, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
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


def test_sigterm_saves_checkpoints_though_none_is_due(tmp_path: Path) -> None:
    """A cluster's notice that the machine goes."""
    (tmp_path / "space.yaml").write_text(SPACE)
    run = tmp_path / "runs" / "fragile"
    arguments = ["sweep", "space.yaml", "checkpoint_interval=100000"]
    ended = interrupt(arguments, run, [signal.SIGTERM], reports=3, cwd=tmp_path)
    assert ended.returncode == 143, ended.stderr
    assert "Traceback" not in ended.stderr
    assert f"go on with: altgrad resume {run}" in ended.stderr
    last: dict[str, int] = {}
    for record in records(run):
        if record["event"] == "reported":
            last[record["pack"]] = record["step"]
    kept = {
        file.parents[2].name: int(file.parent.name[-8:]) for file in sorted(run.glob("packs/*/*/*/checkpoint.json"))
    }
    assert kept
    assert all(last[pack] - step <= 10 for pack, step in kept.items()), "one more report may have come meanwhile"
    assert not (run / "checkpoint_now").exists()
    assert records(run)[-1]["reason"] == "SIGTERM"


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
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert said.decode().strip() == "interrupted"
    assert not (tmp_path / "runs").exists()


def test_a_sweep_that_is_stopped_while_ray_starts_is_interrupted(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    command = [sys.executable, "-m", "orchestrator.cli", "sweep", "space.yaml"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path), stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while not records(tmp_path / "runs" / "fragile"):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "the sweep does not begin"
            time.sleep(0.02)
        stopped = altgrad("stop", "fragile", cwd=tmp_path)
        _, said = process.communicate(timeout=PATIENCE)
    assert stopped.returncode == 0, stopped.stderr
    assert f"process {process.pid} has left" in stopped.stderr
    assert process.returncode == 143, said
    assert "Traceback" not in said
    assert f"go on with: altgrad resume {tmp_path}/runs/fragile" in said


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
