"""What ManifoldAdamW's two forms do to AdamW's steps, on the gradients and weights of a real run.

The run trains with AdamW. Beside it, optimizers that never move it follow: at every step each is given the run's
weights and gradients, and says where it would go. They differ in nothing but the preconditioning.

    python -m tests.training.manifold_steps [--format E4M3] [--steps 1000] [--at 100 500 1000]
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from altgrad.quantization.diagnostics import exponent_stiffness
from altgrad.training.config import RunConfig
from altgrad.training.corpus import Corpus, load_corpus
from altgrad.training.lanes import Lanes
from altgrad.training.loop import train_step
from altgrad.training.optimizer import ManifoldAdamW

#: Name and what the optimizer is given; the learning rate is one, so that a step is the normalised update.
Kinds = Mapping[str, Mapping[str, Any]]
#: Mantissa bits of the update form, and of the rungs that are counted: E4M3's.
UPDATE_BITS = 3
#: Binades of |w| below the largest weight of a matrix that are told apart.
BINADES = 6


def kinds(mantissa_bits: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Plain AdamW, the gradient form for numbers of mantissa bits and without eps, and the update form.

    Mantissa bits only scale the update form's steps, so one number of them is enough.
    """
    gradient = {f"gradient M={bits}": {"precondition": "gradient", "mantissa_bits": bits} for bits in mantissa_bits}
    others = {
        f"gradient M={UPDATE_BITS}, no eps": {"precondition": "gradient", "mantissa_bits": UPDATE_BITS, "eps": 1e-30},
        f"update M={UPDATE_BITS}": {"precondition": "update", "mantissa_bits": UPDATE_BITS},
    }
    return {"adamw": {"manifold_aware": False}} | gradient | others


class Followed(NamedTuple):
    """One step of the run: the weights before it, and where each optimizer would go, matrix by matrix."""

    step: int
    weights: dict[str, Tensor]
    #: By kind and matrix.
    updates: dict[str, dict[str, Tensor]]


def follow(config: RunConfig, corpus: Corpus, kinds: Kinds, at: Sequence[int]) -> Iterator[Followed]:
    """Train one lane up to the last of the steps ``at``, and tell of each of them."""
    lanes = Lanes(["a"], {"a": config}, corpus, torch.device("cpu"))
    betas = (config.beta1, config.beta2)
    params = {kind: {name: torch.zeros_like(w) for name, w in _weights(lanes).items()} for kind in kinds}
    followers = {
        kind: ManifoldAdamW(
            params[kind].values(), **{"lr": 1.0, "betas": betas, "eps": config.eps, "weight_decay": 0.0, **options}
        )
        for kind, options in kinds.items()
    }
    for step in range(1, max(at) + 1):
        weights = {name: w.clone() for name, w in _weights(lanes).items()}
        train_step(lanes, step)
        gradients = _gradients(lanes)
        for kind, follower in followers.items():
            for name, param in params[kind].items():
                param.copy_(weights[name])
                param.grad = gradients[name]
            follower.step()
        if step in at:
            moved = {kind: {name: weights[name] - p for name, p in by_name.items()} for kind, by_name in params.items()}
            yield Followed(step, weights, moved)


def _weights(lanes: Lanes) -> dict[str, Tensor]:
    """The stored matrices of the only lane."""
    return {
        name: part.stack.stored[i, 0]
        for part in lanes.parts
        if part.stack.is_matrix
        for i, name in enumerate(part.stack.names)
    }


def _gradients(lanes: Lanes) -> dict[str, Tensor]:
    """The gradients of all parameters in the last step, clipped as the optimizer has them; twice is as once."""
    gradients = {name: part.stack.gradient[i, 0] for part in lanes.parts for i, name in enumerate(part.stack.names)}
    norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
    factor = ((lanes.config.grad_clip or float("inf")) / (norm + 1e-6)).clamp_max(1.0)
    return {name: gradient * factor for name, gradient in gradients.items()}


def cosine(one: Tensor, other: Tensor) -> float:
    """Between two updates, in float64."""
    a, b = one.double().flatten(), other.double().flatten()
    return float(a @ b / (a.norm() * b.norm()))


def norm_ratio(one: Tensor, other: Tensor) -> float:
    """Length of the first over that of the second."""
    return float(one.double().norm() / other.double().norm())


def rungs_by_binade(weight: Tensor, update: Tensor, lr: float) -> list[float]:
    """Median of the rungs that weights move, in binades from half the largest weight's down."""
    spacing = exponent_stiffness(weight, UPDATE_BITS)
    top = spacing.max()
    rungs = update.abs() * lr / spacing
    return [float(rungs[spacing == top / 2 ** (i + 1)].median()) for i in range(BINADES)]


def share_moved(weight: Tensor, update: Tensor, lr: float, rungs: float) -> float:
    """Share of weights that move by at least so many rungs at a learning rate."""
    return float((update.abs() * lr >= rungs * exponent_stiffness(weight, UPDATE_BITS)).double().mean())


def _spread(values: Sequence[float]) -> str:
    x = torch.tensor(values, dtype=torch.float64)
    return f"{float(x.median()):.3f} ({float(x.min()):.3f} to {float(x.max()):.3f})"


def _show(found: Followed, kinds: Kinds, lr: float, rung_lr: float) -> None:
    names, plain = list(found.weights), found.updates["adamw"]
    print(f"\nstep {found.step}: median over {len(names)} matrices (least to most)")
    for kind, options in kinds.items():
        pairs = [(found.weights[name], found.updates[kind][name]) for name in names]
        rate = rung_lr if options.get("precondition") == "update" else lr
        cosines = _spread([cosine(found.updates[kind][name], plain[name]) for name in names])
        ratios = _spread([norm_ratio(found.updates[kind][name], plain[name]) for name in names])
        shares = _spread([share_moved(weight, update, rate, rungs=0.05) for weight, update in pairs])
        binades = torch.tensor([rungs_by_binade(weight, update, rate) for weight, update in pairs]).median(0).values
        print(f"{kind:18} cosine {cosines}, norm over adamw {ratios}")
        print(f"{'':18} at {rate:g}: share moved by 1/20 rung {shares}")
        print(f"{'':18} rungs by binade, large weights first: {' '.join(f'{float(x):.3g}' for x in binades)}")


def main() -> None:
    """Train, follow, and print a table for each of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", default="E4M3")
    parser.add_argument("--steps", type=int, default=1000, help="length of the learning-rate schedule")
    parser.add_argument("--at", type=int, nargs="+", default=[100, 500, 1000])
    parser.add_argument("--mantissa-bits", type=int, nargs="+", default=[0, 2, 3, 5])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config, chosen = RunConfig(format=options.format, steps=options.steps), kinds(options.mantissa_bits)
    for found in follow(config, load_corpus(config.corpus), chosen, options.at):
        _show(found, chosen, config.lr, config.rung_lr)


if __name__ == "__main__":
    main()
