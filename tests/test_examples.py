"""The examples run as a person runs them, offline, and what they print holds together."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from altgrad.quantization import E3M4, E5M2, E7M0, FP32, FP8Format, quantize
from examples.plain_loop import Quantizer, make_optimizer, swap_linears, train

EXAMPLES = Path(__file__).parents[1] / "examples"
#: Weights of the model in plain_loop.py.
WEIGHTS = 40 * 96 + 96 * 96 + 96 * 10

needs_hugging_face = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("transformers", "accelerate"))),
    reason="transformers and accelerate are not installed",
)


def run(folder: Path, *command: str) -> str:
    """What an example prints, run offline from an empty folder, which it must leave empty."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    script, *arguments = command
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return done.stdout


def columns(output: str) -> list[tuple[float, ...]]:
    """The columns of numbers an example prints, percentages as shares."""
    rows = [line.split() for line in output.splitlines()]
    values = [
        [float(cell.strip("%")) / (100 if "%" in cell else 1) for cell in row] for row in rows if row[0].isdigit()
    ]
    return list(zip(*values, strict=True))


def learnt(output: str) -> list[float]:
    """Check the table of a hundred steps of the plain loop; its stall ratios."""
    steps, losses, flips, stalled, *ranks = columns(output)
    assert steps == tuple(range(10, 101, 10))
    assert losses[-1] < 0.9 * losses[0]
    assert all(0 < count <= 10 * WEIGHTS for count in flips)
    assert all(1 <= rank <= most for column, most in zip(ranks, (40, 96, 10), strict=True) for rank in column)
    return list(stalled)


def test_the_plain_loop_learns_and_says_how(tmp_path: Path) -> None:
    stalled = learnt(run(tmp_path, "plain_loop.py", "--format", "E5M2", "--optimizer", "adamw", "--steps", "100"))
    assert all(0.05 < share < 1 for share in stalled)


@pytest.mark.parametrize(
    ("format", "optimizer", "least", "most"),
    [(E3M4, "manifold_adamw", 0.05, 0.999), (E7M0, "adamw", 0.05, 0.999), (FP32, "adamw", 0.0, 0.01)],
    ids=["E3M4", "E7M0", "fp32"],
)
def test_stalls_are_those_of_the_format(
    format: FP8Format, optimizer: str, least: float, most: float, capsys: pytest.CaptureFixture[str]
) -> None:
    train(format, optimizer, steps=100)
    assert all(least <= share <= most for share in learnt(capsys.readouterr().out))


@needs_hugging_face
def test_the_hugging_face_callback_holds_a_format_against_float32(tmp_path: Path) -> None:
    output = run(tmp_path, "hf_callback.py", "--format", "E4M3", "--steps", "40")
    steps, healthy_losses, losses, flips, stalled, ranks, healthy_ranks = columns(output)
    assert steps == tuple(range(4, 41, 4))
    assert losses[-1] < 0.7 * losses[0]
    assert losses == pytest.approx(healthy_losses, rel=0.02)
    assert ranks == pytest.approx(healthy_ranks, rel=0.02)
    # Two blocks of 12 * 64**2 weights, four steps a row.
    assert all(0 < count <= 4 * 2 * 12 * 64**2 for count in flips)
    assert all(0.05 < share < 1 for share in stalled)
    assert stalled[-1] > stalled[0], "the learning rate falls, so fewer updates change a code"


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 4, bias=False)))


@pytest.mark.parametrize("format", [E5M2, E7M0, FP32], ids=lambda format: format.name)
def test_a_swapped_layer_multiplies_rounded_values_and_passes_gradients_straight(format: FP8Format) -> None:
    net = model()
    plain, quantized = net[0], swap_linears(net, format)["0"]
    x = torch.randn(5, 8)
    output = quantized(x)
    rounded = {
        "weight": quantize(plain.weight, format, quantized.round_weight.scale).detach().requires_grad_(),
        "input": quantize(x, format, quantized.round_input.scale),
    }
    expected = F.linear(rounded["input"], rounded["weight"], plain.bias)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    output.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(quantized.weight.grad, rounded["weight"].grad, rtol=0, atol=0)
    assert quantized.weight is plain.weight
    if format is FP32:
        torch.testing.assert_close(output, plain(x), rtol=0, atol=0)


def test_every_linear_layer_is_swapped_and_none_is_an_error() -> None:
    net = model()
    assert list(swap_linears(net, E5M2)) == ["0", "2.0"]
    with pytest.raises(ValueError, match="Sequential has no linear layer to quantize"):
        swap_linears(net, E5M2)


def scales(net: nn.Module) -> list[Tensor]:
    return [module.scale.clone() for module in net.modules() if isinstance(module, Quantizer)]


@pytest.mark.parametrize("optimizer", ["adamw", "manifold_adamw"])
def test_scales_stand_still_over_the_step_and_in_evaluation(optimizer: str) -> None:
    net = model()
    swap_linears(net, E5M2)
    step = make_optimizer(optimizer, net, E5M2)
    net(torch.randn(5, 8)).sum().backward()
    before = scales(net)
    step.step()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(64)
        net.eval()(1000 * torch.randn(5, 8))
    assert scales(net) == before
    net.train()(torch.randn(5, 8))
    assert all(new > old for new, old in zip(scales(net)[::2], before[::2], strict=True))


def test_a_reloaded_model_computes_the_same() -> None:
    net, copy = model(), model()
    for each in (net, copy):
        swap_linears(each, E5M2)
    x = 100 * torch.randn(5, 8)
    net(x)
    copy.load_state_dict(net.state_dict())
    torch.testing.assert_close(copy.eval()(x), net.eval()(x), rtol=0, atol=0)
