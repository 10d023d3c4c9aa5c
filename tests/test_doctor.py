"""`altgrad doctor`: what it says of machines that are fit, and of those that are not."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from altgrad.quantization import fused
from orchestrator import doctor
from orchestrator.cli import facts
from orchestrator.doctor import cluster_file, machine, ray_here, room, sockets
from orchestrator.doctor.sockets import Listener

ROOT = Path(__file__).parents[1]
SUBJECTS = ["python", "torch", "kernels", "ray", "token", "dashboard", "ray's tmp", "wandb", "storage", "disk"]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and nothing set that Ray or W&B listen to."""
    for name in list(os.environ):
        if name.startswith(("RAY", "WANDB")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_machine_that_runs_these_tests_is_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_here, "listeners", list)
    found = doctor.examine(str(tmp_path / "runs"), ROOT / "cluster.yaml")
    assert [finding.subject for finding in found] == [*SUBJECTS, "cluster"]
    assert [finding for finding in found if finding.level == "fail"] == []
    assert all(finding.advice for finding in found if finding.level != "ok")
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_it_says_which_kernels_run_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "engine", lambda device: fused.Engine("eager", "no compiler"))
    found = machine.kernels()
    assert found.level == "warn"
    assert "no compiler" in found.found
    assert "compiler" in found.advice


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "version_info", (3, 10))
    assert machine.python().level == "fail"


@pytest.mark.parametrize(("version", "level"), [("2.53.9", "fail"), ("2.54.0", "ok"), ("3.0.0rc1", "ok")])
def test_a_ray_with_a_known_hole_fails(version: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_here.importlib.metadata, "version", lambda name: version)
    assert ray_here.version().level == level


@pytest.mark.parametrize(
    ("environment", "level", "words"),
    [
        ({}, "ok", "offline"),
        ({"WANDB_API_KEY": "x" * 40}, "ok", "online: there is a key"),
        ({"WANDB_MODE": "disabled"}, "ok", "disabled by WANDB_MODE"),
        ({"WANDB_MODE": "sometimes"}, "fail", "sometimes"),
    ],
)
def test_the_mode_of_wandb(
    environment: dict[str, str], level: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = machine.wandb()
    assert (found.level, words in found.found) == (level, True)
    assert "x" * 40 not in found.found


# --- Ray


@pytest.mark.parametrize(
    ("environment", "rights", "level", "words"),
    [
        ({}, None, "ok", "Ray makes one"),
        ({}, 0o600, "ok", ".ray/auth_token"),
        ({}, 0o644, "warn", "can be read by others (644)"),
        ({"RAY_AUTH_MODE": "token"}, None, "warn", "and no "),
        ({"RAY_AUTH_MODE": "token"}, 0o600, "ok", ".ray/auth_token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"}, None, "ok", "in RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/none/token"}, 0o600, "warn", "no /none/token"),
        ({"RAY_AUTH_MODE": "disabled"}, 0o600, "warn", "disabled"),
        ({"RAY_AUTH_MODE": "on"}, 0o600, "fail", "RAY_AUTH_MODE=on"),
    ],
)
def test_rays_token(
    environment: dict[str, str], rights: int | None, level: str, words: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if rights is not None:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray/auth_token").write_text("secret")
        (tmp_path / ".ray/auth_token").chmod(rights)
    found = ray_here.token()
    assert (found.level, words in found.found) == (level, True), found
    assert "secret" not in found.found


@pytest.mark.parametrize(
    ("address", "asks", "level"),
    [
        ("0.0.0.0", False, "fail"),
        ("::", False, "fail"),
        ("10.0.0.7", False, "fail"),
        ("0.0.0.0", True, "ok"),
        ("127.0.0.1", False, "ok"),
        ("::1", False, "ok"),
        ("::ffff:127.0.0.1", False, "ok"),
    ],
)
def test_a_dashboard_that_takes_jobs_from_strangers_fails(
    address: str, asks: bool, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [Listener("0.0.0.0", 22)]
    monkeypatch.setattr(ray_here, "listeners", lambda: [*others, Listener(address, 8265)])
    monkeypatch.setattr(ray_here, "asks_for_token", lambda listener: asks)
    found = ray_here.dashboards()
    assert (found.level, f"{address}:8265" in found.found) == (level, True)
    monkeypatch.setattr(ray_here, "listeners", lambda: others)
    assert ray_here.dashboards().found == "none is open"


@pytest.fixture(params=[200, 401])
def answering(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """A server of this machine that answers every request in one way: its port and its answer."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, request.param
    server.shutdown()
    thread.join()
    server.server_close()


def test_whether_a_port_asks_for_a_token_is_asked_of_it(answering: tuple[int, int]) -> None:
    port, answer = answering
    assert sockets.asks_for_token(Listener("127.0.0.1", port)) == (answer == 401)
    if Path("/proc/net/tcp").exists():
        assert Listener("127.0.0.1", port) in sockets.listeners()


def test_what_does_not_answer_does_not_ask_for_a_token() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        assert not sockets.asks_for_token(Listener("127.0.0.1", nobody.getsockname()[1]))


def test_listeners_are_read_from_the_kernels_tables(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(
        "  sl  local_address rem_address   st tx_queue\n"
        "   0: 0100007F:2049 00000000:0000 0A 00000000:00000000\n"
        "   1: 00000000:0016 00000000:0000 0A 00000000:00000000\n"
        "   2: 0100007F:2050 0100007F:1F90 01 00000000:00000000\n"
    )
    (tmp_path / "tcp6").write_text(
        "  sl  local_address rem_address   st tx_queue\n"
        "   0: 00000000000000000000000001000000:2049 00000000000000000000000000000000:0000 0A 00000000:00000000\n"
    )
    assert sys.byteorder == "little", "the tables are in the machine's order"
    assert sockets.listeners(tmp_path) == [Listener("0.0.0.0", 22), Listener("127.0.0.1", 8265), Listener("::1", 8265)]
    assert sockets.listeners(tmp_path / "none") == []


def test_rays_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setenv("RAY_TMPDIR", short)
        found = ray_here.folder()
        assert found.found.startswith(f"{short}/ray: holds 0.0 GiB, ")
        usage = type("Usage", (), {"free": 4, "total": 100})
        monkeypatch.setattr(ray_here.shutil, "disk_usage", lambda folder: usage)
        assert (ray_here.folder().level, "95 %" in ray_here.folder().advice) == ("warn", True)


def test_a_temporary_folder_too_deep_for_a_socket_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("deep" * 10)))
    found = ray_here.folder()
    assert (found.level, "RAY_TMPDIR" in found.advice) == ("fail", True)


# --- where runs are kept


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = room.writable(str(tmp_path / "file" / "runs"))
    assert (found.level, found.found) == ("fail", f"{tmp_path}/file/runs: Not a directory")


@pytest.mark.parametrize("storage", ["{path}/not/there", "file://{path}"])
def test_a_storage_is_written_read_and_left_as_it_was(storage: str, tmp_path: Path) -> None:
    found = room.writable(storage.format(path=tmp_path))
    assert found.level == "ok", found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("storage", ["foo://bucket/runs", "s3://name:password@bucket/runs"])
def test_an_address_that_cannot_be_opened_fails(storage: str) -> None:
    found = room.writable(storage)
    assert (found.level, "--storage FOLDER" in found.advice) == ("fail", True)


@pytest.mark.parametrize(("free", "level"), [(100, "fail"), (1000, "warn"), (100_000, "ok")])
def test_room_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: str) -> None:
    usage = type("Usage", (), {"free": free * 2**20})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert room.disk(str(tmp_path / "runs")).level == level
    assert room.disk("s3://bucket/runs").level == "ok"


# --- cluster files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The project's own cluster file, with the token it copies to the nodes in place."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("secret")
    shutil.copy(ROOT / "cluster.yaml", tmp_path)
    return tmp_path / "cluster.yaml"


def test_the_projects_own_cluster_file_is_one_that_ray_takes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = cluster_file.check(file)
    assert (found.level, found.found) == ("ok", f"{file}: Ray takes it; 3 places are marked EDIT")
    assert capsys.readouterr().out == "", "Ray's own words are kept out of the findings"


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        (lambda data: data.update(idle_minutes=5), "fail", "idle_minutes"),
        (lambda data: data["available_node_types"]["g6"].update(min_workers=9), "fail", "Ray refuses it"),
        (lambda data: data["head_start_ray_commands"].append("ray start --head"), "warn", "without a token"),
        (
            lambda data: data["head_start_ray_commands"].append(
                "RAY_AUTH_MODE=token ray start --head --dashboard-host=0.0.0.0"
            ),
            "warn",
            "opens the dashboard to others",
        ),
        (lambda data: data["file_mounts"].update({"~/.ray/auth_token": "~/none"}), "warn", "~/none"),
        (lambda data: data["setup_commands"].append("aws s3 ls s3://BUCKET"), "warn", "BUCKET still stands in it"),
    ],
)
def test_what_is_wrong_with_a_cluster_file_is_said(change: Any, level: str, words: str, file: Path) -> None:
    data = yaml.safe_load(file.read_text())
    change(data)
    file.write_text(yaml.safe_dump(data))
    found = cluster_file.check(file)
    assert (found.level, words in found.found, bool(found.advice)) == (level, True, True), found


@pytest.mark.parametrize("text", ["a: [", "just text", "\0", "provider: 3"])
def test_what_is_no_cluster_file_fails(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert cluster_file.check(tmp_path / "c.yaml").level == "fail"
    assert cluster_file.check(tmp_path / "none.yaml").level == "fail"


# --- the command


def run(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.cli", "doctor", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | env, check=False)


def test_without_a_compiler_it_warns_and_is_content(tmp_path: Path) -> None:
    done = run("--json", cwd=tmp_path, CXX="/none/g++", PATH="", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    found = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert list(found) == SUBJECTS
    assert (done.returncode, found["kernels"]["level"]) == (0, "warn")
    assert "compiler" in found["kernels"]["found"]


def test_a_line_for_each_and_the_exit_code_of_what_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [doctor.Finding("python", "ok", "3.11.7"), doctor.Finding("disk", "fail", "0.0 GiB free", "make room")]
    monkeypatch.setattr(doctor, "examine", lambda storage, cluster: found)
    assert facts.doctor(storage="runs") == 4
    printed = capsys.readouterr().out.splitlines()
    assert [line.split() for line in printed] == [
        ["ok", "python", "3.11.7"], ["fail", "disk", "0.0", "GiB", "free"], ["make", "room"],
    ]  # fmt: skip


def test_the_cluster_file_of_the_folder_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(doctor, "examine", lambda storage, cluster: seen.append(cluster) or [])
    monkeypatch.chdir(tmp_path)
    facts.doctor()
    Path("cluster.yaml").write_text("")
    facts.doctor()
    facts.doctor(cluster=Path("other.yaml"))
    assert seen == [None, Path("cluster.yaml"), Path("other.yaml")]
