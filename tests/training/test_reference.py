"""A float32 lane against things we did not write: an `nn.Module` GPT under `torch.optim.AdamW`."""

import math

import numpy as np
import pytest
import torch
from small_runs import SMALL, lane_rows, run, small

from altgrad.training.config import ModelConfig
from altgrad.training.corpus import Corpus
from altgrad.training.data import Batches
from altgrad.training.lane_optimizer import schedule
from altgrad.training.model import initial_parameters
from benchmarks.plain_gpt import PlainGPT

UNTIED = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, bias=True, tied_head=False)


@pytest.mark.parametrize("model", [SMALL, UNTIED], ids=["tied", "untied, biases"])
def test_a_float32_lane_learns_as_the_plain_model_does(model: ModelConfig, corpus: Corpus) -> None:
    config = small(format="fp32", model=model)
    plain = PlainGPT(model, corpus.vocabulary)
    plain.take({name: lanes[0] for name, lanes in initial_parameters(model, corpus.vocabulary, [config.seed]).items()})
    optimizer = plain.optimizer(config.lr, config.beta2, config.weight_decay)
    batches = Batches(corpus, [config.seed], config.batch_size, model.block_size, torch.device("cpu"))
    losses, norms = [], []
    for step in range(1, config.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * schedule(config, step)
        inputs, targets = batches.train(step)
        loss = plain(inputs[0], targets[0])
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(plain.parameters(), config.grad_clip)))
        optimizer.step()
        losses.append(float(loss.detach()))
    rows = lane_rows(run([config], corpus), "lane0")
    np.testing.assert_allclose(rows["steps/loss"], losses, rtol=2e-5)
    np.testing.assert_allclose(rows["steps/grad_norm"], norms, rtol=2e-3)


@pytest.mark.parametrize(
    ("step", "share"),
    [(1, 1 / 6), (5, 5 / 6), (6, 1.0), (28, 0.1 + 0.45 * (1 + math.cos(math.pi * 23 / 45))), (50, 0.1)],
)
def test_the_schedule_warms_up_and_falls_along_a_cosine(step: int, share: float) -> None:
    assert schedule(small(), step) == pytest.approx(share, abs=2e-3)
