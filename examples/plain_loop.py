"""An ordinary PyTorch training loop with 8-bit weights and inputs, and what the trackers see in it.

    python examples/plain_loop.py --format E4M3 --optimizer manifold_adamw

The model is not ours: any model made of `torch.nn.Linear` layers is quantized by swapping them.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from altgrad.quantization import (
    FORMAT_REGISTRY,
    AmaxHistory,
    FP8Format,
    RankHealthMonitor,
    WeightFlipTracker,
    power_of_two_scale,
    quantize,
)
from altgrad.training.optimizer import ManifoldAdamW


class Quantizer(nn.Module):
    """Rounds one tensor to a format, under a power-of-two scale that follows its largest magnitude.

    The scale moves here, in training only. Over an optimizer step, between two forward passes, it stands still.
    """

    scale: Tensor

    def __init__(self, format: FP8Format, start: Tensor) -> None:
        super().__init__()
        self.format, self._history = format, AmaxHistory(history_len=16)
        self.register_buffer("scale", torch.zeros((), device=start.device))
        self.observe(start)

    def observe(self, x: Tensor) -> None:
        """Let the scale follow the largest magnitude of the last 16 steps."""
        self._history.update(x)
        amax = torch.tensor(self._history.get_amax(), device=self.scale.device)
        largest = torch.tensor(self.format.max_representable_value, device=self.scale.device)
        self.scale = power_of_two_scale(amax, largest, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """The rounded tensor; the gradient passes as if nothing had been rounded."""
        if self.training:
            self.observe(x)
        return quantize(x, self.format, self.scale)


class QuantizedLinear(nn.Linear):
    """A linear layer that multiplies rounded inputs by rounded weights; the float32 weights are what is trained."""

    def __init__(self, linear: nn.Linear, format: FP8Format) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.weight, self.bias = linear.weight, linear.bias
        self.round_weight = Quantizer(format, start=linear.weight)
        self.round_input = Quantizer(format, start=torch.ones_like(linear.weight[:1]))

    def forward(self, input: Tensor) -> Tensor:
        """``(..., in) -> (..., out)``."""
        return F.linear(self.round_input(input), self.round_weight(self.weight), self.bias)


def swap_linears(model: nn.Module, format: FP8Format) -> dict[str, QuantizedLinear]:
    """Quantize every linear layer of a model in place; the new layers by name.

    Raises:
        ValueError: there is none, so the model would train unquantized.
    """
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    if not linears:
        raise ValueError(f"{type(model).__name__} has no linear layer to quantize")
    layers = {name: QuantizedLinear(linear, format) for name, linear in linears.items()}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return layers


def make_optimizer(name: str, model: nn.Module, format: FP8Format) -> torch.optim.Optimizer:
    """AdamW; or ManifoldAdamW, whose learning rate counts steps of the grid for the weights that live on one."""
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=3e-3)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "lr": 0.3}, {"params": vectors, "lr": 3e-3, "manifold_aware": False}]
    return ManifoldAdamW(groups, weight_decay=0.0, mantissa_bits=format.mantissa_bits, precondition="update")


def make_batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A made-up task: which of ten groups of four numbers holds the largest?"""
    x = torch.randn(128, 40, generator=generator)
    return x, x.argmax(-1) // 4


def train(format: FP8Format, optimizer_name: str, steps: int) -> None:
    """Train, and print about ten rows of what happened."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(40, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))
    layers = swap_linears(model, format)
    optimizer = make_optimizer(optimizer_name, model, format)
    flips, monitor = WeightFlipTracker(), RankHealthMonitor(log_interval=max(steps // 10, 1))
    print(f"{format.name}, {optimizer_name}: {sum(layer.weight.numel() for layer in layers.values())} weights")
    print(f"{'step':>6} {'loss':>7} {'flips':>8} {'stalled':>8}  effective ranks of layers {', '.join(layers)}")
    losses = 0.0
    for step in range(1, steps + 1):
        inputs, targets = make_batch(generator)
        loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        for name, layer in layers.items():  # Before the step: remember the codes, and which weights should move.
            flips.snapshot_pre_step(name, layer.weight, format, layer.round_weight.scale, layer.weight.grad)
        optimizer.step()
        for name, layer in layers.items():  # After it, under the same scale: count the codes that changed.
            flips.compute_flips_post_step(name, layer.weight, format, layer.round_weight.scale)
        losses += loss.item()
        if step % monitor.log_interval == 0:
            ranks = monitor.compute_layer_ranks(model)
            report(step, losses / monitor.log_interval, flips, ranks)
            losses = 0.0
            for warning in monitor.check_warnings(ranks):
                print(f"       {warning}")


def report(step: int, loss: float, flips: WeightFlipTracker, ranks: dict[str, dict[str, float]]) -> None:
    """Print one row; the loss is the mean since the last row, flips and the stalled share of updates are since then."""
    updates = flips.get_update_counts()
    stalled = sum(ratio * updates[name] for name, ratio in flips.get_stall_ratios().items())
    share = stalled / max(sum(updates.values()), 1)
    columns = "".join(f"{values['effective_rank']:8.2f}" for values in ranks.values())
    print(f"{step:6} {loss:7.3f} {sum(flips.get_flip_counts().values()):8} {share:8.1%} {columns}")
    flips.reset()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=FORMAT_REGISTRY, default="E5M2")
    parser.add_argument("--optimizer", choices=("adamw", "manifold_adamw"), default="adamw")
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    train(FORMAT_REGISTRY[arguments.format], arguments.optimizer, arguments.steps)
