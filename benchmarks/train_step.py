"""What a training step costs beside a plain PyTorch one: trackers, formats and lanes, in one interleaved run.

A step is a batch, forward, backward, clipping and the optimizer, on the CPU; validation is left out on both sides.
Everything runs eagerly and compiled, and the ratios compare the better mode of each. Both sides draw the same batches
from the same data and start from the same weights.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from altgrad.quantization.formats import FORMAT_REGISTRY
from altgrad.quantization.fused import engine
from altgrad.quantization.kernels import largest_magnitudes, round_nearest
from altgrad.training.compiling import compiled
from altgrad.training.config import ModelConfig, RunConfig
from altgrad.training.corpus import Corpus, load_corpus
from altgrad.training.data import Batches
from altgrad.training.lane_optimizer import LaneNumbers, schedule
from altgrad.training.lanes import Lanes
from altgrad.training.layers import layer_formats
from altgrad.training.loop import train_step
from altgrad.training.model import initial_parameters
from altgrad.training.move import ONE_LOOP
from altgrad.training.part import Part
from altgrad.training.precision import Flow
from altgrad.training.ranks import EARLY_STEPS
from altgrad.training.weights import per_lane
from benchmarks.arguments import positive
from benchmarks.plain_gpt import PlainGPT

CPU = torch.device("cpu")
GRADIENTS_TOO = ("weights", "activations", "gradients")
#: Appended to the name of a program that is compiled.
COMPILED = ", compiled"
#: Rounds that are run and not timed.
WARM_UP = 3
#: Steps that a program takes in a round. The first is not timed: it brings back into the caches what the other programs
#: drove out, as a program that trains alone has it.
ROUND = 3


@dataclass(frozen=True)
class Size:
    """A model's layers and width; the rest follows nanoGPT's small settings."""

    layers: int
    width: int

    @classmethod
    def parse(cls, text: str) -> "Size":
        """``4x128`` and the like.

        Raises:
            argparse.ArgumentTypeError: something else.
        """
        parts = text.split("x")
        if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
            raise argparse.ArgumentTypeError(f"a size is LAYERSxWIDTH, such as 4x128, got {text!r}")
        if int(parts[1]) % int(parts[0]):
            raise argparse.ArgumentTypeError(f"there are as many heads as layers, so {parts[0]} must divide {parts[1]}")
        return cls(int(parts[0]), int(parts[1]))

    def __str__(self) -> str:
        return f"{self.layers}x{self.width}"

    def config(self, **changes: Any) -> RunConfig:
        """A run of this size, as a sweep would make it."""
        block, batch = (128, 8) if self.width > 128 else (64, 12)
        model = ModelConfig(n_layer=self.layers, n_head=self.layers, n_embd=self.width, block_size=block)
        return RunConfig(model=model, batch_size=batch, **changes)


class Program(Protocol):
    """Something that trains."""

    def step(self, step: int) -> None:
        """One optimizer step."""

    def flush(self) -> None:
        """Turn what was recorded since the last call into rows."""


class Plain:
    """An `nn.Module` under `torch.optim.AdamW`, as its defaults have it."""

    def __init__(self, config: RunConfig, corpus: Corpus, permit_bf16: bool = False) -> None:
        """``permit_bf16``: let oneDNN multiply float32 tensors as bf16 where it wants to."""
        self._config, self._precision = config, "bf16" if permit_bf16 else "none"
        self.model = PlainGPT(config.model, corpus.vocabulary)
        start = initial_parameters(config.model, corpus.vocabulary, [config.seed])
        self.model.take({name: lanes[0] for name, lanes in start.items()})
        self._optimizer = self.model.optimizer(config.lr, config.beta2, config.weight_decay)
        self.batches = Batches(corpus, [config.seed], config.batch_size, config.model.block_size, CPU)
        self._loss: Callable[..., Tensor] = (
            torch.compile(self.model, dynamic=False) if config.compile == "always" else self.model
        )
        self.loss = torch.zeros(())

    def step(self, step: int) -> None:
        """One optimizer step."""
        switch: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        usual = switch.fp32_precision
        switch.fp32_precision = self._precision
        try:
            self._step(step)
        finally:
            switch.fp32_precision = usual

    def _step(self, step: int) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.lr * schedule(self._config, step)
        inputs, targets = self.batches.train(step)
        loss = self._loss(inputs[0], targets[0])
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.grad_clip)
        self._optimizer.step()
        self.loss = loss.detach()

    def flush(self) -> None:
        """Nothing is recorded."""


class Tracked:
    """Lanes as a sweep trains them: every tracker, every step."""

    def __init__(self, config: RunConfig, corpus: Corpus, lanes: int = 1) -> None:
        seeds = {f"lane{i}": {"seed": config.seed + i} for i in range(lanes)}
        configs = {key: RunConfig.from_dict(config.to_dict() | change) for key, change in seeds.items()}
        self.lanes = Lanes(list(configs), configs, corpus, CPU)

    def step(self, step: int) -> None:
        """One optimizer step of every lane."""
        train_step(self.lanes, step)

    def flush(self) -> None:
        """Rows, as a report takes them."""
        self.lanes.recorder.rows({})


class _UncountedFlow(Flow):
    """Rounds activations and counts nothing."""

    def quantize(self, x: Tensor) -> Tensor:
        scale = self.scaler.observe(largest_magnitudes(x).unsqueeze(0), self._slot).view(-1, 1, 1)
        return round_nearest(x / scale, self._numbers) * scale


class Untracked:
    """One quantized lane that nobody watches: the same parts and the same losses, without what only trackers need.

    There are no codes, no flips, no ranks, no shares, no norms by matrix and no rows. Master weights with AdamW only.
    """

    def __init__(self, config: RunConfig, corpus: Corpus) -> None:
        self._lanes = Lanes(["lane0"], {"lane0": config}, corpus, CPU)
        full = FORMAT_REGISTRY["fp32"]
        entering = [[full if name == "wpe" else f] for name, f in layer_formats(config).items()]
        self._lanes.activations = [_UncountedFlow(formats, config, CPU) for formats in entering]
        self._move = compiled(_move_uncounted, **ONE_LOOP) if config.compile == "always" else _move_uncounted
        self.loss = torch.zeros(())

    def step(self, step: int) -> None:
        """One optimizer step."""
        lanes = self._lanes
        inputs, targets = lanes.batches.train(step)
        lanes.begin(step, training=True)
        loss = lanes.loss(lanes.weights(), inputs, targets)
        loss.sum().backward()
        self.loss = loss.detach()[0]
        with torch.no_grad():
            numbers = LaneNumbers(lanes.configs, step, CPU)
            squares = torch.stack([part.take_gradient().sum(0) for part in lanes.parts]).sum(0)
            factor = (numbers.grad_clip / (squares.sqrt().float() + 1e-6)).clamp_max(1.0)
            for part in lanes.parts:
                if part.grid:
                    part.grid.begin(step)
            self._move(lanes.parts, numbers, factor)

    def flush(self) -> None:
        """Nothing is recorded."""


def _move_uncounted(parts: Sequence[Part], numbers: LaneNumbers, factor: Tensor) -> None:
    """Clip and optimize, and round the masters for use under the scale that follows."""
    for part in parts:
        stack, grid = part.stack, part.grid
        part.optimizer.step(stack, stack.gradient * per_lane(factor, stack.gradient), numbers)
        if grid is not None:
            scale = per_lane(grid.scaler.observe(largest_magnitudes(stack.stored), grid._slot), stack.stored)
            stack.working.copy_(round_nearest(stack.stored / scale, grid.numbers) * scale)


class Cost(NamedTuple):
    """Seconds; medians."""

    #: One of the first steps, in which ranks are followed more closely.
    early: float
    #: A later step between two rank checks.
    ordinary: float
    #: A step with a rank check.
    check: float
    #: Rows, a step's share.
    rows: float
    #: Steps of the run, and from one check to the next.
    steps: int
    interval: int

    @property
    def step(self) -> float:
        """A step of a whole run, first steps, checks and rows included as often as they occur."""
        early = (self.early - self.ordinary) * min(1.0, EARLY_STEPS / self.steps)
        return self.ordinary + early + (self.check - self.ordinary) / self.interval + self.rows


def measure(programs: Mapping[str, Program], rounds: int, config: RunConfig) -> dict[str, Cost]:
    """Time all programs side by side, a few steps of each in turn: first steps, later ones, and rank checks."""
    interval = config.ranks.interval
    # The early rounds are over before the later ones begin.
    few = min(max(3, rounds // 4), EARLY_STEPS // ROUND - WARM_UP - 1)
    early = _rounds(programs, _unchecked(1, WARM_UP + few, interval))
    ordinary = _unchecked(EARLY_STEPS + 1, WARM_UP + rounds, interval)
    later = _rounds(programs, ordinary)
    taken = ROUND * (len(ordinary) + WARM_UP + few)
    rows = {name: _seconds(program.flush) / taken for name, program in programs.items()}
    first_check = (ordinary[-1][-1] // interval + 1) * interval
    due = range(first_check, first_check + few * interval, interval)
    checks = _rounds(programs, [(step - 1, step) for step in due])
    median = statistics.median
    return {
        name: Cost(
            median(early[name][WARM_UP:]),
            median(later[name][WARM_UP:]),
            median(checks[name]),
            rows[name],
            config.steps,
            interval,
        )
        for name in programs
    }


def _unchecked(first: int, rounds: int, interval: int) -> list[tuple[int, ...]]:
    """Rounds of the next steps without a rank check."""
    steps = (step for step in itertools.count(first) if step % interval)
    return [tuple(itertools.islice(steps, ROUND)) for _ in range(rounds)]


def _rounds(programs: Mapping[str, Program], rounds: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    """Seconds of a step of each program in each round."""
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for first, *timed in rounds:
        for name, program in programs.items():
            program.step(first)
            start = time.perf_counter()
            for step in timed:
                program.step(step)
            taken[name].append((time.perf_counter() - start) / len(timed))
    return taken


def _seconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def programs_of(size: Size, corpus: Corpus, packs: Sequence[int], modes: Sequence[bool]) -> dict[str, Program]:
    """Everything that is timed at one size, eager and compiled."""
    programs: dict[str, Program] = {}
    for is_compiled in modes:
        mode = "always" if is_compiled else "never"
        e5m2 = size.config(format="E5M2", compile=mode)
        both = {"format": "E5M2", "tensors": GRADIENTS_TOO, "compile": mode}
        named: dict[str, Program] = {
            "plain": Plain(size.config(compile=mode), corpus),
            "plain, bf16 permitted": Plain(size.config(compile=mode), corpus, permit_bf16=True),
            "fp32 lane": Tracked(size.config(format="fp32", compile=mode), corpus),
            "E5M2 untracked": Untracked(e5m2, corpus),
            "E5M2": Tracked(e5m2, corpus),
            "E5M2, gradients too": Tracked(size.config(**both), corpus),
        }
        named |= {f"E5M2, {lanes} lanes": Tracked(e5m2, corpus, lanes) for lanes in packs if lanes > 1}
        programs |= {name + COMPILED * is_compiled: program for name, program in named.items()}
    return programs


def best(costs: Mapping[str, Cost], name: str) -> float:
    """Seconds a step of a program in its better mode."""
    return min(costs[each].step for each in (name, name + COMPILED) if each in costs)


def ratios(costs: Mapping[Size, Mapping[str, Cost]], packs: Sequence[int]) -> dict[str, Any]:
    """The keys that `benchmarks/README.md` explains; trackers and lanes are measured at the first size."""
    first = next(iter(costs.values()))

    def over(name: str, other: str) -> dict[str, float]:
        return {str(size): best(cost, name) / best(cost, other) for size, cost in costs.items()}

    alone = best(first, "E5M2")
    per_lane = {str(lanes): best(first, f"E5M2, {lanes} lanes") / lanes / alone for lanes in packs if lanes > 1}
    return {
        "tracked_over_plain": over("E5M2", "plain"),
        "tracked_quantized_gradients_over_plain": over("E5M2, gradients too", "plain"),
        "trackers_over_untracked": alone / best(first, "E5M2 untracked"),
        "trackers_over_untracked_by_size": over("E5M2", "E5M2 untracked"),
        "per_lane": {"1": 1.0} | per_lane,
        "fp32_lane_over_plain": over("fp32 lane", "plain"),
        "bf16_permitted_over_plain": over("plain, bf16 permitted", "plain"),
        "threads": torch.get_num_threads(),
    }


def table(size: Size, costs: Mapping[str, Cost], rounds: int) -> Table:
    """Milliseconds for people."""
    config = size.config()
    shape = f"block {config.model.block_size}, batch {config.batch_size}"
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    where = f"{torch.get_num_threads()} threads, torch {torch.__version__}, load {load}"
    result = Table(title=f"{size}, {shape}: ms a step, medians of {rounds} rounds", caption=where)
    result.add_column("program")
    for column in ("early", "step", "at a check", "whole run", "over plain"):
        result.add_column(column, justify="right")
    for name, cost in costs.items():
        cells = [f"{1000 * seconds:.2f}" for seconds in (cost.early, cost.ordinary, cost.check, cost.step)]
        result.add_row(name, *cells, f"{cost.step / best(costs, 'plain'):.3f}")
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument(
        "--steps", type=positive, default=40, metavar="N", help="timed rounds at each size (default 40)"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of PyTorch (default: its own choice)")
    parser.add_argument(
        "--sizes",
        type=lambda text: [Size.parse(part) for part in text.split(",")],
        default="4x128,6x384",
        metavar="LIST",
        help="LAYERSxWIDTH (default 4x128,6x384)",
    )
    parser.add_argument(
        "--lanes",
        type=lambda text: [positive(part) for part in text.split(",")],
        default="4,16",
        metavar="LIST",
        help="lanes side by side, at the first size (default 4,16)",
    )
    parser.add_argument("--eager", action="store_true", help="compile nothing (compiling takes minutes)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    sizes, packs = options.sizes, options.lanes
    corpus, console = load_corpus("stdlib"), Console()
    modes = [False] if options.eager or engine().name == "eager" else [False, True]
    costs: dict[Size, dict[str, Cost]] = {}
    for size in sizes:
        programs = programs_of(size, corpus, packs if size == sizes[0] else (), modes)
        costs[size] = measure(programs, options.steps, size.config())
        console.print(table(size, costs[size], options.steps))
    if options.json:
        print(json.dumps(ratios(costs, packs)))


if __name__ == "__main__":
    main()
