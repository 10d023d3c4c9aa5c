"""`altgrad doctor`: what it says of machines that are fit, and of those that are not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from altgrad.quantization import fused
from orchestrator import cli, doctor


def by_subject(storage: Path) -> dict[str, doctor.Finding]:
    return {finding.subject: finding for finding in doctor.examine(storage)}


def test_a_machine_that_runs_these_tests_is_fit(tmp_path: Path) -> None:
    found = by_subject(tmp_path / "runs")
    assert list(found) == ["python", "torch", "kernels", "ray", "storage", "disk"]
    assert all(finding.level != "fail" for finding in found.values())
    assert all(finding.advice for finding in found.values() if finding.level != "ok")


def test_it_says_which_kernels_run_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "engine", lambda device: fused.Engine("eager", "no compiler"))
    found = doctor.kernels()
    assert found.level == "warn"
    assert "no compiler" in found.found
    assert "compiler" in found.advice


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refuse)
    found = doctor.writable(tmp_path / "not" / "there")
    assert (found.level, found.found) == ("fail", f"{tmp_path}: Permission denied")


@pytest.mark.parametrize(("free", "level"), [(100, "fail"), (1000, "warn"), (100_000, "ok")])
def test_room_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: str) -> None:
    usage = type("Usage", (), {"free": free * 2**20})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
    assert doctor.disk(tmp_path).level == level


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10))
    assert doctor.python().level == "fail"


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.cli", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env, check=False)


def test_the_command_prints_a_line_for_each(tmp_path: Path) -> None:
    done = run("--storage", str(tmp_path))
    assert done.returncode == 0
    assert [line.split()[1] for line in done.stdout.splitlines() if not line.startswith(" ")] == [
        "python", "torch", "kernels", "ray", "storage", "disk",
    ]  # fmt: skip


def test_without_a_compiler_it_warns_and_is_content(tmp_path: Path) -> None:
    done = run("--json", "--storage", str(tmp_path), CXX="/none/g++", PATH="", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    kernels = {finding["subject"]: finding for finding in json.loads(done.stdout)}["kernels"]
    assert (done.returncode, kernels["level"]) == (0, "warn")
    assert "compiler" in kernels["found"]


def test_what_fails_is_the_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ill = doctor.Finding("disk", "fail", "0.0 GiB free", "make room")
    monkeypatch.setattr(doctor, "examine", lambda storage: [ill])
    assert cli.doctor(storage=Path("runs")) == 4
    assert "make room" in capsys.readouterr().out
