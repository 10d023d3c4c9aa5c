"""A sweep's folder as training leaves it, of any size, without training; and the same rows as Ray Tune keeps them.

Chunks go through the store's own writer, a file a report. Curves fall and scatter as those of small runs do, so that
files compress about as those of a real sweep; which format wins means nothing.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orchestrator.plan import Pack, Plan, make_plan
from orchestrator.results.store import ChunkWriter, Store
from orchestrator.space import load_space

#: The matrices whose rows are written, and every how many steps; a real run has all of its own at every step.
MATRICES = [f"h.{layer}.{name}" for layer in range(2) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc")]
MATRICES += ["h.0.mlp.c_proj", "h.1.mlp.c_proj", "wte", "wpe"]
LAYER_INTERVAL = len(MATRICES)
#: Trials of one setting: the lanes of a pack.
SEEDS = 4
#: Reports of a pack, so chunks of each table.
REPORTS = 10
ELEMENTS, TOKENS_A_STEP = 800_000, 768
SPACE = """\
name: synthetic
parameters:
  format: {{values: [fp32, E0M7, E1M6, E3M4, E5M2]}}
  optimizer: {{values: [adamw, manifold_adamw]}}
  lr: {{values: {rates}}}
  seed: {{values: {seeds}}}
control: {{format: fp32, optimizer: adamw, storage: master, layers: all}}
run: {{steps: {steps}, warmup_steps: 1, report_interval: {report}, checkpoint_interval: {report}}}
wandb: {{mode: disabled}}
"""
#: Formats and optimizers of the space: cells of its matrix.
CELLS = 10


class Rows(NamedTuple):
    """What a pack measured between two reports."""

    steps: dict[str, Any]
    layers: dict[str, Any]


def make(folder: Path, trials: int, rows: int) -> Plan:
    """Write a run of so many trials and rows of steps, both rounded up to whole settings and reports."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = -(-trials // (CELLS * SEEDS))
    report = -(-rows // (settings * CELLS * SEEDS * REPORTS))
    report = -(-report // LAYER_INTERVAL) * LAYER_INTERVAL
    rates = [float(f"{rate:.4g}") for rate in np.geomspace(1e-4, 1e-2, settings)]
    space = SPACE.format(rates=rates, seeds=[*range(1, SEEDS + 1)], steps=report * REPORTS, report=report)
    (folder / "sweep.yaml").write_text(space)
    plan = make_plan(load_space(folder / "sweep.yaml"), {"corpus": "stdlib", "hash": "0", "tokens": 1, "vocabulary": 1})
    (folder / "plan.json").write_text(json.dumps(plan.to_dict()))
    store = Store.open(folder)
    for pack in plan.packs:
        writer = ChunkWriter(store, pack.pack, 1)
        for part in measured(pack):
            writer.append("steps", part.steps)
            writer.append("layers", part.layers)
    (folder / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in journal(plan)))
    return plan


def journal(plan: Plan) -> Iterator[dict[str, Any]]:
    """What the journal would say: every pack reports its way to the end."""
    for pack in plan.packs:
        steps = pack.lanes[0].config.steps
        head = {"time": "2026-01-01T00:00:00.000", "pack": pack.pack, "attempt": 1}
        yield {**head, "event": "pack_started"}
        for step in range(steps // REPORTS, steps + 1, steps // REPORTS):
            yield {**head, "event": "reported", "step": step, "seconds": 0.01 * step, "metrics": {"lanes": SEEDS}}
        for lane in pack.lanes:
            yield {**head, "event": "lane_ended", "key": lane.key, "reason": "completed", "step": steps}


def measured(pack: Pack) -> Iterator[Rows]:
    """What a pack measures, report by report; the same each time, and alike for E0M7 and E1M6."""
    config = pack.lanes[0].config
    kind = {"E1M6": "E0M7"}.get(config.format, config.format)
    rng = np.random.default_rng([*f"{kind} {config.optimizer} {config.lr}".encode()])
    keys = [lane.key for lane in pack.lanes]
    report = config.steps // REPORTS
    for last in range(report, config.steps + 1, report):
        steps = np.arange(last - report + 1, last + 1)
        checked = steps[steps % LAYER_INTERVAL == 0]
        yield Rows(
            {"key": np.repeat(keys, report), **_steps(np.tile(steps, len(keys)), rng, config.format != "fp32", last)},
            {
                "key": np.repeat(keys, len(checked) * len(MATRICES)),
                "matrix": MATRICES * (len(checked) * len(keys)),
                "format": [config.format] * (len(keys) * len(checked) * len(MATRICES)),
                **_layers(np.tile(np.repeat(checked, len(MATRICES)), len(keys)), rng, config.format != "fp32"),
            },
        )


def _steps(steps: np.ndarray, rng: np.random.Generator, quantized: bool, last: int) -> dict[str, Any]:
    loss = 1.5 + 2.5 * np.exp(-steps / 300) + rng.normal(0, 0.05, len(steps))
    reported, checked = steps == last, steps % 100 == 0
    return {
        "step": steps,
        "loss": loss,
        "val_loss": np.where(reported, loss + 0.05, np.nan),
        "lr": 1e-3 * np.cos(steps / steps.max()),
        "grad_norm": rng.lognormal(0, 0.3, len(steps)),
        "tokens": steps * TOKENS_A_STEP,
        **(_discrete(steps, rng) if quantized else {}),
        "stable_rank_mean": 20 + rng.normal(0, 1, len(steps)),
        "stable_rank_min": 4 + rng.normal(0, 0.2, len(steps)),
        "effective_rank_mean": np.where(checked, 90 + rng.normal(0, 1, len(steps)), np.nan),
        "effective_rank_min": np.where(checked, 30 + rng.normal(0, 1, len(steps)), np.nan),
    }


def _layers(steps: np.ndarray, rng: np.random.Generator, quantized: bool) -> dict[str, Any]:
    return {
        "step": steps,
        "elements": np.full(len(steps), ELEMENTS // len(MATRICES)),
        "scale": 2.0 ** rng.integers(-8, -4, len(steps)),
        "grad_norm": rng.lognormal(-2, 0.3, len(steps)),
        **(_discrete(steps, rng) if quantized else {}),
        "stable_rank": 20 + rng.normal(0, 1, len(steps)),
    }


def _discrete(steps: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    flips = rng.integers(ELEMENTS // 100, ELEMENTS // 20, len(steps))
    return {
        "updates": rng.integers(ELEMENTS - 1000, ELEMENTS, len(steps)),
        "flips": flips,
        "stall_ratio": 1 - flips / ELEMENTS,
        "rescale_flips": np.where(rng.random(len(steps)) < 0.02, flips // 3, 0),
        "oscillations": flips // 7,
        "rung_distance": 1 + rng.random(len(steps)) / 10,
        "weight_saturated": rng.random(len(steps)) / 1e4,
        "weight_underflowed": rng.random(len(steps)) / 1e2,
        "activation_saturated": rng.random(len(steps)) / 1e4,
        "activation_underflowed": rng.random(len(steps)) / 1e2,
    }


def write_result_json(folder: Path, pack: Pack) -> list[Path]:
    """The rows of a pack's trials as Tune keeps them: a ``result.json`` each, a line a step, of what is defined."""
    config = pack.lanes[0].config
    files = {lane.key: (folder / lane.key / "result.json") for lane in pack.lanes}
    lines: dict[str, list[str]] = {key: [] for key in files}
    tuned = {name: getattr(config, name) for name in ("format", "optimizer", "storage", "lr")}
    seeds = {lane.key: lane.config.seed for lane in pack.lanes}
    for part in measured(pack):
        names = [*part.steps]
        for row in zip(*(np.asarray(part.steps[name]).tolist() for name in names), strict=True):
            metrics = {name: value for name, value in zip(names, row, strict=True) if value == value}
            key = metrics.pop("key")
            lines[key].append(json.dumps(metrics | _tune(metrics["step"], key, {**tuned, "seed": seeds[key]})))
    for key, path in files.items():
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(lines[key]) + "\n")
    return [*files.values()]


def _tune(step: int, key: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What Tune adds to every result."""
    return {
        "timestamp": 1_767_225_600 + step,
        "checkpoint_dir_name": None,
        "done": False,
        "training_iteration": step,
        "trial_id": key[:8],
        "date": "2026-01-01_00-00-00",
        "time_this_iter_s": 0.031,
        "time_total_s": 0.031 * step,
        "pid": 4242,
        "hostname": "node",
        "node_ip": "127.0.0.1",
        "config": dict(config),
        "time_since_restore": 0.031 * step,
        "iterations_since_restore": step,
    }
