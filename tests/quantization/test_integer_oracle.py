"""The integer rounding against other opinions, the eager kernels against it, and that `exhaustive` misses nothing."""

import io
import math
from collections.abc import Callable, Iterator

import exhaustive
import numpy as np
import pytest
import torch
from exhaustive import Answer, Implementation
from grid_oracle import edge_values, gfloat_round, hard_values, near_values
from integer_oracle import NAN_PATTERN, NAN_RUNG, largest_code, largest_pattern, round_by_integers
from rich.console import Console
from torch import Tensor

from altgrad.quantization import fused
from altgrad.quantization.formats import BF16, E0M7, E1M6, E3M4, E4M3, E5M2, E6M1, E7M0, FP8_FORMATS, FP16, FP8Format

by_name = pytest.mark.parametrize("format", FP8_FORMATS, ids=lambda format: format.name)
by_every_name = pytest.mark.parametrize("format", exhaustive.FORMATS.values(), ids=lambda format: format.name)


def as_patterns(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).view(torch.int32)


def upper_halves() -> Tensor:
    """Every sign, exponent and upper seven bits of the mantissa, with lower halves around ties and at their ends."""
    lower = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    return ((torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32) << 16).unsqueeze(1) | lower).flatten()


@pytest.mark.parametrize(
    ("format", "pattern", "expected", "rung"),
    [
        (E4M3, 0x3F800000, 0x3F800000, 56),  # 1
        (E4M3, 0x3F880000, 0x3F800000, 56),  # 1.0625, a tie, to the even 1
        (E4M3, 0x3F880001, 0x3F900000, 57),
        (E4M3, 0x3F980000, 0x3FA00000, 58),  # 1.1875, a tie, to the even 1.25
        (E4M3, 0x3FF80000, 0x40000000, 64),  # 1.9375 carries into the next binade
        (E4M3, -0x40800000, -0x40800000, -56),  # -1
        (E4M3, 0x3A800000, 0, 0),  # 2**-10, half the smallest
        (E4M3, 0x3A800001, 0x3B000000, 1),
        (E4M3, -0x457FFFFF, -0x45000000, -1),
        (E4M3, 0x3C780000, 0x3C800000, 8),  # 7.75 of the smallest carries into the smallest normal value
        (E4M3, 0x43E80000, 0x43E00000, 126),  # 464 saturates at 448
        (E4M3, 0x7F800000, 0x43E00000, 126),
        (E4M3, -0x00800000, -0x3C200000, -126),
        (E4M3, 0x7F800001, NAN_PATTERN, NAN_RUNG),
        (E4M3, -1, NAN_PATTERN, NAN_RUNG),
        (E5M2, 0x7F800000, 0x47600000, 123),  # 57344, not infinity
        (E0M7, 0x3F800000, 0x3F7E0000, 127),  # 127/128
        (E0M7, 0x3C400000, 0x3C800000, 2),  # 1.5 of 1/128, a tie, to 2 of them
        (E1M6, 0x40000000, 0x40000000, 64),
        (E7M0, 0x3FC00000, 0x40000000, 64),  # 1.5, a tie, to the larger magnitude
        (E7M0, 0x40400000, 0x40800000, 65),  # 3 as well, though the code of 2 is even
        (E7M0, 0x20000000, 0, 0),  # 2**-63, half the smallest, to zero
        (E7M0, 0x20000001, 0x20800000, 1),
        (FP16, 0x33000000, 0, 0),  # 2**-25
        (FP16, 0x477FF000, 0x477FE000, 0x7BFF),  # 65520 saturates at 65504
        (BF16, 0x00008000, 0, 0),
        (BF16, 0x00018000, 0x00020000, 2),  # bf16's subnormals are float32's
        (BF16, 0x7F7FFFFF, 0x7F7F0000, 0x7F7F),
        (BF16, -0x80000000, 0, 0),  # -0
    ],
)
def test_integers_by_hand(format: FP8Format, pattern: int, expected: int, rung: int) -> None:
    values, rungs = round_by_integers(torch.tensor([pattern], dtype=torch.int32), format)
    assert (values.item(), rungs.item()) == (expected, rung)


@by_every_name
def test_integers_agree_with_the_exact_scalar_code(format: FP8Format) -> None:
    values = np.concatenate([edge_values(E6M1), near_values(E5M2, 500), near_values(E7M0, 500)])
    codes = [format.to_bits(float(value)) for value in values]
    magnitudes = [code & ((1 << (format.bits - 1)) - 1) for code in codes]
    rounded = round_by_integers(as_patterns(values), format)
    expected = as_patterns(np.array([format.to_real(code) for code in codes]) + 0.0)
    assert torch.equal(rounded.patterns, expected)
    rungs = [magnitude if code == magnitude else -magnitude for code, magnitude in zip(codes, magnitudes, strict=True)]
    assert rounded.rungs.tolist() == rungs


@by_name
def test_integers_agree_with_gfloat(format: FP8Format) -> None:
    values = hard_values(format)
    rounded = round_by_integers(as_patterns(values), format).patterns
    assert torch.equal(rounded, as_patterns(gfloat_round(format, values) + 0.0))


@by_every_name
def test_integers_know_the_largest_value(format: FP8Format) -> None:
    assert largest_code(format) == format.max_code
    assert largest_pattern(format) == as_patterns(np.array([format.max_representable_value])).item()


@by_every_name
def test_eager_kernels_and_casts_agree_with_the_integers(format: FP8Format) -> None:
    patterns = upper_halves()
    assert patterns.view(torch.float32).isnan().any()
    checked = {name: f for name, f in exhaustive.implementations(format).items() if "compiled" not in name}
    answers = {name: f(patterns.view(torch.float32)) for name, f in checked.items()}
    wrong = exhaustive.differing(round_by_integers(patterns, format), answers)
    assert wrong is None or not wrong.any()


def spoiled(spoil: Callable[[Answer, int], None], at: int) -> Implementation:
    """The eager kernel in E3M4, with one element of its answer changed."""
    eager = exhaustive.implementations(E3M4)["eager with rungs"]

    def implementation(x: Tensor) -> Answer:
        answer = eager(x)
        spoil(answer, at)
        return answer

    return implementation


def set_value(value: float) -> Callable[[Answer, int], None]:
    return lambda answer, at: answer.values.__setitem__(at, value)


def set_rung(rung: int) -> Callable[[Answer, int], None]:
    return lambda answer, at: answer.rungs.__setitem__(at, rung)


def flip_last_bit(answer: Answer, at: int) -> None:
    answer.values.view(torch.int32)[at] ^= 1


@pytest.mark.parametrize("at", [0, 12345, exhaustive.CHUNK - 1])
@pytest.mark.parametrize(
    ("start", "spoil", "differences"),
    [
        (0x3C000000, set_value(-0.0), 1),  # all of this chunk rounds to zero
        (0x3C000000, set_rung(-1), 1),
        (0x40000000, flip_last_bit, 1),
        (0xC0000000, flip_last_bit, 1),
        (0x40000000, set_value(math.nan), 1),
        (0x7FC00000, set_value(124.0), 1),  # all of this one is NaN
        (0x7FC00000, set_value(math.inf), 1),
        (0x7FC00000, set_rung(0), 1),
        (0xFFC00000, flip_last_bit, 0),
        (0x40000000, lambda answer, at: None, 0),
    ],
    ids=["-0", "rung", "bit", "negative", "NaN", "no NaN", "inf", "rung of NaN", "payload", "nothing"],
)
def test_one_difference_is_found_and_named(
    start: int, spoil: Callable[[Answer, int], None], differences: int, at: int
) -> None:
    found = exhaustive.check(E3M4, [start], {"spoiled": spoiled(spoil, at)})
    assert (found.patterns, found.differences) == (exhaustive.CHUNK, differences)
    assert (f"0x{start + at:08x}" in found.first) == bool(differences)


def test_chunks_cover_every_pattern_once() -> None:
    assert exhaustive.chunk_starts() == [i * exhaustive.CHUNK for i in range((1 << 32) // exhaustive.CHUNK)]


@pytest.mark.parametrize("count", [1, 3, 100, 257, 16383])
def test_a_sample_of_chunks_has_one_in_each_part(count: int) -> None:
    starts = exhaustive.chunk_starts(count)
    chunks = (1 << 32) // exhaustive.CHUNK
    assert all(start % exhaustive.CHUNK == 0 for start in starts)
    for i, start in enumerate(starts):
        assert i * chunks // count <= start // exhaustive.CHUNK < (i + 1) * chunks // count
    assert len(starts) == count


def test_a_sample_of_chunks_sees_every_part_of_a_binade() -> None:
    binade = 1 << 23
    seen = {start % binade for start in exhaustive.chunk_starts(257)}
    assert seen == set(range(0, binade, exhaustive.CHUNK))


@pytest.fixture
def same_threads() -> Iterator[None]:
    """PyTorch's number of threads is that of the process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("same_threads")
@pytest.mark.parametrize(
    ("spoil", "status"), [(lambda answer, at: None, 0), (set_value(7.0), 1)], ids=["agreement", "difference"]
)
def test_the_command_reports_and_exits(
    spoil: Callable[[Answer, int], None],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checked = {"spoiled": spoiled(spoil, 0)}
    monkeypatch.setattr(fused, "engine", lambda: fused.Engine("compiled"))
    monkeypatch.setattr(exhaustive, "implementations", lambda format: checked)
    assert exhaustive.main(["--formats", "E3M4", "--chunks", "40", "--threads", "2"]) == status
    output = capsys.readouterr().out.splitlines()
    assert any("s left" in line for line in output)
    assert sum("first difference" in line for line in output) == status
    assert output[-1].startswith("E3M4")
    assert f"  {40 * status} different  " in output[-1]


def test_the_command_does_not_pass_where_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fused, "engine", lambda: fused.Engine("eager", "no C++ compiler"))
    assert exhaustive.main(["--chunks", "1"]) == 2
    assert "no C++ compiler" in capsys.readouterr().out


def test_a_terminal_sees_a_bar() -> None:
    screen = io.StringIO()
    with exhaustive.progress(4, Console(file=screen, force_terminal=True)) as advance:
        for _ in range(4):
            advance("E3M4", 1)
    assert "100%" in screen.getvalue()
    assert "M patterns/s" in screen.getvalue()
