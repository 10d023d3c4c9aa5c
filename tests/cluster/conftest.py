"""One small sweep, run where nothing disturbs it: what every cluster must come to as well."""

from pathlib import Path

import pytest
from filelock import FileLock
from sweeps import altgrad

SPACE = """\
name: small
parameters:
  format: {values: [fp32, E4M3, E5M2]}
  storage: {values: [master, nearest]}
  seed: {values: [1]}
control: {format: fp32, optimizer: adamw, storage: master, layers: all}
exclude:
  - {format: fp32, storage: nearest, why: float32 weights are their own masters}
run:
  optimizer: adamw
  model: {n_layer: 1, n_head: 2, n_embd: 32, block_size: 32}
  batch_size: 4
  steps: 100
  warmup_steps: 5
  report_interval: 10
  checkpoint_interval: 10
  eval_batches: 1
  ranks: {interval: 50, warmup_steps: 50}
max_failures: 3
wandb: {mode: disabled}
"""


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The search space, alone in its folder."""
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(SPACE)
    return path


@pytest.fixture(scope="session")
def undisturbed(space: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The run's folder of the sweep on this machine alone; one for all processes that share the tests."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared if worker_id == "master" else shared.parent) / "undisturbed"
    with FileLock(f"{folder}.lock"):
        if not (folder / "runs" / "small" / "dataset").exists():
            folder.mkdir(exist_ok=True)
            done = altgrad("sweep", space, cwd=folder)
            assert done.returncode == 0, done.stderr
    return folder / "runs" / "small"
