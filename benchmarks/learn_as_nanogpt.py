"""Does a float32 lane learn as nanoGPT does? Both train from equal weights on equal batches, at nanoGPT's CPU setting.

The one is an `nn.Module` under `torch.optim.AdamW`, the other this project's own loop. Rounding makes any two float32
programs drift apart, so after the first hundred steps they are held against the spread between seeds.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from altgrad.training.config import RunConfig
from altgrad.training.corpus import Corpus, load_corpus
from altgrad.training.loop import train
from altgrad.training.metrics import Rows
from benchmarks.arguments import positive
from benchmarks.train_step import Plain

#: Steps in which losses must agree one by one, and how closely, in nats a token.
CLOSE_STEPS, CLOSE = 100, 1e-4
REPORT_INTERVAL = 250


@dataclass(frozen=True)
class Curves:
    """Losses of one program in nats a token."""

    #: Of every step's batch, ``(seeds, steps)``.
    train: np.ndarray
    #: Validation at every report, ``(seeds, reports)``.
    validation: np.ndarray


@dataclass(frozen=True)
class Verdict:
    """How far the two programs are apart; losses in nats a token."""

    #: Largest difference of a step's loss among the first `CLOSE_STEPS`.
    first_steps: float
    #: Largest difference of a step's loss anywhere.
    any_step: float
    #: Largest difference of validation losses, over reports and seeds.
    validation: float
    #: Mean over reports of the plain model's validation losses, largest less smallest seed.
    seed_spread: float

    @property
    def alike(self) -> bool:
        """They learn alike: equal at first, and later no further apart than seeds are."""
        return self.first_steps <= CLOSE and self.validation <= self.seed_spread


def config_of(text: str, tokens: str, steps: int, seed: int) -> RunConfig:
    """nanoGPT's CPU character setting (karpathy/nanoGPT, README), in float32 and without dropout."""
    settings: dict[str, Any] = {
        "format": "fp32",
        "model": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64},
        "batch_size": 12,
        "lr": 1e-3,
        "min_lr_ratio": 0.1,
        "warmup_steps": 100,
        "beta2": 0.99,
        "weight_decay": 0.1,
        "grad_clip": 1.0,
        "report_interval": REPORT_INTERVAL,
    }
    return RunConfig.from_dict(settings | {"corpus": text, "tokens": tokens, "steps": steps, "seed": seed})


def plain_curves(config: RunConfig, corpus: Corpus) -> Curves:
    """Train the plain model from one seed."""
    plain = Plain(config, corpus)
    losses, validation = [], []
    for step in range(1, config.steps + 1):
        plain.step(step)
        losses.append(plain.loss)
        if step % config.report_interval == 0 or step == config.steps:
            with torch.no_grad():
                parts = [plain.model(x[0], y[0]) for x, y in plain.batches.validation(config.eval_batches)]
            validation.append(torch.stack(parts).mean())
    return Curves(torch.stack(losses).double().numpy()[None], torch.stack(validation).double().numpy()[None])


def lane_curves(configs: Sequence[RunConfig], corpus: Corpus) -> Curves:
    """Train float32 lanes, one a seed, through the loop that sweeps use."""
    losses: list[np.ndarray] = []
    validation: list[np.ndarray] = []

    def keep(step: int, rows: Rows) -> None:
        losses.append(rows.steps["loss"].reshape(-1, len(configs)).T)
        validation.append(rows.steps["val_loss"].reshape(-1, len(configs))[-1])

    train(configs, keep, corpus=corpus)
    return Curves(np.concatenate(losses, axis=1), np.stack(validation, axis=1))


def compare(plain: Curves, lane: Curves) -> Verdict:
    """Hold the two against each other, seed by seed and step by step."""
    train_differences = np.abs(plain.train - lane.train)
    return Verdict(
        first_steps=float(train_differences[:, :CLOSE_STEPS].max()),
        any_step=float(train_differences.max()),
        validation=float(np.abs(plain.validation - lane.validation).max()),
        seed_spread=float(np.ptp(plain.validation, axis=0).mean()),
    )


def table(plain: Curves, lane: Curves, seeds: Sequence[int]) -> Table:
    """Both losses at every report; training losses are means since the report before."""
    steps = plain.train.shape[1]
    ends = [*range(REPORT_INTERVAL, steps, REPORT_INTERVAL), steps]
    result = Table(title="loss, nats a token", caption=f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for column in ("seed", "step", "train, plain", "train, lane", "val, plain", "val, lane", "val, lane - plain"):
        result.add_column(column, justify="right")
    for i, seed in enumerate(seeds):
        for report, (first, end) in enumerate(zip([0, *ends], ends, strict=False)):
            train_means = [curves.train[i, first:end].mean() for curves in (plain, lane)]
            val = [curves.validation[i, report] for curves in (plain, lane)]
            losses = [f"{loss:.5f}" for loss in (*train_means, *val)]
            result.add_row(str(seed), str(end), *losses, f"{val[1] - val[0]:+.5f}", end_section=end == steps)
    return result


def sentences(verdict: Verdict) -> str:
    """The verdict in words."""
    word = "They learn alike" if verdict.alike else "They do NOT learn alike"
    return (
        f"Step by step, first {CLOSE_STEPS} steps: largest difference {verdict.first_steps:.2g} (allowed {CLOSE:g}).\n"
        f"Step by step, whole run: largest difference {verdict.any_step:.2g}.\n"
        f"Validation: largest difference {verdict.validation:.2g}; seeds lie {verdict.seed_spread:.2g} apart.\n{word}."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", metavar="TEXT", help="a text file, a folder of text, or 'stdlib'")
    parser.add_argument("--steps", type=positive, default=2000, metavar="N", help="optimizer steps (default 2000)")
    parser.add_argument("--seeds", type=positive, default=2, metavar="N", help="seeds, at least 2 (default 2)")
    parser.add_argument("--tokens", choices=("char", "byte"), default="char", help="what a token is (default char)")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of PyTorch (default: its own choice)")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(f"a spread between seeds needs at least 2 of them, got {options.seeds}")
    if options.threads:
        torch.set_num_threads(options.threads)
    seeds = [RunConfig().seed + i for i in range(options.seeds)]
    configs = [config_of(options.text, options.tokens, options.steps, seed) for seed in seeds]
    corpus, console = load_corpus(options.text, options.tokens), Console()
    console.print(f"{corpus.tokens:,} tokens, {corpus.vocabulary} different", highlight=False)
    each = [plain_curves(config, corpus) for config in configs]
    plain = Curves(np.concatenate([c.train for c in each]), np.concatenate([c.validation for c in each]))
    lane = lane_curves(configs, corpus)
    verdict = compare(plain, lane)
    console.print(table(plain, lane, seeds))
    console.print(sentences(verdict), highlight=False)
    if options.json:
        print(json.dumps(as_json(verdict, plain, lane)))


def as_json(verdict: Verdict, plain: Curves, lane: Curves) -> dict[str, Any]:
    """What `benchmarks/README.md` explains."""
    return {
        "alike": verdict.alike,
        "first_steps_difference": verdict.first_steps,
        "any_step_difference": verdict.any_step,
        "validation_difference": verdict.validation,
        "seed_spread": verdict.seed_spread,
        "plain_validation": float(plain.validation[:, -1].mean()),
        "lane_validation": float(lane.validation[:, -1].mean()),
        "steps": plain.train.shape[1],
        "seeds": len(plain.train),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()
