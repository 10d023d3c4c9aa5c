"""One pass over memory, compiled and not: the bits of `ops` whatever the buffers, the lanes and the dtypes are."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from grid_oracle import near_values, same_bits
from torch import Tensor

from altgrad.quantization import fused, kernels, ops
from altgrad.quantization.formats import BF16, E3M4, E4M3, E5M2, FORMAT_REGISTRY, FP8_FORMATS, FP16
from altgrad.quantization.kernels import format_numbers

KEYS = torch.tensor(kernels.stream_keys(range(11), step=3, stream=1), dtype=torch.int32)
INT8 = torch.int8


@pytest.fixture(params=["compiled", "eager"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, honest_compilation: None) -> None:
    """Each test twice: as the machine does it, and as one without a compiler would."""
    if request.param == "compiled":
        request.getfixturevalue("compiler")
        return

    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("compiled where it should run eagerly")

    monkeypatch.setattr(fused, "engine", lambda device="cpu": fused.Engine("eager", "as the test says"))
    monkeypatch.setattr(fused, "_program", refuse)


pytestmark = pytest.mark.usefixtures("engine")


def by(name: str, values: Iterable[Any], compiled: Sequence[Any]) -> pytest.MarkDecorator:
    """All of the values eagerly, some of them compiled too: each is a program that takes a second to make."""
    cases = [("eager", value) for value in values] + [("compiled", value) for value in compiled]
    return pytest.mark.parametrize(("engine", name), cases, indirect=["engine"], ids=str)


def example(*shape: int) -> Tensor:
    """Values for every format: subnormal, normal, too large, not a number."""
    x = torch.from_numpy(np.concatenate([near_values(E3M4, 400, seed=1), near_values(E5M2, math.prod(shape), seed=2)]))
    x[7::50] = math.nan
    return x[: math.prod(shape)].view(shape)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.cat([x, torch.zeros_like(x)])
    return both[: len(x)], both[len(x) :]


def overlapping(x: Tensor) -> tuple[Tensor, Tensor]:
    """The output begins at the second row of the input."""
    more = torch.cat([x, x[:1]])
    return more[:-1], more[1:]


def spread(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=1)[:, ::2]


def transposed(x: Tensor) -> Tensor:
    return x.T.contiguous().T


LAYOUTS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "apart": lambda x: (x, torch.empty_like(x)),
    "in place": lambda x: (x, x),
    "another view of the same": lambda x: (x, x.view_as(x)),
    "halves of one storage": halves,
    "overlapping": overlapping,
    "in transposed": lambda x: (transposed(x), torch.empty(x.shape)),
    "out transposed": lambda x: (x, transposed(torch.empty_like(x))),
    "every second of a row": lambda x: (spread(x), spread(torch.empty_like(x))),
    "expanded": lambda x: (x[:1].expand_as(x), torch.empty_like(x)),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class TestBuffers:
    @by("layout", LAYOUTS, compiled=["in place", "overlapping", "in transposed", "out transposed", "expanded"])
    def test_may_lie_anywhere(self, layout: str) -> None:
        x, out = LAYOUTS[layout](example(3, 40))
        scale = torch.tensor([[0.1], [2.0], [3.0]])
        expected = ops.quantize(x, E4M3, scale)
        assert fused.quantize(x, E4M3, scale, out) is out
        assert same_bits(out, expected)

    @by("layout", LAYOUTS, compiled=["in place", "in transposed"])
    def test_may_lie_anywhere_and_draw_in_row_major_order(self, layout: str) -> None:
        x, out = LAYOUTS[layout](example(3, 40))
        expected = ops.quantize_stochastic(x, E4M3, 0.1, kernels.random_bits(KEYS[:3], 40))
        assert fused.quantize_stochastic(x, E4M3, 0.1, KEYS[:3], out) is out
        assert same_bits(out, expected)

    @by("dtypes", itertools.product(DTYPES, DTYPES), compiled=[DTYPES[:2], DTYPES[2:], DTYPES[1::-1]])
    def test_may_be_of_any_floating_dtype(self, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
        x, out = example(200).to(dtypes[0]), torch.empty(200, dtype=dtypes[1])
        expected = ops.quantize(x.to(torch.float32), E3M4, 0.3).to(dtypes[1])
        assert same_bits(fused.quantize(x, E3M4, 0.3, out), expected)

    @by("shape", [(), (1,), (0,), (3, 0), (0, 3), (1, 5), (5, 1), (2, 3, 4)], compiled=[(), (0, 3), (2, 3, 4)])
    def test_may_be_of_any_shape(self, shape: tuple[int, ...]) -> None:
        x = example(*shape)
        before, after, out = torch.zeros(shape, dtype=INT8), torch.ones(shape, dtype=INT8), torch.empty(shape)
        flips = fused.quantize_and_count(x, E4M3, 0.1, before, after, out)
        assert (flips.shape, flips.dtype, flips) == ((), torch.int64, after.count_nonzero())
        assert same_bits(out, ops.quantize(x, E4M3, 0.1))
        assert torch.equal(after, ops.grid_state(x, E4M3, 0.1))
        assert same_bits(fused.quantize(x, E4M3, 0.1, torch.empty(shape)), out)
        expected = ops.quantize_stochastic(x, E4M3, 0.1, kernels.random_bits(KEYS[0], x.numel()).view(shape))
        assert same_bits(fused.quantize_stochastic(x, E4M3, 0.1, KEYS[0], torch.empty(shape)), expected)
        assert same_bits(fused.decode_states(after, E4M3, 0.1, torch.empty(shape)), out)
        assert torch.equal(fused.step_states(after, torch.zeros_like(before), E4M3, before), after)

    def test_are_all_that_is_written(self) -> None:
        x, before = example(3, 40), torch.arange(120).view(3, 40).to(INT8)
        copies = x.clone(), before.clone()
        fused.quantize_and_count(x, E4M3, 0.1, before, torch.empty_like(before), torch.empty_like(x))
        fused.step_states(before, before, E4M3, torch.empty_like(before))
        assert same_bits(x, copies[0])
        assert torch.equal(before, copies[1])

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    def test_take_no_gradient(self, mode: Callable[[], Any]) -> None:
        x = example(200)
        expected = ops.quantize(x, E4M3, 0.1)
        x.requires_grad_()
        with mode():
            out = torch.empty(200)
            assert same_bits(fused.quantize(x, E4M3, torch.tensor(0.1, requires_grad=True), out), expected)
            assert not out.requires_grad
            assert fused.quantize(x, E4M3, 0.1, out=x) is x
        assert x.is_leaf
        assert x.requires_grad
        assert same_bits(x.detach(), expected)


class TestLanes:
    shape = (8, 3, 37)

    @by("scale_shape", [(), (8, 1, 1), (37,), (3, 1), (8, 1, 37)], compiled=[(), (8, 1, 1), (8, 1, 37)])
    def test_may_differ_in_format_and_scale(self, scale_shape: tuple[int, ...]) -> None:
        x, n, scale = example(*self.shape), format_numbers(FP8_FORMATS).view(8, 1, 1), self.scales(scale_shape)
        alone = [ops.quantize(*lane) for lane in zip(x, FP8_FORMATS, scale.expand_as(x), strict=True)]
        assert same_bits(ops.quantize(x, n, scale), torch.stack(alone))
        assert same_bits(fused.quantize(x, n, scale, torch.empty_like(x)), torch.stack(alone))

    @by("scale_shape", [(), (8, 1, 1), (37,), (3, 1), (8, 1, 37)], compiled=[(8, 1, 1), (8, 1, 37)])
    def test_have_states_of_their_own(self, scale_shape: tuple[int, ...]) -> None:
        x, n, scale = example(*self.shape), format_numbers(FP8_FORMATS).view(8, 1, 1), self.scales(scale_shape)
        lanes = zip(x, FP8_FORMATS, scale.expand_as(x), strict=True)
        states, expected = torch.stack([ops.grid_state(*lane) for lane in lanes]), ops.quantize(x, n, scale)
        before, after, out = states.flip(-1), torch.empty_like(states), torch.empty_like(x)
        assert fused.quantize_and_count(x, n, scale, before, after, out) == (states != before).sum()
        assert torch.equal(after, states)
        assert same_bits(out, expected)
        assert same_bits(fused.decode_states(states, n, scale, torch.empty_like(x)), expected)

    @staticmethod
    def scales(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5

    def test_may_reach_as_far_as_bf16(self) -> None:
        formats = tuple(FORMAT_REGISTRY.values())
        x, scale = example(11, 37) * torch.tensor(1e30), self.scales((11, 1))
        n = format_numbers(formats).view(11, 1)
        out = fused.quantize(x, n, scale, torch.empty_like(x))
        alone = [ops.quantize(x[i], format, scale[i]) for i, format in enumerate(formats)]
        assert same_bits(out, torch.stack(alone))

    def test_draw_from_keys_of_their_own(self) -> None:
        x, n = example(*self.shape), format_numbers(FP8_FORMATS).view(8, 1, 1)
        scale = self.scales((8, 1, 1))
        out = fused.quantize_stochastic(x, n, scale, KEYS[:8], torch.empty_like(x))
        bits = kernels.random_bits(KEYS[:8], 3 * 37).view(self.shape)
        alone = [ops.quantize_stochastic(x[i], format, scale[i], bits[i]) for i, format in enumerate(FP8_FORMATS)]
        assert same_bits(out, torch.stack(alone))

    @by("dtype", [torch.int8, torch.int16, torch.int32, torch.int64], compiled=[torch.int8, torch.int64])
    def test_step_to_their_own_ends(self, dtype: torch.dtype) -> None:
        n, ends = format_numbers(FP8_FORMATS).view(8, 1), torch.tensor([[f.max_code] for f in FP8_FORMATS])
        states = torch.arange(-128, 128).expand(8, -1).contiguous()
        states = states.where(states.abs() <= ends, ops.NAN_STATE)
        steps = torch.arange(8 * 256).view(8, 256).mul(37).remainder(256).sub(128)
        expected = (states + steps).clamp(-ends, ends).where(states != ops.NAN_STATE, ops.NAN_STATE).to(INT8)
        here = states.to(INT8)
        assert torch.equal(fused.step_states(here, steps.to(dtype), n, torch.empty_like(here)), expected)
        assert fused.step_states(here, steps.to(dtype), n, out=here) is here
        assert torch.equal(here, expected)


class TestCounting:
    def test_counts_changed_states_and_nan_as_one(self) -> None:
        x = torch.tensor([1.0, 1.0, math.nan, math.nan, -0.0, 1e-9, -1e9])
        before = torch.tensor([56, 57, ops.NAN_STATE, 0, 0, 0, -126], dtype=INT8)
        after = torch.empty_like(before)
        assert fused.quantize_and_count(x, E4M3, 1.0, before, after, torch.empty_like(x)) == 2
        assert after.tolist() == [56, 56, ops.NAN_STATE, ops.NAN_STATE, 0, 0, -126]

    def test_takes_states_from_one_storage(self) -> None:
        x, states = example(400), torch.zeros(2, 400, dtype=INT8)
        assert fused.quantize_and_count(x, E4M3, 1.0, states[0], states[1], out=x) == states[1].count_nonzero() > 0


CALLS: dict[str, Callable[..., Tensor]] = {
    "quantize": lambda x, format, scale: fused.quantize(x, format, scale, torch.empty(2, 3)),
    "quantize_stochastic": lambda x, format, scale: fused.quantize_stochastic(
        x, format, scale, KEYS[0], torch.empty(2, 3)
    ),
    "quantize_and_count": lambda x, format, scale: fused.quantize_and_count(
        x, format, scale, *torch.zeros(2, 2, 3, dtype=INT8), torch.empty(2, 3)
    ),
    "decode_states": lambda x, format, scale: fused.decode_states(x.to(INT8), format, scale, torch.empty(2, 3)),
    "step_states": lambda x, format, scale: fused.step_states(
        x.to(INT8), torch.zeros(2, 3, dtype=INT8), format, torch.zeros(2, 3, dtype=INT8)
    ),
}
SCALED = [name for name in CALLS if name != "step_states"]
STATES = ["quantize_and_count", "decode_states", "step_states"]


class TestErrors:
    @pytest.mark.parametrize("call", SCALED)
    @pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, torch.tensor([1.0, math.nan, 1.0])], ids=str)
    def test_scales_without_meaning(self, call: str, scale: float | Tensor) -> None:
        with pytest.raises(ValueError, match=r"scale must be positive and finite in float32, got (0\.0|-1\.0|nan|inf)"):
            CALLS[call](torch.ones(2, 3), E4M3, scale)

    @pytest.mark.parametrize("call", SCALED)
    @pytest.mark.parametrize("shape", [(2,), (3, 3), (1, 2, 3)], ids=str)
    def test_scales_that_do_not_fit(self, call: str, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="does not broadcast"):
            CALLS[call](torch.ones(2, 3), E4M3, torch.ones(shape))

    @pytest.mark.parametrize("call", CALLS)
    def test_buffers_of_another_shape(self, call: str) -> None:
        with pytest.raises(ValueError, match=r"a buffer must be of shape \(4,\) on cpu, got \(2, 3\) on cpu"):
            CALLS[call](torch.ones(4), E4M3, 1.0)

    @pytest.mark.parametrize("call", STATES)
    @pytest.mark.parametrize(
        "format", [BF16, FP16, format_numbers([E4M3, FP16]).view(-1, 1)], ids=["bf16", "fp16", "lanes"]
    )
    def test_states_of_wide_formats(self, call: str, format: Any) -> None:
        with pytest.raises(ValueError, match="states are 8 bits wide, got a format of 16"):
            CALLS[call](torch.ones(2, 3), format, 1.0)

    def test_states_of_another_dtype(self) -> None:
        x, states, wrong = torch.ones(3), torch.zeros(3, dtype=INT8), torch.zeros(3, dtype=torch.uint8)
        for call in (
            lambda: fused.quantize_and_count(x, E4M3, 1.0, wrong, states, x),
            lambda: fused.quantize_and_count(x, E4M3, 1.0, states, wrong, x),
            lambda: fused.decode_states(wrong, E4M3, 1.0, x),
            lambda: fused.step_states(wrong, states, E4M3, states),
            lambda: fused.step_states(states, states, E4M3, wrong),
        ):
            with pytest.raises(ValueError, match=r"states must be int8, got torch\.uint8"):
                call()

    def test_one_buffer_for_states_before_and_after(self) -> None:
        x, states = torch.tensor([1.0, 2.0]), torch.tensor([56, 63], dtype=INT8)
        assert fused.quantize_and_count(x, E4M3, 1.0, states, states, torch.empty_like(x)) == 1
        assert states.tolist() == [56, 64]

    def test_steps_that_are_no_integers(self) -> None:
        states = torch.zeros(3, dtype=INT8)
        with pytest.raises(ValueError, match=r"rungs must be integers, got torch\.float32"):
            fused.step_states(states, torch.ones(3), E4M3, states)

    @pytest.mark.parametrize(
        "call",
        [
            lambda x: fused.quantize(x.long(), E4M3, 1.0, x),
            lambda x: fused.quantize(x, E4M3, 1.0, x.long()),
            lambda x: fused.decode_states(x.to(INT8), E4M3, 1.0, x.long()),
            lambda x: fused.quantize_stochastic(x, E4M3, 1.0, KEYS[:3], x),
            lambda x: fused.quantize_stochastic(x, E4M3, 1.0, KEYS[:2].long(), x),
            lambda x: fused.step_states(x.to(INT8), x.to(torch.complex64), E4M3, x.to(INT8)),
        ],
        ids=[
            "values",
            "buffer",
            "decoded",
            "number of keys",
            "dtype of keys",
            "complex rungs",
        ],
    )
    def test_what_would_give_wrong_results(self, call: Callable[[Tensor], Any]) -> None:
        with pytest.raises(ValueError, match="must"):
            call(torch.ones(2, 3))
