"""Every float32 pattern through every format: eager and compiled kernels against integers and PyTorch's casts.

``make exhaustive`` runs it; pytest does not. Values are compared bit for bit, so that a zero with a sign is a
difference; any NaN is equal to any other.
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from integer_oracle import Rounded, round_by_integers
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from altgrad.quantization import fused, kernels
from altgrad.quantization.formats import BF16, E4M3, E5M2, FP8_FORMATS, FP16, FP8Format
from altgrad.quantization.ops import NAN_STATE

FORMATS = {format.name: format for format in (*FP8_FORMATS, BF16, FP16)}
CASTS = {E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2, BF16: torch.bfloat16, FP16: torch.float16}
PATTERNS = 1 << 32
#: Patterns at a time: what they become stays in the cache. The same work takes a third longer at 2**22, and six times
#: as long at 2**24.
CHUNK = 1 << 18
#: Chunks that one thread takes at a time. Threads share nothing, so on a busy machine none waits for another.
STRIP = 64
_GOLDEN = (math.sqrt(5) - 1) / 2
#: Where the output is no terminal, a line every twentieth of the way.
LINES = 20


class Answer(NamedTuple):
    """What one implementation makes of a chunk."""

    #: float32.
    values: Tensor
    #: int8 or int32 rungs, -128 for NaN; None where the implementation gives none.
    rungs: Tensor | None = None


Implementation = Callable[[Tensor], Answer]


@dataclass(frozen=True)
class Findings:
    """What came of checking chunks."""

    patterns: int = 0
    differences: int = 0
    #: The first difference, described; empty where there is none.
    first: str = ""

    def __add__(self, other: "Findings") -> "Findings":
        """The two together, in order."""
        differences = self.differences + other.differences
        return Findings(self.patterns + other.patterns, differences, self.first or other.first)


def implementations(format: FP8Format) -> dict[str, Implementation]:
    """What is to agree with the integers, by name: functions of a chunk of float32 values, each with its buffers."""
    checked = {**_eager(format), **_compiled(format)}
    if format in CASTS:
        largest, dtype = format.max_representable_value, CASTS[format]
        # Adding zero takes the sign from zeros, which the kernels give none.
        checked[str(dtype)] = lambda x: Answer(x.clamp(-largest, largest).to(dtype).to(torch.float32) + 0.0)
    return checked


def _eager(format: FP8Format) -> dict[str, Implementation]:
    n = kernels.format_numbers([format]).view()

    def with_rungs(x: Tensor) -> Answer:
        values, rungs = kernels.round_to_rungs(x, n)
        return Answer(values, torch.where(x != x, NAN_STATE, rungs))  # the kernel leaves the rung of NaN undefined

    return {"eager": lambda x: Answer(kernels.round_nearest(x, n)), "eager with rungs": with_rungs}


def _compiled(format: FP8Format) -> dict[str, Implementation]:
    values, values_with_states = torch.empty(CHUNK), torch.empty(CHUNK)
    before, after = torch.zeros(CHUNK, dtype=torch.int8), torch.empty(CHUNK, dtype=torch.int8)

    def with_states(x: Tensor) -> Answer:
        fused.quantize_and_count(x, format, 1.0, before, after, values_with_states)
        return Answer(values_with_states, after)

    alone: dict[str, Implementation] = {"compiled": lambda x: Answer(fused.quantize(x, format, 1.0, values))}
    return {**alone, "compiled with states": with_states} if format.bits == 8 else alone


def differing(want: Rounded, answers: dict[str, Answer]) -> Tensor | None:
    """Where some answer is not what the integers say, as booleans; None where all are (the fast way out)."""
    wrong = [_wrong(want, answer) for answer in answers.values() if not _equal(want, answer)]
    return reduce(torch.logical_or, wrong) if wrong else None


def _equal(want: Rounded, answer: Answer) -> bool:
    """Equal bits; false as well where NaNs have other payloads."""
    rungs = want.rungs if answer.rungs is None else answer.rungs.to(torch.int32)
    return torch.equal(answer.values.view(torch.int32), want.patterns) and torch.equal(rungs, want.rungs)


def _wrong(want: Rounded, answer: Answer) -> Tensor:
    both_nan = answer.values.isnan() & want.patterns.view(torch.float32).isnan()
    wrong = (answer.values.view(torch.int32) != want.patterns) & ~both_nan
    return wrong if answer.rungs is None else wrong | (answer.rungs != want.rungs)


def described(index: int, patterns: Tensor, want: Rounded, answers: dict[str, Answer]) -> str:
    """One pattern, and what each said of it."""

    def line(name: str, value: Tensor, rung: Tensor | None) -> str:
        bits = int(value.view(torch.int32)[index]) & 0xFFFFFFFF
        tail = "" if rung is None else f"  rung {rung[index].item()}"
        return f"  {name:<21} 0x{bits:08x}  {value[index].item()!r}{tail}"

    lines = [line("float32", patterns.view(torch.float32), None)]
    lines += [line("integers", want.patterns.view(torch.float32), want.rungs)]
    return "\n".join([*lines, *(line(name, *answer) for name, answer in answers.items())])


def chunk_starts(sample: int | None = None) -> list[int]:
    """The first pattern of every chunk, or of a sample of chunks: one in each of as many equal parts of them all.

    Where in its part varies (by the golden ratio): chunks at equal distances would all lie alike in their binades.
    """
    count = PATTERNS // CHUNK
    parts = min(sample or count, count)
    ends = [i * count // parts for i in range(parts + 1)]
    return [
        CHUNK * (low + int(i * _GOLDEN % 1 * (high - low))) for i, (low, high) in enumerate(itertools.pairwise(ends))
    ]


def check(format: FP8Format, starts: Sequence[int], checked: dict[str, Implementation]) -> Findings:
    """Hold implementations against the integers, on the chunks that start at some patterns."""
    zero_to_chunk = torch.arange(CHUNK, dtype=torch.int32)
    patterns = torch.empty_like(zero_to_chunk)
    differences, first = 0, ""
    for start in starts:
        torch.add(zero_to_chunk, start - (PATTERNS if start >= PATTERNS // 2 else 0), out=patterns)
        want = round_by_integers(patterns, format)
        answers = {name: implementation(patterns.view(torch.float32)) for name, implementation in checked.items()}
        wrong = differing(want, answers)
        if wrong is None or not wrong.any():  # there is no difference, or only other NaNs
            continue
        if not differences:
            first = described(int(wrong.to(torch.uint8).argmax()), patterns, want, answers)
        differences += int(wrong.sum())
    return Findings(CHUNK * len(starts), differences, first)


@contextmanager
def progress(chunks: int, console: Console) -> Iterator[Callable[[str, int], None]]:
    """Shows how far it is; what it yields is told the name of a format and how many more chunks of it are checked."""
    began, done = time.perf_counter(), 0

    def rate() -> str:
        return f"{done * CHUNK / (time.perf_counter() - began) / 1e6:.0f} M patterns/s"

    def line(name: str, more: int) -> None:
        nonlocal done
        done += more
        if done * LINES // chunks > (done - more) * LINES // chunks:
            left = (time.perf_counter() - began) * (chunks - done) / done
            _say(console, f"{done / chunks:4.0%}  {name:<4}  {rate()}  {math.ceil(left)} s left")

    if not console.is_terminal:
        yield line
        return
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=chunks)

        def step(name: str, more: int) -> None:
            nonlocal done
            done += more
            bar.update(task, description=f"{name:<4}  {rate()}", completed=done)

        yield step


def run(formats: Sequence[FP8Format], starts: Sequence[int], threads: int, console: Console) -> int:
    """Check chunks of every format, telling on the console how far it is and what came of it.

    Returns:
        The number of differences.
    """
    strips = [(format, starts[i : i + STRIP]) for format in formats for i in range(0, len(starts), STRIP)]
    found, ended = dict.fromkeys(formats, Findings()), dict.fromkeys(formats, 0.0)
    pool = ThreadPoolExecutor(threads, initializer=_one_thread_each)
    try:
        pool.submit(lambda: [check(format, starts[:1], implementations(format)) for format in formats]).result()
        began = time.perf_counter()
        with progress(len(formats) * len(starts), console) as advance:
            findings = pool.map(lambda strip: check(strip[0], strip[1], implementations(strip[0])), strips)
            for (format, strip), new in zip(strips, findings, strict=True):
                if new.first and not found[format].first:
                    _say(console, f"{format.name}: the first difference\n{new.first}")
                found[format] += new
                ended[format] = time.perf_counter()
                advance(format.name, len(strip))
    finally:
        pool.shutdown(cancel_futures=True)
    for format, (start, end) in zip(formats, itertools.pairwise([began, *ended.values()]), strict=True):
        _say(console, _summary(format, found[format], end - start))
    return sum(each.differences for each in found.values())


def _one_thread_each() -> None:
    torch.set_num_threads(1)
    # A graph compiled too often would be run eagerly without a word, and be compared with itself.
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def _summary(format: FP8Format, findings: Findings, seconds: float) -> str:
    against = ", ".join(implementations(format))
    counts = f"{findings.patterns:13,} patterns  {findings.differences:,} different"
    return f"{format.name}  {counts}  {seconds:6.1f} s  ({against})"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    def positive(text: str) -> int:
        if not text.isdecimal() or not int(text):
            raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
        return int(text)

    parser = argparse.ArgumentParser(description="Check the rounding of every float32 pattern to every format.")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), metavar="NAME")
    parser.add_argument(
        "--chunks", type=positive, metavar="N", help=f"only N of {PATTERNS // CHUNK} chunks, evenly spread"
    )
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), metavar="N")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 where all agree, 1 where something differs, 2 where there is no compiler to check."""
    arguments, console = _arguments(argv), Console()
    formats, starts = list(dict.fromkeys(arguments.formats)), chunk_starts(arguments.chunks)
    engine = fused.engine()
    if engine.name != "compiled":
        _say(console, f"nothing is compiled here, so there is nothing to check: {engine.reason}")
        return 2
    _say(
        console,
        f"{len(formats)} formats x {len(starts) * CHUNK:,} patterns, {arguments.threads} threads, "
        f"torch {torch.__version__}; compiling takes up to a minute",
    )
    return int(run([FORMATS[name] for name in formats], starts, arguments.threads, console) > 0)


if __name__ == "__main__":
    sys.exit(main())
