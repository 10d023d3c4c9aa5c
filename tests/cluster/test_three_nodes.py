"""A cluster of three nodes, as a person uses it: a token to get in, jobs, and a node that is lost half way."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from places import free_ports, ray_environment
from sweeps import PATIENCE, altgrad, records

from orchestrator.results.consolidate import consolidate
from orchestrator.results.queries import query
from orchestrator.results.store import Store

#: What leaves only the control of the small sweep.
CONTROL = ["format=[fp32]", "storage=[master]", "exclude=[]"]


@dataclass(frozen=True)
class Nodes:
    """Three nodes that run."""

    home: Path
    #: As for ``--address``.
    address: str
    #: Of the dashboard, which takes jobs.
    dashboard: str
    #: Of a process that shows the right token.
    env: dict[str, str]
    process: subprocess.Popen[str]

    def hear(self) -> dict[str, Any]:
        """The next thing that the nodes' process says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.home / "nodes.log").read_text()
        return json.loads(line)

    def lose_one(self) -> None:
        """End a worker node and all that runs on it, as a crash would."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.hear() == {"left": 2}


def rows(run: Path, which: str = "true") -> list[list[dict[str, Any]]]:
    """What some trials measured at every step, and in every matrix."""
    store = Store.open(run)
    consolidate(store)
    chosen = (
        f"SELECT * EXCLUDE (pack, attempt) FROM {{}} WHERE key IN (SELECT key FROM trials WHERE {which}) ORDER BY ALL"
    )
    return [query(store, chosen.format(table)).to_pylist() for table in ("steps", "layers")]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head and two workers, each with one CPU."""
    home = tmp_path_factory.mktemp("home")
    dashboard, client, agent = free_ports(3)
    command = [sys.executable, str(Path(__file__).with_name("nodes.py")), str(dashboard), str(client), str(agent)]
    with ray_environment(home) as env, (home / "nodes.log").open("w") as log:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        with process:
            running = Nodes(home, "", f"http://127.0.0.1:{dashboard}", env, process)
            try:
                yield Nodes(home, running.hear()["address"], running.dashboard, env, process)
            finally:
                assert process.stdin is not None
                process.stdin.close()
                process.wait(PATIENCE)


@pytest.mark.parametrize(
    ("token", "said"),
    [("f" * 64, "shows another one or none"), (None, "no authentication token was found")],
    ids=["wrong", "missing"],
)
def test_who_lacks_the_token_is_told_so_in_a_line(
    token: str | None, said: str, nodes: Nodes, space: Path, tmp_path: Path
) -> None:
    env = nodes.env | {"HOME": str(tmp_path), "RAY_ADDRESS": nodes.address}
    if token is not None:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(token)
    refused = altgrad("sweep", space, cwd=tmp_path, env=env)
    assert refused.returncode == 4, refused.stderr
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"error: cannot reach Ray at '{nodes.address}': ")
    assert said in line


def submit(nodes: Nodes, space: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Send the control of the small sweep as a job, with the folder of its search space."""
    job = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", nodes.dashboard]
    sweep = [sys.executable, "-m", "orchestrator.cli", "sweep", "space.yaml", *CONTROL, *words]
    return subprocess.run(
        [*job, "--working-dir", str(space.parent), "--", *sweep],
        env=nodes.env,
        cwd=nodes.home,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_job_runs_a_sweep_on_the_cluster(nodes: Nodes, space: Path, undisturbed: Path) -> None:
    done = submit(nodes, space, "--storage", str(nodes.home / "jobs"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Trials: 1 completed" in done.stdout
    assert rows(nodes.home / "jobs" / "small") == rows(undisturbed, "format = 'fp32'")


def test_a_job_does_not_keep_its_results_in_a_folder_that_goes_with_it(nodes: Nodes, space: Path) -> None:
    refused = submit(nodes, space)
    assert refused.returncode == 1
    assert "give --storage in full" in refused.stdout
    assert "exit code 4" in refused.stdout + refused.stderr


def test_a_sweep_spreads_over_the_nodes_and_outlives_one_of_them(nodes: Nodes, space: Path, undisturbed: Path) -> None:
    run = nodes.home / "runs" / "small"
    command = [sys.executable, "-m", "orchestrator.cli", "sweep", str(space)]
    with subprocess.Popen(
        [*command, "--address", nodes.address],
        cwd=nodes.home,
        env=nodes.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while len({record["pack"] for record in records(run) if record["event"] == "reported"}) < 3:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, records(run)
            time.sleep(0.02)
        nodes.lose_one()
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr

    history = records(run)
    events = [record["event"] for record in history]
    at_first = events[: events.index("lane_ended")]
    assert at_first.count("pack_started") >= 3, "a pack needs a CPU, and each node has one"
    failed = [record["pack"] for record in history if record["event"] == "pack_failed"]
    assert len(failed) == 1
    starts = [record["pack"] for record in history if record["event"] == "pack_started"]
    assert starts.count(failed[0]) == 2
    ended = [record["key"] for record in history if record["event"] == "lane_ended"]
    assert len(ended) == len(set(ended)) == 5
    assert rows(run) == rows(undisturbed)
