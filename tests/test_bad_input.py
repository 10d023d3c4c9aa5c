"""A user's mistake ends with a clear error and its exit code, never with a traceback, and leaves nothing behind."""

from pathlib import Path

import pytest
from sweeps import SMOKE, altgrad

GOOD = """\
name: good
parameters:
  format: {values: [fp32, E4M3]}
run:
  lr: 1e-3
  steps: 10
  model: {n_layer: 1, n_head: 2, n_embd: 32, block_size: 32}
"""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("E4M3", "E4M4"), ["space.yaml:3", "E4M4", "did you mean 'E4M3'?"]),
        (("lr: 1e-3", "lrr: 1e-3"), ["space.yaml:5", "lrr", "did you mean 'lr'?"]),
        (("lr: 1e-3", "lr: fast"), ["space.yaml:5", "expected a number", "'fast'"]),
        (("steps: 10", "lr: 2e-3"), ["space.yaml:6", "lr"]),
        (("[fp32, E4M3]", "[]"), ["space.yaml:3", "format"]),
        (("steps: 10", "corpus: /nowhere/text.txt"), ["no corpus at /nowhere/text.txt", "stdlib"]),
        (("steps: 10", "corpus: short.txt"), ["one block needs 33", "model.block_size"]),
        (("name: good", "name: ../good"), ["space.yaml:1", "../good"]),
        (("steps: 10", 'layers: [{match: "*.atn.*"}]'), ["*.atn.*", "matches no matrix"]),
    ],
    ids=[
        "unknown format",
        "unknown key",
        "wrong type",
        "duplicate key",
        "empty grid",
        "missing corpus",
        "short corpus",
        "name that leads out",
        "layers that match nothing",
    ],
)
def test_a_bad_space_is_refused_before_anything_starts(
    change: tuple[str, str], expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text(GOOD.replace(*change))
    (tmp_path / "short.txt").write_text("too short")
    refused = altgrad("sweep", "space.yaml", cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    for words in expected:
        assert words in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sweep", SMOKE, "--name", "../out"], "not a valid name"),
        (["sweep", "nowhere.yaml"], "no such file"),
        (["sweep", SMOKE, "fromat=E4M3"], "did you mean 'format'?"),
        (["resume", "runs/none"], "no sweep in 'runs/none'"),
        (["query", "runs/none", "SELECT 1"], "no sweep in 'runs/none'"),
        (["sweeep", SMOKE], "sweeep"),
        (["plan", SMOKE, "--jsn"], "--jsn"),
        (["train", "nowhere.yaml"], "cannot be read"),
    ],
    ids=lambda value: " ".join(map(str, value[:2])) if isinstance(value, list) else "",
)
def test_a_mistyped_command_is_explained(arguments: list, expected: str, tmp_path: Path) -> None:
    refused = altgrad(*arguments, cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert expected in refused.stderr + refused.stdout
    assert "Traceback" not in refused.stderr


def test_a_number_in_scientific_notation_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(GOOD)
    planned = altgrad("plan", "space.yaml", "--json", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert '"lr": 0.001' in planned.stdout


def test_one_run_trains_without_ray(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "format: E5M2\nsteps: 20\nreport_interval: 10\neval_batches: 1\n"
        "model: {n_layer: 1, n_head: 2, n_embd: 32, block_size: 32}\n"
    )
    done = altgrad("train", "run.yaml", "lr=3e-3", "--rows", "rows.parquet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "step     20" in done.stdout
    assert (tmp_path / "rows.parquet").exists()
    assert (tmp_path / "rows-layers.parquet").exists()
