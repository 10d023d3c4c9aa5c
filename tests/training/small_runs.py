"""Runs that take a second, and how to compare their rows."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from altgrad.training.config import ModelConfig, RankConfig, RunConfig
from altgrad.training.corpus import Corpus
from altgrad.training.lanes import Lanes
from altgrad.training.loop import train, train_step
from altgrad.training.metrics import Rows

SMALL = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=16)


def small(**changes: Any) -> RunConfig:
    """A run of 50 steps that takes a second or two."""
    settings: dict[str, Any] = {
        "steps": 50,
        "report_interval": 10,
        "batch_size": 4,
        "eval_batches": 2,
        "warmup_steps": 5,
        "model": SMALL,
        "ranks": RankConfig(interval=10, warmup_steps=10),
        "checkpoint_interval": 20,
    }
    return RunConfig(**(settings | changes))


def run(configs: list[RunConfig], corpus: Corpus, **options: Any) -> list[Rows]:
    """Train and keep what is reported."""
    reports: list[Rows] = []

    def keep(step: int, rows: Rows) -> None:
        reports.append(rows)

    train(configs, keep, corpus=corpus, **options)
    return reports


def steps_from_equal_states(one: Lanes, other: Lanes, steps: int) -> Iterator[tuple[Rows, Rows]]:
    """Rows of each step of two programs, of which the other takes the state of the one before every step."""
    for step in range(1, steps + 1):
        other.load(one.tensors())
        train_step(one, step)
        train_step(other, step)
        yield one.recorder.rows({}), other.recorder.rows({})


def lane_rows(reports: list[Rows], key: str) -> dict[str, np.ndarray]:
    """All rows of one lane, both tables, as columns ``table/name``."""
    columns: dict[str, np.ndarray] = {}
    for table in ("steps", "layers"):
        parts = [getattr(rows, table) for rows in reports]
        for name in parts[0]:
            columns[f"{table}/{name}"] = np.concatenate([part[name][part["key"] == key] for part in parts])
    return columns


def assert_same_rows(one: dict[str, np.ndarray], other: dict[str, np.ndarray], but: tuple[str, ...] = ()) -> None:
    """Every column equal bit for bit, undefined where undefined."""
    assert one.keys() == other.keys()
    for name in one.keys() - {f"{table}/{column}" for table in ("steps", "layers") for column in but}:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
