"""A step never asks the device for a number: measurements leave it at reports."""

from typing import Any

import pytest
import torch
from small_runs import small
from torch.utils._python_dispatch import TorchDispatchMode

from altgrad.training.corpus import Corpus
from altgrad.training.lanes import Lanes
from altgrad.training.loop import train_step

#: Operations whose result, or whose shape, the CPU must know before it can go on.
WAITING = {
    *("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero", "aten::masked_select"),
    *("aten::_unique2", "aten::unique_dim", "aten::repeat_interleave.Tensor", "aten::_linalg_check_errors"),
}
MIXES: list[tuple[dict[str, Any], ...]] = [
    ({"format": "E4M3"}, {"format": "fp32"}),
    ({"storage": "nearest"}, {"storage": "stochastic"}),
    ({"optimizer": "grid", "storage": "nearest"},),
    ({"optimizer": "manifold_adamw", "precondition": "update"},),
    ({"optimizer": "muon", "tensors": ("weights", "activations", "gradients")},),
]


class Heard(TorchDispatchMode):
    """Remembers the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def program(mix: tuple[dict[str, Any], ...], corpus: Corpus, device: str) -> Lanes:
    configs = {str(i): small(**changes) for i, changes in enumerate(mix)}
    return Lanes(list(configs), configs, corpus, torch.device(device))


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_no_operation_of_a_step_waits_for_a_number(mix: tuple[dict[str, Any], ...], corpus: Corpus) -> None:
    """But one: on a CPU, where nothing waits, scales are compared to save the work of those that stay."""
    lanes = program(mix, corpus, "cpu")
    for step in (1, 2):
        with Heard() as heard:
            train_step(lanes, step)
        assert {"aten::bmm", "aten::amax"} <= heard.names
        assert heard.names & WAITING <= {"aten::equal"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_a_step_does_not_wait_for_a_gpu(mix: tuple[dict[str, Any], ...], corpus: Corpus) -> None:
    lanes = program(mix, corpus, "cuda")
    train_step(lanes, 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(lanes, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
