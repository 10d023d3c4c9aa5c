"""What the trackers record over real training steps, against a count by brute force in float64."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from brute_force import Grid, Tracker
from small_runs import small
from torch import Tensor

from altgrad.quantization.formats import FORMAT_REGISTRY, FP8_FORMATS, FP8Format
from altgrad.quantization.kernels import random_bits, stream_keys
from altgrad.training.config import ModelConfig, RunConfig
from altgrad.training.corpus import Corpus
from altgrad.training.lanes import Lanes
from altgrad.training.loop import train_step
from altgrad.training.metrics import COUNTS, DISCRETE
from altgrad.training.part import Part
from altgrad.training.weights import Stack

STEPS = 50
FORMATS = tuple(format.name for format in FP8_FORMATS)
STORAGES = ("master", "nearest", "stochastic")
SCALINGS = ("power_of_two", "amax", "none")
#: Rates at which weights flip, flip back and outgrow their scales within 50 steps.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw", "lr": 0.2},
    "manifold, gradient": {"optimizer": "manifold_adamw", "precondition": "gradient", "lr": 0.2},
    "manifold, update": {"optimizer": "manifold_adamw", "precondition": "update", "rung_lr": 4.0},
    "muon": {"optimizer": "muon", "lr": 0.2},
    "grid": {"optimizer": "grid"},
}
#: What all runs here share. With the head untied most of the 256 byte tokens never come up, and their embeddings
#: have no gradient at all, while momentum and weight decay go on.
SHARED: dict[str, Any] = {
    "model": ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, tied_head=False),
    "steps": STEPS,
    "batch_size": 2,
    "weight_decay": 0.5,
    "amax_history": 4,
}
#: What is counted of weights.
COUNTED = (*DISCRETE, "rescale_flips")
#: Columns of one step ``(S, L)``, or of all steps ``(steps, S, L)``.
Columns = dict[str, npt.NDArray[np.float64]]


def lanes_of(configs: Sequence[RunConfig], corpus: Corpus) -> Lanes:
    keys = [f"lane{i}" for i in range(len(configs))]
    return Lanes(keys, dict(zip(keys, configs, strict=True)), corpus, torch.device("cpu"))


class Watch:
    """Copies what every step starts from and leaves behind, and counts by brute force what happened in between."""

    def __init__(self, lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
        self._lanes = lanes
        self._moved, self._gradient = dict[Stack, Tensor](), dict[Stack, Tensor]()
        self._parts = [part for part in lanes.parts if part.grid]
        self._trackers = {
            (name, lane): Tracker(FORMAT_REGISTRY[config.format], config.storage, part.stack.stored[0, 0].numel())
            for part in self._parts
            for name in part.stack.names
            for lane, config in enumerate(lanes.configs)
            if config.format != "fp32"
        }
        for part in self._parts:
            self._spy(part, monkeypatch)

    def _spy(self, part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
        """Copy the weights between the optimizer's step and the rounding, where lanes without masters lose them."""
        real = part.optimizer.step

        def step(stack: Stack, gradient: Tensor, *arguments: Any) -> None:
            real(stack, gradient, *arguments)
            self._moved[stack], self._gradient[stack] = stack.stored.clone(), gradient

        monkeypatch.setattr(part.optimizer, "step", step)

    def step(self, step: int) -> Columns:
        """Train one step; its true columns, NaN for lanes without codes."""
        shape = len(self._lanes.matrices), len(self._lanes.keys)
        truth = {name: np.full(shape, np.nan) for name in (*COUNTED, "scale", "flipped_without_gradient")}
        forward = self._lanes.weights()
        for part, i, lane, tracker in self._cells():
            scale = _scale(part)[i, lane].item()
            truth["scale"][self._place(part, i), lane] = scale
            used = tracker.begin(_flat(part.stack.stored[i, lane]), scale)
            assert np.array_equal(_flat(forward[part.stack.names[i]][lane]), used)
        train_step(self._lanes, step)
        for part, i, lane, tracker in self._cells():
            place, moved = self._place(part, i), _flat(self._moved[part.stack][i, lane])
            bits = _bits(self._lanes.configs[lane], step, place, moved.size)
            columns = tracker.end(_flat(self._gradient[part.stack][i, lane]), moved, bits, _scale(part)[i, lane].item())
            assert columns.keys() == set(COUNTED)
            for name, value in (columns | {"flipped_without_gradient": tracker.flipped_without_gradient}).items():
                truth[name][place, lane] = value
            assert np.array_equal(_flat(part.stack.stored[i, lane]), tracker.stored)
            assert np.array_equal(_flat(part.stack.working[i, lane]), tracker.working)
        return truth

    def _cells(self) -> Iterator[tuple[Part, int, int, Tracker]]:
        for part in self._parts:
            for (i, name), lane in itertools.product(enumerate(part.stack.names), range(len(self._lanes.keys))):
                if tracker := self._trackers.get((name, lane)):
                    yield part, i, lane, tracker

    def _place(self, part: Part, i: int) -> int:
        return self._lanes.matrices.index(part.stack.names[i])


def _flat(x: Tensor) -> npt.NDArray[np.float64]:
    return x.detach().reshape(-1).numpy().astype(np.float64)


def _scale(part: Part) -> Tensor:
    assert part.grid
    return part.grid.scaler.scale


def _bits(config: RunConfig, step: int, place: int, size: int) -> npt.NDArray[np.int64]:
    """The random numbers of a matrix: which they are is a convention, what they do to a weight is for the tracker."""
    keys = torch.tensor(stream_keys([config.seed], step, 2 * place), dtype=torch.int32)
    return random_bits(keys, size)[0].numpy().astype(np.int64)


def recorded(lanes: Lanes) -> Columns:
    """What the run itself says of its last step."""
    rows = lanes.recorder.rows({}).layers
    return {name: rows[name].reshape(len(lanes.matrices), len(lanes.keys)) for name in (*COUNTED, "scale")}


def train_and_compare(configs: Sequence[RunConfig], corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> Columns:
    """Train, and hold every column of every step against the truth; the true ones of all steps."""
    lanes = lanes_of(configs, corpus)
    watch, steps = Watch(lanes, monkeypatch), []
    for step in range(1, STEPS + 1):
        truth = watch.step(step)
        for name, ours in recorded(lanes).items():
            atol = 0 if name in (*COUNTS, "scale") else 1e-12
            np.testing.assert_allclose(ours, truth[name], rtol=0, atol=atol, err_msg=f"{name} at step {step}")
        steps.append(truth)
    return {name: np.stack([truth[name] for truth in steps]) for name in steps[0]}


def happened(truth: Mapping[str, npt.NDArray[np.float64]]) -> set[str]:
    """Columns that are not true only because nothing ever happened."""
    return {name for name, values in truth.items() if np.nansum(values) > 0}


@pytest.mark.parametrize("format", FP8_FORMATS, ids=lambda format: format.name)
def test_the_brute_force_rounds_as_the_scalar_reference(format: FP8Format) -> None:
    values = np.array([format.to_real(code) for code in range(format.max_code + 1)])
    ties = (values[:-1] + values[1:]) / 2
    edges = np.concatenate([values, ties, np.nextafter(ties, 0), np.nextafter(ties, np.inf), [2 * values[-1]]])
    np.testing.assert_array_equal(Grid(format).nearest(edges), [format.to_bits(x) for x in edges])
    np.testing.assert_array_equal(Grid(format).nearest(-edges), [-format.to_bits(x) for x in edges])


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_count_is_true(optimizer: str, scaling: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every format with every optimizer and scaling, the storages in turn, so that any three of the four meet."""
    turn = list(OPTIMIZERS).index(optimizer) + SCALINGS.index(scaling)
    configs = [
        small(
            format=format,
            storage="nearest" if optimizer == "grid" else STORAGES[(turn + i) % 3],
            seed=i,
            scaling=scaling,
            **SHARED | OPTIMIZERS[optimizer],
        )
        for i, format in enumerate(FORMATS)
    ]
    truth = train_and_compare(configs, corpus, monkeypatch)
    assert truth.keys() - happened(truth) == _impossible(optimizer, scaling)


def _impossible(optimizer: str, scaling: str) -> set[str]:
    """Columns that stay at nothing in these runs; all others must happen somewhere."""
    never = {"weight_underflowed"} if optimizer == "grid" else set()
    if scaling == "none":
        never |= {"rescale_flips"}
        # Unscaled grids end far from where weights start; these two do not get to the end of the narrowest.
        never |= {"weight_saturated"} if optimizer in ("manifold, update", "grid") else set()
    return never


@pytest.mark.parametrize("scaling", ["power_of_two", "amax"])
def test_rescaling_a_weight_that_is_on_its_grid_is_counted(
    scaling: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without masters a new scale moves the stored weight itself; the count is of those moved codes, and no flips."""
    configs = [
        small(format="E4M3", storage=storage, scaling=scaling, **SHARED | {"lr": 0.2})
        for storage in ("nearest", "stochastic")
    ]
    truth = train_and_compare(configs, corpus, monkeypatch)
    rescaled = truth["rescale_flips"] > 0
    assert rescaled.any((0, 1)).all()
    # Codes change with the scale and not otherwise.
    moved = truth["scale"][1:] != truth["scale"][:-1]
    assert (moved | ~rescaled[:-1]).all()


def test_every_count_is_true_of_wide_formats_and_undefined_in_float32(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 16-bit lane takes every lane's codes to two bytes."""
    formats = ("bf16", "fp16", "fp32", "E4M3")
    configs = [small(format=format, seed=i, **SHARED | {"lr": 0.01}) for i, format in enumerate(formats)]
    truth = train_and_compare(configs, corpus, monkeypatch)
    for name in COUNTED:
        assert np.isnan(truth[name][..., 2]).all()
        assert np.isfinite(truth[name][..., [0, 1, 3]]).any((0, 1)).all()


@pytest.mark.parametrize("storage", STORAGES)
def test_a_stall_ratio_is_a_share_though_momentum_and_decay_flip_what_has_no_gradient(
    storage: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SHARED | {"lr": 0.2, "weight_decay": 2.0}
    truth = train_and_compare([small(storage=storage, format="E2M5", **settings)], corpus, monkeypatch)
    ratio = truth["stall_ratio"]
    assert ((ratio >= 0) & (ratio <= 1)).all()
    # Flips over updates alone would be out of range here.
    assert (truth["flips"] > truth["updates"]).any()
    assert (truth["flipped_without_gradient"] > 0).any()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_a_lost_lane_has_no_counts_and_harms_no_other(lost: float, scaling: str, corpus: Corpus) -> None:
    configs = [small(storage=storage, seed=i, **SHARED, scaling=scaling) for i, storage in enumerate(STORAGES * 2)]
    healthy, sick = lanes_of(configs, corpus), lanes_of(configs, corpus)
    for step in range(1, 11):
        if step == 5:
            for part in sick.parts:
                part.stack.stored[:, :3].fill_(lost)
        for lanes in (healthy, sick):
            train_step(lanes, step)
        expected, found = recorded(healthy), recorded(sick)
        for name in COUNTED:
            if step >= 5:
                assert np.isnan(found[name][:, :3]).all(), f"{name} at step {step}"
            np.testing.assert_array_equal(found[name][:, 3:], expected[name][:, 3:])
