"""Train the runs of `tests.training.rank_runs` and keep their ranks in ``rank_traces.npz``.

python -m tests.training.record_ranks              # everything
python -m tests.training.record_ranks hot untied   # these packs again; the others keep their traces
"""

import sys
import time
from collections.abc import Callable, Sequence
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from altgrad.training import loop
from altgrad.training.config import RunConfig
from altgrad.training.corpus import Corpus, load_corpus
from altgrad.training.lanes import Lanes
from altgrad.training.metrics import Rows
from tests.training.rank_runs import FILE, RUNS, Plant, Run, Trace, load_traces, save_traces


def record(runs: Sequence[Run], configs: Sequence[RunConfig], corpus: Corpus) -> dict[str, Trace]:
    """Train runs side by side, each until its own end, and keep what their rank checks say."""
    reports: list[Rows] = []

    def report(step: int, rows: Rows) -> set[str]:
        reports.append(rows)
        print(f"{time.strftime('%X')} {runs[0].pack} step {step}", flush=True)
        return {run.name for run in runs if run.until <= step}

    plants = {run.name: run.plant for run in runs if run.plant}
    with patch.object(loop, "train_step", planting(loop.train_step, plants)):
        loop.train(configs, report, keys=[run.name for run in runs], corpus=corpus)
    return {run.name: _trace(run, reports) for run in runs}


def planting(step_of: Callable[[Lanes, int], None], plants: dict[str, Plant]) -> Callable[[Lanes, int], None]:
    """A training step after which the lanes of ``plants`` lose a part of their rank."""

    def train_step(lanes: Lanes, step: int) -> None:
        step_of(lanes, step)
        weights = lanes.tensors()
        for lane, key in enumerate(lanes.keys):
            plant = plants.get(key)
            if plant and step > plant.onset:
                flatten(weights[f"{plant.matrix}/stored"][lane], kept_share(plant, step))

    return train_step


def kept_share(plant: Plant, step: int) -> float:
    """How much of what is not of rank 1 a step leaves, so that a straight line leads from the onset to rank 1."""
    left = plant.onset + plant.length - step
    return left / (left + 1) if left > 0 else 0.0


def flatten(matrix: Tensor, kept: float) -> None:
    """Shrink, in place, all of a matrix but its leading singular pair to the share ``kept``."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    leading = torch.linalg.eigh(tall.T @ tall).eigenvectors[:, -1:]
    tall.lerp_(tall @ leading @ leading.T, 1 - kept)


def _trace(run: Run, reports: Sequence[Rows]) -> Trace:
    """One run's checks out of the rows of all."""

    def column(table: str, name: str) -> np.ndarray:
        tables = [getattr(rows, table) for rows in reports]
        return np.concatenate([t[name][t["key"] == run.name] for t in tables])

    measured = ~np.isnan(column("layers", "effective_rank"))
    shape = (-1, len(run.names))
    steps, stable, effective = (
        column("layers", name)[measured].reshape(shape) for name in ("step", "exact_stable_rank", "effective_rank")
    )
    losses = column("steps", "val_loss")
    return Trace(
        run,
        steps[:, 0].astype(np.int32),
        stable.astype(np.float32),
        effective.astype(np.float32),
        losses[~np.isnan(losses)].astype(np.float32),
    )


def main(packs: Sequence[str]) -> None:
    """Record some packs, or all."""
    torch.set_num_threads(1)
    for pack in packs or dict.fromkeys(run.pack for run in RUNS):
        start = time.monotonic()
        runs = [run for run in RUNS if run.pack == pack]
        configs = [run.config() for run in runs]
        recorded = record(runs, configs, load_corpus(configs[0].corpus))
        save_traces((load_traces() if FILE.exists() else {}) | recorded)
        print(f"{pack}: {len(runs)} runs in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
