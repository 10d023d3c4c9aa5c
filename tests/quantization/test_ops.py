"""The public door: dtypes, layouts, scales, gradients, codes and steps, and what is turned away at it."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import by_every_name, by_name, name_of
from grid_oracle import gfloat_round, hard_values, near_values, same_bits
from torch import Tensor

from altgrad.quantization import ops
from altgrad.quantization.formats import BF16, E3M4, E4M3, E5M2, FP8_FORMATS, FP16, FP32, FP8Format
from altgrad.quantization.ops import decode, dequantize, encode, quantize, quantize_stochastic, rung, step_rungs


def bits_for(x: Tensor) -> Tensor:
    return ops.random_bits(x.shape, seed=0, step=1, device=x.device)


#: Functions of values and a scale that return floating-point values of the same dtype.
VALUES: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "quantize": lambda x, scale: quantize(x, E3M4, scale),
    "quantize_stochastic": lambda x, scale: quantize_stochastic(x, E3M4, scale, bits_for(x)),
    "dequantize": dequantize,
}
#: Functions of values and a scale that return integers.
INTEGERS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "encode": lambda x, scale: encode(x, E3M4, scale),
    "grid_state": lambda x, scale: ops.grid_state(x, E3M4, scale),
}
SCALED = {**VALUES, **INTEGERS, "decode": lambda x, scale: decode(x.to(torch.uint8), E3M4, scale)}

SCALE_SHAPES = [(), (1,), (5,), (4, 1), (1, 5), (4, 5), (3, 1, 1), (3, 4, 1), (3, 4, 5)]

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.T,
    "every second row": lambda x: x[::2],
    "every third column": lambda x: x[:, ::3],
    "flipped": lambda x: x.flip(0).T,
    "expanded": lambda x: x[:1].expand(4, -1),
    "empty": lambda x: x[:0],
    "empty rows": lambda x: x[:, :0],
    "one element": lambda x: x[0, 0],
    "three dimensions": lambda x: x.view(2, 3, 10).permute(2, 0, 1),
}


class TestQuantize:
    @by_name
    @pytest.mark.parametrize("scale", [1.0, 0.1, 3.7e-5, 1234.5])
    def test_is_gfloats_rounding_of_the_true_quotient(self, format: FP8Format, scale: float) -> None:
        x, factor = hard_values(format), np.float32(scale)
        with np.errstate(over="ignore"):
            expected = gfloat_round(format, x / factor).astype(np.float32) * factor
        np.testing.assert_array_equal(quantize(torch.from_numpy(x), format, scale).numpy(), expected)

    @by_name
    def test_infinities_saturate_and_nan_stays(self, format: FP8Format) -> None:
        largest = format.max_representable_value
        q = quantize(torch.tensor([math.inf, -math.inf, math.nan]), format, 2.0)
        assert q[:2].tolist() == [2 * largest, -2 * largest]
        assert q[2].isnan()

    def test_subnormals_carry_into_the_smallest_normal(self) -> None:
        smallest_normal = 2.0**-6
        x = torch.tensor([smallest_normal - 2.0**-11, smallest_normal - 2.0**-10, smallest_normal - 2.0**-9])
        assert quantize(x, E4M3, 1.0).tolist() == [smallest_normal, smallest_normal, smallest_normal - 2.0**-9]

    def test_formats_first_used_in_inference_mode_can_still_train(self) -> None:
        ops._scalar_numbers.cache_clear()
        with torch.inference_mode():
            quantize(torch.ones(2), E4M3, 1.0)
        assert not any(number.is_inference() for number in ops.numbers(E4M3, torch.device("cpu"))[:-1])
        x = torch.ones(2, requires_grad=True)
        quantize(x, E4M3, 1.0).sum().backward()
        assert x.grad is not None


class TestInputs:
    @pytest.mark.parametrize("function", SCALED)
    @pytest.mark.parametrize("shape", SCALE_SHAPES, ids=str)
    def test_scales_broadcast(self, function: str, shape: tuple[int, ...]) -> None:
        x = torch.from_numpy(near_values(E4M3, 60)).view(3, 4, 5).abs()
        scale = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5
        whole = SCALED[function](x, scale)
        for at in itertools.product(range(3), range(4), range(5)):
            alone = SCALED[function](x, float(scale.expand_as(x)[at]))
            assert same_bits(whole[at], alone[at])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int32], ids=str)
    def test_scales_are_float32_whatever_they_are_given_as(self, dtype: torch.dtype) -> None:
        x, scale = torch.from_numpy(near_values(E4M3, 60)), torch.tensor(3, dtype=dtype)
        assert same_bits(quantize(x, E4M3, scale), quantize(x, E4M3, 3.0))
        assert same_bits(quantize(x, E4M3, 0.1), quantize(x, E4M3, torch.tensor(0.1, dtype=torch.float64)))

    @pytest.mark.parametrize("function", SCALED)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts_do_not_matter(self, function: str, layout: str) -> None:
        x = LAYOUTS[layout](torch.from_numpy(near_values(E5M2, 60)).view(6, 10).abs())
        result = SCALED[function](x, 0.5)
        assert same_bits(result, SCALED[function](x.clone(memory_format=torch.contiguous_format), 0.5))
        assert result.shape == x.shape

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
    @pytest.mark.parametrize("function", [*VALUES, *INTEGERS])
    def test_other_dtypes_compute_in_float32(self, function: str, dtype: torch.dtype) -> None:
        x = torch.from_numpy(near_values(E3M4, 1000)).to(dtype)
        result, expected = (SCALED[function](values, 0.3) for values in (x, x.to(torch.float32)))
        assert same_bits(result, expected.to(dtype) if function in VALUES else expected)

    @pytest.mark.parametrize("function", SCALED)
    def test_are_left_alone(self, function: str) -> None:
        x = torch.from_numpy(near_values(E3M4, 1000)).abs()
        scale = torch.tensor(0.3)
        copy = x.clone()
        SCALED[function](x, scale)
        assert same_bits(x, copy)
        assert scale == torch.tensor(0.3)

    @pytest.mark.parametrize("function", SCALED)
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_may_need_no_gradient(self, function: str, mode: Callable[[], Any]) -> None:
        x = torch.from_numpy(near_values(E3M4, 1000)).abs()
        expected = SCALED[function](x, 0.3)
        x.requires_grad_()
        with mode():
            result = SCALED[function](x, 0.3)
        assert not result.requires_grad
        assert same_bits(result, expected)


class TestGradients:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
    @pytest.mark.parametrize("function", VALUES)
    def test_have_the_dtype_of_their_values(self, function: str, dtype: torch.dtype) -> None:
        x = torch.tensor([1e6, -1e6, 1e-9, 0.0], dtype=dtype, requires_grad=True)  # saturated and underflowed too
        VALUES[function](x, 0.5).backward(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype))
        assert x.grad is not None
        assert x.grad.dtype == dtype
        factor = 0.5 if function == "dequantize" else 1.0
        assert x.grad.tolist() == [factor * upstream for upstream in (1.0, 2.0, 3.0, 4.0)]

    @pytest.mark.parametrize("function", VALUES)
    def test_scales_take_none(self, function: str) -> None:
        x, scale = torch.randn(2, 3, requires_grad=True), torch.tensor([[0.5], [3.0]], requires_grad=True)
        VALUES[function](x, scale).sum().backward()
        assert scale.grad is None
        assert x.grad is not None
        expected = scale.detach() if function == "dequantize" else torch.ones(2, 1)
        assert torch.equal(x.grad, expected.expand(2, 3))


class TestCodes:
    def test_take_no_gradient_to_their_scale(self) -> None:
        scale = torch.tensor(2.0, requires_grad=True)
        assert not decode(torch.tensor([56], dtype=torch.uint8), E4M3, scale).requires_grad

    @by_name
    def test_rungs_are_the_order_of_values(self, format: FP8Format) -> None:
        codes = torch.arange(256, dtype=torch.uint8)
        values, rungs = decode(codes, format), rung(codes)
        assert rungs.dtype == torch.int16
        finite = values.isfinite()
        order = values[finite].argsort(stable=True)
        assert set(rungs[finite][order].diff().tolist()) == {0, 1}
        assert rungs[[0, 128]].tolist() == [0, 0]


class TestSteps:
    def test_go_past_zero_without_a_sign(self) -> None:
        codes = torch.tensor([0x01, 0x81, 0x80, 0x00, 0x02], dtype=torch.uint8)
        moved = step_rungs(codes, torch.tensor([-1, 1, 1, -1, -3]), E4M3)
        assert moved.tolist() == [0x00, 0x00, 0x01, 0x81, 0x81]

    @pytest.mark.parametrize("steps", [-300, -1, 0, 1, 300])
    def test_leave_nan_and_infinity_where_they_are(self, steps: int) -> None:
        for format in (E4M3, E5M2):
            beyond = [code for code in range(256) if not math.isfinite(format.to_real(code))]
            codes = torch.tensor(beyond, dtype=torch.uint8)
            assert torch.equal(step_rungs(codes, torch.tensor(steps), format), codes)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
    def test_may_be_of_any_integer_dtype_and_shape(self, dtype: torch.dtype) -> None:
        codes = encode(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), E4M3)
        steps = torch.tensor([1, 8], dtype=dtype)
        assert decode(step_rungs(codes, steps, E4M3), E4M3).tolist() == [[1.125, 4.0], [3.25, 8.0]]
        assert step_rungs(codes[:0], steps, E4M3).shape == (0, 2)
        assert step_rungs(codes.T, steps, E4M3).tolist() == step_rungs(codes.T.contiguous(), steps, E4M3).tolist()


class TestGridState:
    @by_every_name
    def test_is_equal_where_quantized_values_are(self, format: FP8Format) -> None:
        x = torch.from_numpy(near_values(format if format.bits == 8 else E5M2, 300))
        x = torch.cat([x, torch.tensor([0.0, -0.0, -1e-45 if format.bits == 8 else -0.0])])
        state, q = ops.grid_state(x, format, 0.7), quantize(x, format, 0.7)
        assert torch.equal(state[:, None] == state, q[:, None] == q)

    @pytest.mark.parametrize("format", [*FP8_FORMATS, FP16, BF16, FP32], ids=name_of)
    def test_nan_is_one_more_state(self, format: FP8Format) -> None:
        payloads = torch.tensor([0x7FC00000, 0x7F800001, -0x3FFFFF], dtype=torch.int32).view(torch.float32)
        payloads = payloads.repeat(7)  # eight at a time go another way through a CPU than what is left over
        nan = ops.grid_state(payloads, format, 1.0)
        finite = ops.grid_state(torch.from_numpy(near_values(E4M3, 300)), format, 1.0)
        assert len(nan.unique()) == 1
        assert nan[0] not in finite
        assert nan.dtype == (torch.int8 if format.bits == 8 else torch.int32)


class TestErrors:
    @pytest.mark.parametrize("function", SCALED)
    @pytest.mark.parametrize(
        ("bad", "shown"),
        [
            (0.0, "0.0"),
            (-1.0, "-1.0"),
            (math.nan, "nan"),
            (math.inf, "inf"),
            (1e-60, "0.0"),
            (1e60, "inf"),
            (torch.tensor([1.0, -2.0, 0.0]), "-2.0"),
            (torch.tensor([[1.0], [math.nan]]), "nan"),
        ],
        ids=str,
    )
    def test_scales_without_meaning(self, function: str, bad: float | Tensor, shown: str) -> None:
        with pytest.raises(ValueError, match=f"scale must be positive and finite in float32, got {shown}$"):
            SCALED[function](torch.ones(2, 3), bad)

    @pytest.mark.parametrize("function", SCALED)
    @pytest.mark.parametrize("shape", [(2,), (3, 3), (1, 2, 3), (4, 1, 1)], ids=str)
    def test_scales_that_do_not_fit(self, function: str, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="does not broadcast"):
            SCALED[function](torch.ones(2, 3), torch.ones(shape))

    @pytest.mark.parametrize("function", [*VALUES, *INTEGERS])
    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
    def test_values_that_are_not_floating_point(self, function: str, dtype: torch.dtype) -> None:
        with pytest.raises(ValueError, match=f"floating point, got {dtype}"):
            SCALED[function](torch.ones(1, dtype=dtype), 1.0)

    def test_random_bits_of_another_shape_or_dtype(self) -> None:
        for bits in (torch.zeros(4, dtype=torch.int32), torch.zeros(3, dtype=torch.int64)):
            with pytest.raises(ValueError, match=r"bits must be int32 of shape \(3,\), got torch\.int"):
                quantize_stochastic(torch.ones(3), E4M3, 1.0, bits)

    @pytest.mark.parametrize("format", [FP32, BF16, FP16], ids=name_of)
    def test_codes_of_wide_formats(self, format: FP8Format) -> None:
        codes = torch.zeros(1, dtype=torch.uint8)
        for call in (
            lambda: encode(torch.ones(1), format),
            lambda: decode(codes, format),
            lambda: step_rungs(codes, codes, format),
        ):
            with pytest.raises(ValueError, match="codes are 8 bits wide"):
                call()

    def test_codes_and_steps_of_another_dtype(self) -> None:
        codes, wrong = torch.zeros(1, dtype=torch.uint8), torch.zeros(1, dtype=torch.int32)
        for call in (lambda: rung(wrong), lambda: decode(wrong, E4M3), lambda: step_rungs(wrong, wrong, E4M3)):
            with pytest.raises(ValueError, match=r"uint8, got torch\.int32"):
                call()
        for dtype in (torch.float32, torch.complex64):
            with pytest.raises(ValueError, match=f"rungs must be integers, got {dtype}"):
                step_rungs(codes, codes.to(dtype), E4M3)
