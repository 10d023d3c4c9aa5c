"""What rounding to a number format costs beside touching the memory, and beside other libraries, in one run.

Every contender does its job once a round, and is held against the eager reference before it is timed.
"""

import argparse
import functools
import importlib
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from altgrad.quantization import fused, kernels, ops
from altgrad.quantization.formats import E4M3, FORMAT_REGISTRY, FP8_FORMATS, FP8Format
from benchmarks.arguments import positive

#: What ours does to every format, in the tables and as a key of the JSON object.
JOBS = {
    "quantize": "quantize_over_copy",
    "fused": "fused_over_copy",
    "stochastic": "stochastic_over_copy",
    "decode": "decode_over_copy",
    "step": "step_over_copy",
}
#: Other ways to round to E4M3, likewise.
OTHERS = {
    "eager": "eager_over_ours",
    "masks": "masks_over_ours",
    "qtorch": "qtorch_over_ours",
    "ml_dtypes": "ml_dtypes_over_ours",
}
COPY, OURS, TORCH_CAST = "copy_", "E4M3 quantize", "torch cast"
#: Elements by default, by the kind of device.
ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 26}
#: Rounds that are run and not timed.
WARM_UP = 2
#: Calls in a row on a CUDA device, so that one is launched while another runs, as in a training step.
CUDA_CALLS = 10


def _alone(result: Tensor) -> tuple[Tensor, ...]:
    return (result,)


class Contender(NamedTuple):
    """A job, and what it should give."""

    run: Callable[[], Any]
    #: The same by the eager reference.
    reference: Callable[[], tuple[Tensor, ...]]
    #: Turns what `run` returns into tensors like the reference's; not timed.
    results: Callable[[Any], tuple[Tensor, ...]] = _alone

    def differences(self) -> int:
        """Do the job once and count the elements that are not the reference's; both zeros are equal."""
        pairs = zip(self.results(self.run()), self.reference(), strict=True)
        return sum(int((got != wanted).sum()) for got, wanted in pairs)


class Buffers:
    """A Gaussian tensor whose largest magnitude is E4M3's, the same a little moved, and room for results."""

    def __init__(self, elements: int, device: torch.device) -> None:
        generator, top = torch.Generator().manual_seed(0), E4M3.max_representable_value
        x = torch.randn(elements, generator=generator)
        x.mul_(top / x.abs().max()).clamp_(-top, top)
        self.x = x.to(device)
        self.moved = torch.randn(elements, generator=generator).mul_(0.01).add_(1).mul_(x).to(device)
        self.rungs = torch.randint(-3, 4, (elements,), generator=generator, dtype=torch.int8).to(device)
        self.out = torch.empty_like(self.x)
        self.states = torch.empty_like(self.rungs)


def ours(format: FP8Format, buffers: Buffers) -> dict[str, Contender]:
    """What `altgrad.quantization.fused` does to a format under amax scaling (for E4M3: scale 1), by job."""
    x, moved, rungs, out, states = buffers.x, buffers.moved, buffers.rungs, buffers.out, buffers.states
    scale = E4M3.max_representable_value / format.max_representable_value
    before = ops.grid_state(moved, format, scale)
    key = torch.tensor(kernels.stream_keys([0], step=1, stream=2)[0], dtype=torch.int32, device=x.device)
    limit = format.max_code

    def counted() -> tuple[Tensor, ...]:
        now = ops.grid_state(x, format, scale)
        return (now != before).sum(), now, ops.quantize(x, format, scale)

    def drawn() -> tuple[Tensor, ...]:
        bits = ops.random_bits(x.shape, seed=0, step=1, stream=2, device=x.device)
        return (ops.quantize_stochastic(x, format, scale, bits),)

    return {
        "quantize": Contender(lambda: fused.quantize(x, format, scale, out), lambda: (ops.quantize(x, format, scale),)),
        "fused": Contender(
            lambda: fused.quantize_and_count(x, format, scale, before, states, out),
            counted,
            lambda count: (count, states, out),
        ),
        "stochastic": Contender(lambda: fused.quantize_stochastic(x, format, scale, key, out), drawn),
        "decode": Contender(
            lambda: fused.decode_states(before, format, scale, out), lambda: (ops.quantize(moved, format, scale),)
        ),
        "step": Contender(
            lambda: fused.step_states(before, rungs, format, states),
            lambda: ((before.to(torch.int16) + rungs).clamp_(-limit, limit),),
        ),
    }


def others(buffers: Buffers) -> tuple[dict[str, Contender], dict[str, str]]:
    """Other ways to round the same values to E4M3, and those that are not to be had here, with the reason."""
    x, codes = buffers.x, torch.empty_like(buffers.x, dtype=torch.float8_e4m3fn)
    reference = functools.cache(lambda: (ops.quantize(x, E4M3, 1.0),))
    found = {
        "eager": Contender(lambda: ops.quantize(x, E4M3, 1.0), reference),
        TORCH_CAST: Contender(lambda: codes.copy_(x), reference, lambda cast: (cast.to(torch.float32),)),
        "masks": Contender(lambda: masks(x, E4M3), reference),
    }
    absent: dict[str, str] = {}
    qtorch, ml_dtypes = library("qtorch.quant"), library("ml_dtypes")
    if isinstance(qtorch, str):
        absent["qtorch"] = qtorch
    else:
        found["qtorch"] = Contender(lambda: qtorch.float_quantize(x, 4, 3, "nearest"), reference)
    if isinstance(ml_dtypes, str):
        absent["ml_dtypes"] = ml_dtypes
    elif x.device.type != "cpu":
        absent["ml_dtypes"] = "on CPUs only"
    else:
        values, cast = x.numpy(), x.numpy().astype(ml_dtypes.float8_e4m3fn)
        # Into a buffer that is there, and without the clamp that larger values would need.
        write = functools.partial(cast.__setitem__, ..., values)
        found["ml_dtypes"] = Contender(write, reference, lambda _: (torch.from_numpy(cast.astype("float32")),))
    return found, absent


def library(name: str) -> ModuleType | str:
    """A module, or why there is none: qtorch builds its C++ when it is first imported."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return "not installed"
    except (ImportError, RuntimeError, OSError) as error:
        return f"cannot be imported: {str(error).strip().splitlines()[0]}"


def masks(x: Tensor, format: FP8Format) -> Tensor:
    """Rounding as it is often written in Python: an exponent by logarithm, scaling, a clamp and masks.

    In the style of microxcaling's elementwise quantizer (https://github.com/microsoft/microxcaling), not its code.
    """
    exponent = torch.floor(torch.log2(x.abs() + (x == 0).to(x.dtype))).clamp_min(1 - format.bias)
    spacing = 2.0 ** (exponent - format.mantissa_bits)
    scaled = x / spacing
    magnitude = scaled.abs()
    tied_to_odd = (magnitude - 0.5) % 2 == 0
    q = torch.sign(scaled) * (torch.floor(magnitude + 0.5) - tied_to_odd.to(x.dtype)) * spacing
    largest = format.max_representable_value
    return torch.where(x.isinf(), x.sign() * largest, q.clamp(-largest, largest))


class Measured(NamedTuple):
    """What one run found."""

    #: Median seconds, by name: `COPY`, a format and a job of ours, another way.
    times: dict[str, float]
    #: Elements that another way gets otherwise than ours.
    differences: dict[str, int]
    #: Other ways that did not take part, and why.
    absent: dict[str, str]
    formats: list[str]
    elements: int
    rounds: int
    device: torch.device


def run(formats: Sequence[FP8Format], elements: int, rounds: int, device: torch.device) -> Measured:
    """Check everyone, then time everyone.

    Raises:
        SystemExit: ours does not give what the reference gives, so that its time would mean nothing.
    """
    buffers = Buffers(elements, device)
    by_format = {format.name: ours(format, buffers) for format in formats}
    programs = {f"{name} {job}": contender for name, jobs in by_format.items() for job, contender in jobs.items()}
    require_agreement(programs)
    by_others, absent = others(buffers)
    differences = {name: contender.differences() for name, contender in by_others.items()}
    runs = {name: contender.run for name, contender in (programs | by_others).items()}
    clock = on_cuda if device.type == "cuda" else on_cpu
    times = measure({COPY: lambda: buffers.out.copy_(buffers.x)} | runs, rounds, clock)
    return Measured(times, differences, absent, list(by_format), elements, rounds, device)


def require_agreement(programs: Mapping[str, Contender]) -> None:
    """Hold every program against its reference.

    Raises:
        SystemExit: one differs.
    """
    for name, contender in programs.items():
        if count := contender.differences():
            raise SystemExit(f"{name}: {count} elements differ from altgrad.quantization.ops, so nothing was timed")


def measure(
    runs: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[Callable[[], Any]], float]
) -> dict[str, float]:
    """Median seconds of each; every one takes its turn in every round.

    Turns are in another order each time: what the one before has left in the caches is worth a fifth of a copy.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    turns, shuffle = list(runs.items()), random.Random(0).shuffle
    for _ in range(WARM_UP + rounds):
        shuffle(turns)
        for name, action in turns:
            taken[name].append(clock(action))
    return {name: statistics.median(seconds[WARM_UP:]) for name, seconds in taken.items()}


def on_cpu(action: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def on_cuda(action: Callable[[], Any]) -> float:
    """Seconds of a call, as a mean of `CUDA_CALLS` in a row, by the device's clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(CUDA_CALLS):
        action()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / CUDA_CALLS


def ratios(measured: Measured) -> dict[str, Any]:
    """The keys that `benchmarks/README.md` explains."""
    times, kind = measured.times, measured.device.type
    copy = times[COPY]
    result: dict[str, Any] = {"threads": torch.get_num_threads()}
    for job, key in JOBS.items():
        result[key] = {name: times[f"{name} {job}"] / copy for name in measured.formats}
    if kind == "cuda":
        result["copy_bandwidth_share"] = {name: copy / times[f"{name} quantize"] for name in measured.formats}
    return result | {
        **{key: times[name] / times[OURS] if name in times else None for name, key in OTHERS.items()},
        "torch_cast_over_copy": times[TORCH_CAST] / copy,
        "differences": measured.differences,
        "engine": fused.engine(kind).name,
        "elements": measured.elements,
        "copy_ms": 1000 * copy,
        "device": kind,
    }


def formats_table(measured: Measured) -> Table:
    """Ours by format, as multiples of a copy, for people."""
    times, kind = measured.times, measured.device.type
    where = torch.cuda.get_device_name(measured.device) if kind == "cuda" else f"{torch.get_num_threads()} threads"
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    engine = fused.engine(kind)
    notes = [f"copy_ {1000 * times[COPY]:.3g} ms", where, f"torch {torch.__version__}", f"load {load}"]
    result = Table(
        title=f"{measured.elements:,} float32, {engine.name}: times of copy_, medians of {measured.rounds} rounds",
        caption=", ".join([*notes, engine.reason] if engine.reason else notes),
    )
    share = ("copy_'s bandwidth",) if kind == "cuda" else ()
    result.add_column("format")
    for column in (*JOBS, *share):
        result.add_column(column, justify="right")
    for name in measured.formats:
        over_copy = [times[f"{name} {job}"] / times[COPY] for job in JOBS]
        result.add_row(name, *(f"{ratio:.2f}" for ratio in over_copy), *(f"{1 / over_copy[0]:.0%}" for _ in share))
    return result


def others_table(measured: Measured) -> Table:
    """Everyone who rounds to E4M3, for people."""
    times = measured.times
    notes = ["differing: elements that are not ours", *(f"{name}: {why}" for name, why in measured.absent.items())]
    result = Table(title="the same values to E4M3, scale 1", caption="; ".join(notes))
    result.add_column("program")
    for column in ("million/s", "over copy_", "over ours", "differing"):
        result.add_column(column, justify="right")
    for name in (COPY, OURS, *measured.differences):
        seconds = times[name]
        result.add_row(
            name,
            f"{measured.elements / seconds / 1e6:,.0f}",
            f"{seconds / times[COPY]:.2f}",
            f"{seconds / times[OURS]:.2f}",
            f"{measured.differences[name]:,}" if name in measured.differences else "",
        )
    return result


def formats_of(text: str) -> list[FP8Format]:
    """``E4M3,E5M2`` and the like, in the order of the registry; E4M3 joins them, as the one that others have too.

    Raises:
        argparse.ArgumentTypeError: something else.
    """
    names = text.split(",")
    known = [format.name for format in FP8_FORMATS]
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"formats are {', '.join(known)}, got {unknown[0]!r}")
    return [FORMAT_REGISTRY[name] for name in known if name in (*names, E4M3.name)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="threads of PyTorch (default 1)")
    parser.add_argument(
        "--elements", type=positive, metavar="N", help="float32 values (default 2**24, on a CUDA device 2**26)"
    )
    parser.add_argument(
        "--formats",
        type=formats_of,
        default=",".join(format.name for format in FP8_FORMATS),
        metavar="LIST",
        help="such as E4M3,E5M2 (default: all eight)",
    )
    parser.add_argument("--rounds", type=positive, default=21, metavar="N", help="timed rounds (default 21)")
    parser.add_argument("--device", choices=list(ELEMENTS), default="cpu", help="where (default cpu)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    torch.set_num_threads(options.threads)
    elements = options.elements or ELEMENTS[options.device]
    measured = run(options.formats, elements, options.rounds, torch.device(options.device))
    console = Console()
    console.print(formats_table(measured))
    console.print(others_table(measured))
    if options.json:
        print(json.dumps(ratios(measured)))


if __name__ == "__main__":
    main()
