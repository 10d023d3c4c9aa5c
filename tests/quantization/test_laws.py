"""The laws of rounding, codes, steps and gradients, for whatever values hypothesis thinks of."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from cases import by_every_name, by_name, by_rounded_name, numbers
from grid_oracle import grid, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from altgrad.quantization import fused, kernels, ops
from altgrad.quantization.formats import E0M7, E1M6, E4M3, FP8_FORMATS, FP8Format
from altgrad.quantization.ops import decode, dequantize, encode, quantize, quantize_stochastic, rung, step_rungs

pytestmark = pytest.mark.usefixtures("honest_compilation")

floats = st.floats(width=32, allow_nan=False)
#: Values that a power of two can scale without loss.
moderate = st.floats(min_value=-(2.0**70), max_value=2.0**70, width=32).filter(lambda x: x == 0 or abs(x) > 2.0**-80)
vectors = st.lists(floats, min_size=1, max_size=30).map(lambda values: torch.tensor(values, dtype=torch.float32))
scales = st.floats(min_value=2.0**-30, max_value=2.0**30, width=32)
random_words = st.integers(-(2**31), 2**31 - 1)
laws = settings(max_examples=50, deadline=None)


class TestRounding:
    @by_every_name
    @laws
    @given(x=vectors)
    def test_idempotent(self, format: FP8Format, x: Tensor) -> None:
        once = quantize(x, format, 1.0)
        assert same_bits(quantize(once, format, 1.0), once)

    @by_every_name
    @laws
    @given(x=vectors)
    def test_monotone(self, format: FP8Format, x: Tensor) -> None:
        q = quantize(x.sort().values, format, 1.0)
        assert (q[1:] >= q[:-1]).all()

    @by_every_name
    @laws
    @given(x=vectors)
    def test_odd(self, format: FP8Format, x: Tensor) -> None:
        assert torch.equal(quantize(-x, format, 1.0), -quantize(x, format, 1.0))

    @by_rounded_name
    @laws
    @given(x=vectors)
    def test_errs_by_half_a_rung_at_most(self, format: FP8Format, x: Tensor) -> None:
        x = x[x.abs() <= format.max_representable_value]
        error = (quantize(x, format, 1.0).double() - x.double()).abs()
        assert (2 * error <= kernels.rung_spacing(x, numbers(format)).double()).all()

    @by_name
    @laws
    @given(x=vectors)
    def test_error_is_the_distance_to_the_nearest_grid_value(self, format: FP8Format, x: Tensor) -> None:
        x = x[x.abs() <= format.max_representable_value].double()
        distance = (x[:, None] - torch.from_numpy(grid(format)).double()).abs().amin(-1)
        assert torch.equal((quantize(x.float(), format, 1.0).double() - x).abs(), distance)

    @by_rounded_name
    @laws
    @given(x=vectors, power=st.integers(-20, 20))
    def test_saturates(self, format: FP8Format, x: Tensor, power: int) -> None:
        x = x.where(x.abs() >= format.max_representable_value, math.inf)
        largest = torch.tensor(format.max_representable_value)
        assert same_bits(quantize(x, format, 1.0), largest.copysign(x))
        assert same_bits(quantize(math.inf * x.sign(), format, 2.0**power), largest.copysign(x) * 2.0**power)

    @by_every_name
    @laws
    @given(values=st.lists(moderate, min_size=1, max_size=30), power=st.integers(-20, 20))
    def test_powers_of_two_pass_through(self, format: FP8Format, values: list[float], power: int) -> None:
        x, factor = torch.tensor(values), 2.0**power
        assert same_bits(quantize(x * factor, format, factor), quantize(x, format, 1.0) * factor)

    @by_every_name
    @laws
    @given(x=vectors, scale=scales)
    def test_is_a_composition(self, format: FP8Format, x: Tensor, scale: float) -> None:
        composed = dequantize(quantize(x / torch.tensor(scale), format, 1.0), scale)
        assert same_bits(composed, quantize(x, format, scale))

    @laws
    @given(x=vectors, power=st.integers(-30, 30))
    def test_e1m6_is_e0m7_times_four(self, x: Tensor, power: int) -> None:
        scale = 2.0**power
        assert same_bits(quantize(x, E1M6, scale), quantize(x, E0M7, 4 * scale))
        assert torch.equal(encode(x, E1M6, scale), encode(x, E0M7, 4 * scale))


class TestCodes:
    @by_name
    @laws
    @given(x=vectors, scale=scales)
    def test_decoded_they_are_the_quantized_values(self, format: FP8Format, x: Tensor, scale: float) -> None:
        assert torch.equal(decode(encode(x, format, scale), format, scale), quantize(x, format, scale))

    @by_name
    @laws
    @given(x=vectors)
    def test_their_rungs_rise_with_values(self, format: FP8Format, x: Tensor) -> None:
        x = x.sort().values
        rungs, q = rung(encode(x, format)), quantize(x, format, 1.0)
        assert torch.equal(rungs[1:] > rungs[:-1], q[1:] > q[:-1])
        assert torch.equal(rungs[1:] == rungs[:-1], q[1:] == q[:-1])

    @by_name
    @laws
    @given(x=vectors, scale=scales)
    def test_their_rungs_are_the_states(self, format: FP8Format, x: Tensor, scale: float) -> None:
        assert torch.equal(rung(encode(x, format, scale)).to(torch.int8), ops.grid_state(x, format, scale))


class TestStochasticRounding:
    @by_rounded_name
    @laws
    @given(x=vectors, word=random_words)
    def test_stays_on_the_grid_beside_the_value(self, format: FP8Format, x: Tensor, word: int) -> None:
        q = quantize_stochastic(x, format, 1.0, torch.full(x.shape, word, dtype=torch.int32))
        limited = x.clamp(-format.max_representable_value, format.max_representable_value)
        assert torch.equal(quantize(q, format, 1.0), q)
        assert ((q.double() - limited.double()).abs() < kernels.rung_spacing(x, numbers(format))).all()

    @by_every_name
    @laws
    @given(x=vectors, word=random_words)
    def test_leaves_grid_values_alone(self, format: FP8Format, x: Tensor, word: int) -> None:
        x = quantize(x, format, 1.0)
        assert same_bits(quantize_stochastic(x, format, 1.0, torch.full(x.shape, word, dtype=torch.int32)), x)

    @laws
    @given(x=vectors, power=st.integers(-30, 30), seed=st.integers(0, 2**63))
    def test_draws_alike_in_e0m7_and_e1m6(self, x: Tensor, power: int, seed: int) -> None:
        bits, scale = ops.random_bits(x.shape, seed=seed, step=0), 2.0**power
        assert same_bits(quantize_stochastic(x, E1M6, scale, bits), quantize_stochastic(x, E0M7, 4 * scale, bits))


class TestSteps:
    """Moving codes by whole rungs is integer arithmetic on rungs that stops at the ends."""

    moves = st.lists(
        st.tuples(st.integers(0, 255), st.one_of(st.integers(-300, 300), st.integers(-(2**63), 2**63 - 1))),
        min_size=1,
        max_size=30,
    )

    @staticmethod
    def tensors(moves: list[tuple[int, int]], format: FP8Format) -> tuple[Tensor, Tensor]:
        """Codes of finite values, and steps."""
        inside = [(code, step) for code, step in moves if code & 0x7F <= format.max_code]
        return torch.tensor([c for c, _ in inside], dtype=torch.uint8), torch.tensor([s for _, s in inside]).long()

    @by_name
    @laws
    @given(moves=moves)
    def test_are_clamped_sums(self, format: FP8Format, moves: list[tuple[int, int]]) -> None:
        codes, steps = self.tensors(moves, format)
        ends = (-format.max_code, format.max_code)
        sums = [here + step for here, step in zip(rung(codes).tolist(), steps.tolist(), strict=True)]
        assert rung(step_rungs(codes, steps, format)).tolist() == [min(max(s, ends[0]), ends[1]) for s in sums]

    @by_name
    @laws
    @given(moves=moves)
    def test_lead_back_inside_the_grid(self, format: FP8Format, moves: list[tuple[int, int]]) -> None:
        codes, steps = self.tensors(moves, format)
        steps = steps.clamp(-300, 300)
        there = step_rungs(codes, steps, format)
        inside = (rung(codes) + steps).abs() <= format.max_code
        assert torch.equal(rung(step_rungs(there, -steps, format))[inside], rung(codes)[inside])

    @by_name
    def test_of_nothing_leave_every_code_alone(self, format: FP8Format) -> None:
        codes = torch.arange(256, dtype=torch.uint8)
        assert torch.equal(step_rungs(codes, torch.zeros(256, dtype=torch.int32), format), codes)

    @by_name
    @laws
    @given(moves=moves)
    def test_of_states_are_those_of_codes(self, format: FP8Format, moves: list[tuple[int, int]]) -> None:
        codes, steps = self.tensors(moves, format)
        states = fused.step_states(rung(codes).to(torch.int8), steps, format, out=codes.to(torch.int8))
        assert torch.equal(states, rung(step_rungs(codes, steps, format)).to(torch.int8))


class TestGradients:
    @by_every_name
    @laws
    @given(x=vectors, scale=scales, stochastic=st.booleans())
    def test_of_rounding_is_the_identitys(self, format: FP8Format, x: Tensor, scale: float, stochastic: bool) -> None:
        x.requires_grad_()
        upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        bits = ops.random_bits(x.shape, seed=0, step=0)
        q = quantize_stochastic(x, format, scale, bits) if stochastic else quantize(x, format, scale)
        (gradient,) = torch.autograd.grad(q, x, upstream)
        assert same_bits(gradient, upstream)

    @laws
    @given(x=vectors, scale=scales)
    def test_of_dequantize_is_multiplied_by_the_scale(self, x: Tensor, scale: float) -> None:
        x.requires_grad_()
        upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad(dequantize(x, scale), x, upstream)
        assert same_bits(gradient, upstream * scale)


class TestFused:
    """One pass over memory changes no bit. Lengths alone vary here: another shape is another program to be compiled."""

    any_floats = arrays.arrays(np.float32, st.integers(2, 100))
    laws = settings(max_examples=25, deadline=None)

    @by_every_name
    @laws
    @given(values=any_floats, scale=scales)
    def test_quantize(self, format: FP8Format, values: np.ndarray, scale: float) -> None:
        x = torch.from_numpy(values)
        assert same_bits(fused.quantize(x, format, scale, torch.empty_like(x)), quantize(x, format, scale))

    @by_name
    @laws
    @given(values=any_floats, before=st.integers(-128, 127), scale=scales)
    def test_quantize_and_count(self, format: FP8Format, values: np.ndarray, before: int, scale: float) -> None:
        x, out = torch.from_numpy(values), torch.empty(values.shape)
        old = torch.full(x.shape, before, dtype=torch.int8)
        new = torch.empty_like(old)
        flips = fused.quantize_and_count(x, format, scale, old, new, out)
        assert same_bits(out, quantize(x, format, scale))
        assert torch.equal(new, ops.grid_state(x, format, scale))
        assert flips == (new != before).sum()
        assert same_bits(fused.decode_states(new, format, scale, torch.empty_like(x)), out)

    @by_every_name
    @laws
    @given(values=any_floats, scale=scales, seed=st.integers(0, 2**63))
    def test_quantize_stochastic(self, format: FP8Format, values: np.ndarray, scale: float, seed: int) -> None:
        x = torch.from_numpy(values)
        key = torch.tensor(kernels.stream_keys([seed], step=3, stream=1)[0], dtype=torch.int32)
        expected = quantize_stochastic(x, format, scale, ops.random_bits(x.shape, seed=seed, step=3, stream=1))
        assert same_bits(fused.quantize_stochastic(x, format, scale, key, torch.empty_like(x)), expected)


@pytest.fixture(scope="class")
def no_compiler() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "engine", lambda device="cpu": fused.Engine("eager", "as the test says"))
        yield


@st.composite
def lanes(draw: st.DrawFn) -> tuple[Tensor, list[FP8Format], Tensor]:
    """Values of any shape, a format for each lane, and a scale that broadcasts."""
    shape = draw(arrays.array_shapes(max_dims=4, min_side=0, max_side=5))
    scale_shape = [draw(st.sampled_from((1, size))) for size in shape][draw(st.integers(0, len(shape))) :]
    formats = draw(st.lists(st.sampled_from(FP8_FORMATS), min_size=shape[0], max_size=shape[0]))
    values = draw(arrays.arrays(np.float32, shape))
    scale = draw(arrays.arrays(np.float32, tuple(scale_shape), elements=scales))
    return torch.from_numpy(values), formats, torch.tensor(scale)


@pytest.mark.usefixtures("no_compiler")
class TestShapes:
    """Whatever the shapes of values and scales are, and however `fused` lays them out as rows: not compiled here."""

    laws = settings(max_examples=200, deadline=None)

    @laws
    @given(case=lanes())
    def test_of_lanes(self, case: tuple[Tensor, list[FP8Format], Tensor]) -> None:
        x, formats, scale = case
        n = kernels.format_numbers(formats).view(-1, *[1] * (x.dim() - 1))
        alone = [quantize(*lane) for lane in zip(x, formats, scale.expand_as(x), strict=True)]
        expected = torch.stack(alone) if alone else x
        assert same_bits(quantize(x, n, scale), expected)
        assert same_bits(fused.quantize(x, n, scale, torch.empty_like(x)), expected)

    @laws
    @given(case=lanes())
    def test_of_one_format(self, case: tuple[Tensor, list[FP8Format], Tensor]) -> None:
        x, (format, *_), scale = case[0], case[1] or [E4M3], case[2]
        before, out = torch.zeros(x.shape, dtype=torch.int8), torch.empty_like(x)
        after = torch.empty_like(before)
        assert fused.quantize_and_count(x, format, scale, before, after, out) == after.count_nonzero()
        assert same_bits(out, quantize(x, format, scale))
        assert torch.equal(after, ops.grid_state(x, format, scale))
        assert same_bits(fused.decode_states(after, format, scale, torch.empty_like(x)), out)
