"""Lanes that blow up while others train beside them: real runs, judged as a sweep judges them."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from altgrad.training.config import ModelConfig, RankConfig, RunConfig
from altgrad.training.corpus import Corpus, load_corpus
from altgrad.training.loop import train
from altgrad.training.metrics import Rows
from orchestrator.sweep.stopping import Decision, LanePolicy
from orchestrator.sweep.verdicts import LaneJudge, lane_rows

#: Steps between reports.
INTERVAL = 4
HEALTHY: dict[str, dict[str, Any]] = {
    "a": {"format": "E4M3"},
    "z": {"format": "E5M2", "storage": "stochastic", "seed": 2},
}
#: Rates at which the weights leave float32 within a few steps.
BLOWN_UP: dict[str, dict[str, Any]] = {
    "float32": {"format": "fp32", "lr": 1e38, "grad_clip": 0.0},
    "masters": {"format": "E4M3", "lr": 1e38, "grad_clip": 0.0},
    "no masters": {"format": "E5M2", "storage": "nearest", "lr": 1e38, "grad_clip": 0.0},
    "no masters, by chance": {"format": "E7M0", "storage": "stochastic", "lr": 1e38, "grad_clip": 0.0},
}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Rows are compared bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("".join(f"line {i} of {i * i % 97}\n" for i in range(500)))
    return load_corpus(str(path))


def config(**changes: Any) -> RunConfig:
    """Three reports of a model of one layer, everything quantized."""
    settings: dict[str, Any] = {
        "steps": 3 * INTERVAL,
        "report_interval": INTERVAL,
        "warmup_steps": 2,
        "batch_size": 2,
        "eval_batches": 1,
        "tensors": ("weights", "activations", "gradients"),
        "model": ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=8),
        "ranks": RankConfig(interval=2, warmup_steps=2, reference="initial"),
    }
    return RunConfig(**(settings | changes))


class Judged:
    """A run whose lanes are told when to end."""

    def __init__(self, lanes: dict[str, RunConfig], corpus: Corpus) -> None:
        self._judges = {key: LaneJudge(config, LanePolicy(), None) for key, config in lanes.items()}
        self._reports: list[Rows] = []
        #: How lanes ended before their last step.
        self.ends: dict[str, Decision] = {}
        train(list(lanes.values()), self._report, keys=list(lanes), corpus=corpus)

    def _report(self, step: int, rows: Rows) -> set[str]:
        self._reports.append(rows)
        verdicts = {key: self._judges[key].judge(step, *lane_rows(rows, key)) for key in set(rows.steps["key"])}
        ended = {key: verdict.decision for key, verdict in verdicts.items() if verdict.decision}
        self.ends |= ended
        return set(ended)

    def rows(self, key: str) -> dict[str, np.ndarray]:
        """All rows of a lane, both tables."""
        parts = [lane_rows(rows, key) for rows in self._reports]
        return {
            f"{i}/{name}": np.concatenate([part[i][name] for part in parts]) for i in (0, 1) for name in parts[0][i]
        }


@pytest.fixture(scope="module")
def alone(corpus: Corpus) -> Judged:
    return Judged({key: config(**changes) for key, changes in HEALTHY.items()}, corpus)


@pytest.mark.parametrize("kind", BLOWN_UP)
def test_a_lane_that_blows_up_ends_with_its_last_good_step_and_harms_no_other(
    kind: str, corpus: Corpus, alone: Judged
) -> None:
    lanes = {"a": config(**HEALTHY["a"]), "sick": config(**BLOWN_UP[kind]), "z": config(**HEALTHY["z"])}
    beside = Judged(lanes, corpus)
    assert beside.ends.keys() == {"sick"}
    sick, end = beside.rows("sick")["0/loss"], beside.ends["sick"]
    good = _good_steps(sick)
    assert 1 <= good < len(sick)
    assert len(sick) == end.step == math.ceil((good + 1) / INTERVAL) * INTERVAL
    assert end.reason == "diverged"
    assert end.message.endswith(f"the last good step was {good}")
    for key in HEALTHY:
        expected, found = alone.rows(key), beside.rows(key)
        assert expected.keys() == found.keys()
        for name, column in expected.items():
            np.testing.assert_array_equal(found[name], column, err_msg=f"{key} {name}")


def _good_steps(losses: np.ndarray) -> int:
    """How many losses there were before the first that is no number."""
    return next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
