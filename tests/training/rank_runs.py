"""The runs behind the rank warnings: what each of them is, and the traces recorded from them.

Every trace is a real run at nanoGPT's CPU size on the corpus ``stdlib``. `tests.training.record_ranks` trains them,
`tests.training.rank_tables` says what they show.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from altgrad.training.config import ModelConfig, RankConfig, RunConfig
from altgrad.training.shapes import aliases, matrix_names

#: Steps between recorded checks; checks at any multiple of it can be replayed.
INTERVAL = 20
#: All traces, see `save_traces`.
FILE = Path(__file__).with_name("rank_traces.npz")

SEED = RunConfig().seed
LR = RunConfig().lr
TIED, UNTIED = ModelConfig(), ModelConfig(tied_head=False)
Measure = Literal["stable", "effective"]


class Plant(NamedTuple):
    """A collapse put into a run that trains on: one matrix is driven to rank 1 and held there."""

    matrix: str
    #: The last step without it.
    onset: int
    #: Steps from the onset to rank 1.
    length: int


@dataclass(frozen=True)
class Run:
    """One recorded run."""

    name: str
    #: Runs of a pack train side by side.
    pack: str
    format: str = "fp32"
    seed: int = SEED
    lr: float = LR
    model: ModelConfig = TIED
    #: Where the recording ends; the schedule is that of a whole run all the same.
    until: int = RunConfig().steps
    plant: Plant | None = None

    def config(self, **changes: Any) -> RunConfig:
        """What is trained."""
        return RunConfig(
            format=self.format,
            seed=self.seed,
            lr=self.lr,
            model=self.model,
            eval_batches=4,
            ranks=RankConfig(interval=INTERVAL),
            **changes,
        )

    @property
    def is_healthy(self) -> bool:
        """Nothing is wrong with it, so that any warning is a false alarm."""
        return self.plant is None and self.lr == LR

    @property
    def is_control(self) -> bool:
        """A healthy float32 run, which others may be held against."""
        return self.is_healthy and self.format == "fp32"

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """The matrices with all the names they answer to."""
        return {name: aliases(self.model, name) for name in matrix_names(self.model)}


class Trace(NamedTuple):
    """What was recorded of one run: C checks, S matrices in the order of the model."""

    run: Run
    #: ``(C,)``, every `INTERVAL` steps.
    steps: np.ndarray
    #: Exact stable ranks of the stored weights, ``(C, S)``.
    stable: np.ndarray
    #: Effective ranks of the stored weights, ``(C, S)``.
    effective: np.ndarray
    #: Validation loss, at every report.
    val_loss: np.ndarray

    def checks(self, measure: Measure = "effective", interval: int = 100) -> Iterator[tuple[int, dict[str, float]]]:
        """Step and rank by matrix, as a run with this interval between its checks would report them."""
        names = list(self.run.names)
        for step, ranks in zip(self.steps.tolist(), getattr(self, measure).tolist(), strict=True):
            if step % interval == 0:
                yield step, dict(zip(names, ranks, strict=True))


def save_traces(traces: dict[str, Trace], path: Path = FILE) -> None:
    """Write all traces as one compressed file of arrays named ``<run>|<column>``."""
    columns = {
        f"{name}|{column}": getattr(trace, column)
        for name, trace in traces.items()
        for column in ("steps", "stable", "effective", "val_loss")
    }
    np.savez_compressed(path, **columns)


def load_traces(path: Path = FILE) -> dict[str, Trace]:
    """The traces of a file by the names of their runs."""
    with np.load(path) as arrays:
        there = dict(arrays)
    return {
        run.name: Trace(
            run, *(there[f"{run.name}|{column}"] for column in ("steps", "stable", "effective", "val_loss"))
        )
        for run in RUNS
        if f"{run.name}|steps" in there
    }


def _planted(pack: str, model: ModelConfig, plants: list[Plant]) -> Iterator[Run]:
    """Runs with a collapse each, recorded until three checks of the default interval after its end."""
    for plant in plants:
        until = 100 * (-(-(plant.onset + plant.length) // 100) + 3)
        name = f"{pack} {plant.matrix} {plant.onset}+{plant.length}"
        yield Run(name, pack, model=model, until=until, plant=plant)


_HEALTHY = [Run(f"fp32 seed {seed}", "healthy", seed=seed) for seed in (SEED, 1, 2, 3)]
_QUANTIZED = [Run(f"{f} seed {seed}", "quantized", f, seed) for f in ("E4M3", "E5M2") for seed in (SEED, 1)]
_HOT = [Run(f"hot seed {seed}", "hot", seed=seed, lr=30 * LR, until=600) for seed in (SEED, 1)]
_PLANTED = _planted(
    "planted",
    TIED,
    [
        Plant("wte", 110, 1),
        Plant("wte", 150, 50),
        Plant("wte", 200, 200),
        Plant("wte", 340, 100),
        Plant("wpe", 200, 100),
        Plant("h.0.attn.c_attn", 140, 150),
        Plant("h.2.attn.c_attn", 310, 60),
        Plant("h.0.attn.c_proj", 120, 40),
        Plant("h.3.attn.c_proj", 250, 200),
        Plant("h.2.attn.c_proj", 405, 1),
        Plant("h.1.mlp.c_fc", 100, 200),
        Plant("h.3.mlp.c_fc", 260, 10),
        Plant("h.1.mlp.c_proj", 130, 100),
        Plant("h.0.mlp.c_proj", 300, 20),
    ],
)
_UNTIED = [
    Run("untied seed 1337", "untied", model=UNTIED, until=500),
    Run("untied seed 1", "untied", seed=1, model=UNTIED, until=500),
    Run("untied hot", "untied", lr=30 * LR, model=UNTIED, until=300),
    *_planted("untied", UNTIED, [Plant("lm_head", 120, 1), Plant("lm_head", 120, 80)]),
]
RUNS = (*_HEALTHY, *_QUANTIZED, *_HOT, *_PLANTED, *_UNTIED)
