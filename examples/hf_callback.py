"""The trackers as a Hugging Face `TrainerCallback`, on a GPT-2 that Hugging Face builds and trains.

    pip install transformers accelerate
    python examples/hf_callback.py --format E4M3

A float32 run comes first, a second run in the format after it: a rank that falls means something only beside a healthy
run's. Nothing is downloaded: the model starts from its configuration, the data is made up.
"""

import argparse
import tempfile
from typing import Any

import torch
from plain_loop import Quantizer
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.pytorch_utils import Conv1D

from altgrad.quantization import FORMAT_REGISTRY, FP32, FP8Format, WeightFlipTracker, compute_effective_rank
from altgrad.training.callbacks import RankWatch
from altgrad.training.config import RankConfig

#: Effective rank of each matrix at each log, by step.
Ranks = dict[int, dict[str, float]]


def quantize_weights(model: nn.Module, format: FP8Format) -> None:
    """Make every block's matrices what their format holds, in forward, backward and evaluation.

    A parametrization needs to know nothing of the layer. GPT-2 has `Conv1D` layers, which are no `nn.Linear`: swapping
    linears would miss all of them. Their weights are (in, out), which neither codes nor ranks mind; a scale for each
    output channel would. The head stays float32: it is the embedding.

    Raises:
        ValueError: there is no such layer, so the model would train unquantized.
    """
    layers = [module for module in model.modules() if isinstance(module, Conv1D)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no Conv1D layer to quantize")
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", Quantizer(format, start=layer.weight))


def quantized_weights(model: nn.Module) -> dict[str, tuple[Tensor, Quantizer]]:
    """Every quantized weight before rounding, and what rounds it, by the name of its layer."""
    layers = {name: module for name, module in model.named_modules() if parametrize.is_parametrized(module, "weight")}
    lists = {name: layer.parametrizations.weight for name, layer in layers.items()}
    return {name: (found.original, found[0]) for name, found in lists.items() if isinstance(found[0], Quantizer)}


class QuantizationCallback(TrainerCallback):
    """Counts flips over every optimizer step and watches ranks at every log; both go into the Trainer's own logs."""

    def __init__(self, healthy: Ranks | None = None, config: RankConfig | None = None) -> None:
        """``healthy``: the ranks of a float32 run, to warn against; without it nothing is a warning."""
        #: Ranks seen so far.
        self.ranks: Ranks = {}
        self._healthy, self._watch = healthy, RankWatch(config or RankConfig())
        self._flips = WeightFlipTracker()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gradients are summed over micro-batches and clipped by now: remember the codes they are about to move."""
        for name, (weight, quantizer) in quantized_weights(kwargs["model"]).items():
            self._flips.snapshot_pre_step(name, weight, quantizer.format, quantizer.scale, weight.grad)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the codes that changed, under the scale of before: it moves in the next forward pass."""
        for name, (weight, quantizer) in quantized_weights(kwargs["model"]).items():
            self._flips.compute_flips_post_step(name, weight, quantizer.format, quantizer.scale)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add our columns to a row of the training loss, where later callbacks and the saved history find them."""
        weights, logs = quantized_weights(kwargs["model"]), kwargs["logs"]
        if "loss" not in logs:
            return
        ranks = {name: compute_effective_rank(weight) for name, (weight, _) in weights.items()}
        self.ranks[state.global_step] = ranks
        columns = self._flip_columns() | {"effective_rank_mean": sum(ranks.values()) / len(ranks)}
        if self._healthy is not None:
            alarms = self._watch.check(state.global_step, ranks, self._healthy.get(state.global_step, {}))
            columns["rank_warnings"] = [alarm.message for alarm in alarms]
        logs |= columns
        state.log_history[-1] |= columns

    def _flip_columns(self) -> dict[str, Any]:
        """Flips and the stalled share of updates since the last log."""
        updates = self._flips.get_update_counts()
        stalled = sum(ratio * updates[name] for name, ratio in self._flips.get_stall_ratios().items())
        flips = sum(self._flips.get_flip_counts().values())
        self._flips.reset()
        return {"flips": flips, "stall_ratio": stalled / max(sum(updates.values()), 1)}


def counting(sequences: int) -> list[dict[str, Tensor]]:
    """A made-up language: count up in steps of 1 to 4, modulo 32."""
    generator = torch.Generator().manual_seed(1)
    starts = torch.randint(32, (sequences, 1), generator=generator)
    steps = torch.randint(1, 5, (sequences, 1), generator=generator)
    return [{"input_ids": row, "labels": row} for row in (starts + steps * torch.arange(24)) % 32]


def train(format: FP8Format, steps: int, callback: QuantizationCallback) -> list[dict[str, Any]]:
    """Train the Hugging Face way; the Trainer's log."""
    set_seed(0)
    size = GPT2Config(vocab_size=32, n_positions=24, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(size)
    quantize_weights(model, format)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            logging_steps=max(steps // 10, 1),
            dataloader_pin_memory=torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=counting(1024), callbacks=[callback])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=FORMAT_REGISTRY, default="E4M3")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    healthy = QuantizationCallback()
    control = train(FP32, arguments.steps, healthy)
    watch = RankConfig(warmup_steps=arguments.steps // 5)
    rows = train(FORMAT_REGISTRY[arguments.format], arguments.steps, QuantizationCallback(healthy.ranks, watch))
    print(f"{'step':>6} {'fp32':>8} {arguments.format:>8} {'flips':>8} {'stalled':>8} {'ranks':>8} {'in fp32':>8}")
    for reference, row in zip(control, rows, strict=True):
        losses = f"{reference['loss']:8.3f} {row['loss']:8.3f}"
        ranks = f"{row['effective_rank_mean']:8.2f} {reference['effective_rank_mean']:8.2f}"
        print(f"{row['step']:6} {losses} {row['flips']:8} {row['stall_ratio']:8.1%} {ranks}")
        print("".join(f"       {warning}\n" for warning in row["rank_warnings"]), end="")
