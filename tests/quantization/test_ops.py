"""The public door: values, codes and gradients, against gfloat and against the laws that rounding obeys."""

import math

import gfloat
import numpy as np
import pytest
import torch
from grid_oracle import gfloat_info, gfloat_round, grid, hard_values, near_values, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from altgrad.quantization import ops
from altgrad.quantization.formats import (
    BF16,
    E0M7,
    E1M6,
    E3M4,
    E4M3,
    E5M2,
    FORMAT_REGISTRY,
    FP8_FORMATS,
    FP16,
    FP32,
    FP8Format,
)
from altgrad.quantization.ops import decode, dequantize, encode, quantize, rung

by_name = pytest.mark.parametrize("format", FP8_FORMATS, ids=lambda format: format.name)
by_every_name = pytest.mark.parametrize("format", FORMAT_REGISTRY.values(), ids=lambda format: format.name)

floats = st.floats(width=32, allow_nan=False)
moderate = st.floats(min_value=-(2.0**70), max_value=2.0**70, width=32).filter(lambda x: x == 0 or abs(x) > 2.0**-80)
vectors = st.lists(floats, min_size=1, max_size=30).map(lambda values: torch.tensor(values, dtype=torch.float32))
scales = st.floats(min_value=2.0**-30, max_value=2.0**30, width=32)
laws = settings(max_examples=50, deadline=None)


class TestLaws:
    @by_every_name
    @laws
    @given(x=vectors)
    def test_idempotent(self, format: FP8Format, x: torch.Tensor) -> None:
        once = quantize(x, format, 1.0)
        assert same_bits(quantize(once, format, 1.0), once)

    @by_every_name
    @laws
    @given(x=vectors)
    def test_monotone(self, format: FP8Format, x: torch.Tensor) -> None:
        q = quantize(x.sort().values, format, 1.0)
        assert (q[1:] >= q[:-1]).all()

    @by_every_name
    @laws
    @given(x=vectors)
    def test_odd(self, format: FP8Format, x: torch.Tensor) -> None:
        assert torch.equal(quantize(-x, format, 1.0), -quantize(x, format, 1.0))

    @by_name
    @laws
    @given(x=vectors)
    def test_error_is_the_distance_to_the_nearest_grid_value(self, format: FP8Format, x: torch.Tensor) -> None:
        x = x[x.abs() <= format.max_representable_value].double()
        distance = (x[:, None] - torch.from_numpy(grid(format)).double()).abs().amin(-1)
        assert torch.equal((quantize(x.float(), format, 1.0).double() - x).abs(), distance)

    @by_name
    @laws
    @given(x=vectors, scale=scales)
    def test_decoded_codes_are_the_quantized_values(self, format: FP8Format, x: torch.Tensor, scale: float) -> None:
        assert torch.equal(decode(encode(x, format, scale), format, scale), quantize(x, format, scale))

    @by_name
    @laws
    @given(x=vectors)
    def test_rungs_rise_with_values(self, format: FP8Format, x: torch.Tensor) -> None:
        x = x.sort().values
        rungs, q = rung(encode(x, format)), quantize(x, format, 1.0)
        assert torch.equal(rungs[1:] > rungs[:-1], q[1:] > q[:-1])
        assert torch.equal(rungs[1:] == rungs[:-1], q[1:] == q[:-1])

    @by_every_name
    @laws
    @given(values=st.lists(moderate, min_size=1, max_size=30), power=st.integers(-20, 20))
    def test_powers_of_two_pass_through(self, format: FP8Format, values: list[float], power: int) -> None:
        x, factor = torch.tensor(values), 2.0**power
        assert same_bits(quantize(x * factor, format, factor), quantize(x, format, 1.0) * factor)

    @by_every_name
    @laws
    @given(x=vectors, scale=scales)
    def test_quantize_is_the_composition(self, format: FP8Format, x: torch.Tensor, scale: float) -> None:
        composed = dequantize(quantize(x / torch.tensor(scale), format, 1.0), scale)
        assert same_bits(composed, quantize(x, format, scale))

    @laws
    @given(x=vectors, power=st.integers(-30, 30))
    def test_e1m6_is_e0m7_times_four(self, x: torch.Tensor, power: int) -> None:
        scale = 2.0**power
        assert same_bits(quantize(x, E1M6, scale), quantize(x, E0M7, 4 * scale))
        assert torch.equal(encode(x, E1M6, scale), encode(x, E0M7, 4 * scale))

    @by_every_name
    @laws
    @given(x=vectors, scale=scales)
    def test_gradient_is_the_identitys(self, format: FP8Format, x: torch.Tensor, scale: float) -> None:
        x.requires_grad_()
        upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad(quantize(x, format, scale), x, upstream)
        assert same_bits(gradient, upstream)


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

    def test_ties_without_mantissa_go_to_the_larger_magnitude_but_not_from_zero(self) -> None:
        format = FORMAT_REGISTRY["E7M0"]
        x = torch.tensor([1.5, 3.0, -6.0, 1.5 * 2.0**-62, 2.0**-63, -(2.0**-63)])
        assert quantize(x, format, 1.0).tolist() == [2.0, 4.0, -8.0, 2.0**-61, 0.0, 0.0]

    def test_subnormals_carry_into_the_smallest_normal(self) -> None:
        smallest_normal = 2.0**-6
        x = torch.tensor([smallest_normal - 2.0**-11, smallest_normal - 2.0**-10, smallest_normal - 2.0**-9])
        assert quantize(x, E4M3, 1.0).tolist() == [smallest_normal, smallest_normal, smallest_normal - 2.0**-9]

    @pytest.mark.parametrize("shape", [(), (1,), (4, 1), (1, 5), (4, 5), (3, 1, 1), (3, 4, 5)])
    def test_scale_broadcasts(self, shape: tuple[int, ...]) -> None:
        x = torch.from_numpy(near_values(E4M3, 60)).view(3, 4, 5)
        scale = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5
        whole = quantize(x, E4M3, scale)
        pairs = zip(x.flatten(), scale.expand_as(x).flatten(), strict=True)
        assert torch.equal(whole.flatten(), torch.stack([quantize(value, E4M3, float(own)) for value, own in pairs]))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
    def test_other_dtypes_compute_in_float32(self, dtype: torch.dtype) -> None:
        x = torch.from_numpy(near_values(E3M4, 1000)).to(dtype).requires_grad_()
        q = quantize(x, E3M4, 0.3)
        assert q.dtype == dtype
        assert torch.equal(q, quantize(x.detach().float(), E3M4, 0.3).to(dtype))
        q.sum().backward()
        assert x.grad is not None
        assert x.grad.dtype == dtype

    def test_layout_and_size_do_not_matter(self) -> None:
        x = torch.from_numpy(near_values(E5M2, 60)).view(6, 10)
        assert torch.equal(quantize(x.T[::2], E5M2, 1.0), quantize(x, E5M2, 1.0).T[::2])
        assert quantize(torch.empty(0, 3), E5M2, torch.ones(3)).shape == (0, 3)
        assert encode(torch.empty(0, 3), E3M4, torch.ones(0, 1)).shape == (0, 3)
        assert decode(torch.empty(2, 0, dtype=torch.uint8), E3M4).shape == (2, 0)

    def test_the_input_is_left_alone(self) -> None:
        x = torch.tensor([0.3, 1000.0])
        quantize(x, E4M3, 1.0)
        assert torch.equal(x, torch.tensor([0.3, 1000.0]))

    def test_formats_first_used_in_inference_mode_can_still_train(self) -> None:
        ops._scalar_numbers.cache_clear()
        with torch.inference_mode():
            quantize(torch.ones(2), E4M3, 1.0)
        x = torch.ones(2, requires_grad=True)
        quantize(x, E4M3, 1.0).sum().backward()
        assert x.grad is not None

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_a_gpu_gives_the_same_bits(self) -> None:
        x = torch.from_numpy(hard_values(E4M3))
        for format in FORMAT_REGISTRY.values():
            for scale in (1.0, 0.1, 3.7e-5):
                assert same_bits(quantize(x.cuda(), format, scale).cpu(), quantize(x, format, scale)), format.name


class TestGradients:
    def test_saturated_and_underflowed_elements_pass_it_too(self) -> None:
        x = torch.tensor([1e6, -1e6, 1e-9, 0.0], requires_grad=True)
        quantize(x, E4M3, 1.0).backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        assert x.grad is not None
        assert x.grad.tolist() == [1.0, 2.0, 3.0, 4.0]

    def test_dequantize_multiplies_it_by_the_scale(self) -> None:
        q, scale = torch.randn(2, 3, requires_grad=True), torch.tensor([[0.5], [3.0]], requires_grad=True)
        dequantize(q, scale).sum().backward()
        assert q.grad is not None
        assert torch.equal(q.grad, scale.detach().expand(2, 3))

    def test_scales_take_none(self) -> None:
        x, scale = torch.ones(3, requires_grad=True), torch.tensor(2.0, requires_grad=True)
        (quantize(x, E4M3, scale) + dequantize(x, scale)).sum().backward()
        assert scale.grad is None


class TestCodes:
    @by_name
    def test_encode_is_gfloats(self, format: FP8Format) -> None:
        values = hard_values(format)
        theirs = gfloat.encode_ndarray(gfloat_info(format), gfloat_round(format, values))
        np.testing.assert_array_equal(encode(torch.from_numpy(values), format).numpy(), theirs.astype(np.uint8))

    @by_name
    def test_decode_is_gfloats_for_every_code(self, format: FP8Format) -> None:
        ours = decode(torch.arange(256, dtype=torch.uint8), format).numpy()
        theirs = gfloat.decode_ndarray(gfloat_info(format), np.arange(256))
        np.testing.assert_array_equal(ours, theirs)
        finite = np.isfinite(theirs)
        np.testing.assert_array_equal(np.signbit(ours)[finite], np.signbit(theirs)[finite])

    @pytest.mark.parametrize(
        ("format", "dtype"), [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)], ids=["E4M3", "E5M2"]
    )
    def test_codes_are_torchs_bytes(self, format: FP8Format, dtype: torch.dtype) -> None:
        largest = format.max_representable_value
        values = torch.cat([torch.from_numpy(hard_values(format)), torch.tensor([math.nan])])
        expected = values.clamp(-largest, largest).to(dtype).view(torch.uint8)
        assert torch.equal(encode(values, format), expected)
        codes = torch.arange(256, dtype=torch.uint8)
        torch.testing.assert_close(
            decode(codes, format), codes.view(dtype).to(torch.float32), rtol=0, atol=0, equal_nan=True
        )

    def test_a_tensor_of_scales_decodes_by_channel(self) -> None:
        codes = encode(torch.tensor([[1.0], [1.0]]), E4M3)
        assert decode(codes, E4M3, torch.tensor([[2.0], [0.5]])).tolist() == [[2.0], [0.5]]

    def test_nan_is_an_error_where_the_format_has_none(self) -> None:
        with pytest.raises(ValueError, match="E3M4 has no code for NaN, got 1 of 2"):
            encode(torch.tensor([1.0, math.nan]), E3M4)

    @by_name
    def test_rungs_are_the_order_of_values(self, format: FP8Format) -> None:
        codes = torch.arange(256, dtype=torch.uint8)
        values, rungs = decode(codes, format), rung(codes)
        assert rungs.dtype == torch.int16
        finite = values.isfinite()
        order = values[finite].argsort(stable=True)
        assert set(rungs[finite][order].diff().tolist()) == {0, 1}
        assert rungs[[0, 128]].tolist() == [0, 0]


class TestGridState:
    @by_every_name
    def test_is_equal_where_quantized_values_are(self, format: FP8Format) -> None:
        x = torch.from_numpy(near_values(format if format.bits == 8 else E5M2, 300))
        x = torch.cat([x, torch.tensor([0.0, -0.0, -1e-45 if format.bits == 8 else -0.0])])
        state, q = ops.grid_state(x, format, 0.7), quantize(x, format, 0.7)
        assert torch.equal(state[:, None] == state, q[:, None] == q)

    @pytest.mark.parametrize("format", [*FP8_FORMATS, FP16, BF16, FP32], ids=lambda format: format.name)
    def test_nan_is_one_more_state(self, format: FP8Format) -> None:
        payloads = torch.tensor([0x7FC00000, 0x7F800001, -0x3FFFFF], dtype=torch.int32).view(torch.float32)
        nan = ops.grid_state(payloads, format, 1.0)
        finite = ops.grid_state(torch.from_numpy(near_values(E4M3, 300)), format, 1.0)
        assert len(nan.unique()) == 1
        assert nan[0] not in finite

    @by_name
    def test_is_one_byte(self, format: FP8Format) -> None:
        assert ops.grid_state(torch.ones(3), format, 1.0).dtype == torch.int8


SCALED = {
    "quantize": lambda scale: quantize(torch.ones(2, 3), E4M3, scale),
    "dequantize": lambda scale: dequantize(torch.ones(2, 3), scale),
    "encode": lambda scale: encode(torch.ones(2, 3), E4M3, scale),
    "decode": lambda scale: decode(torch.zeros(2, 3, dtype=torch.uint8), E4M3, scale),
    "grid_state": lambda scale: ops.grid_state(torch.ones(2, 3), E4M3, scale),
}


@pytest.mark.parametrize("function", SCALED)
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 1e-60, torch.tensor([1.0, -2.0, 1.0])], ids=str)
def test_scales_without_meaning_are_errors(function: str, bad: float | torch.Tensor) -> None:
    with pytest.raises(ValueError, match="scale must be positive and finite"):
        SCALED[function](bad)


@pytest.mark.parametrize("function", SCALED)
@pytest.mark.parametrize("shape", [(2,), (3, 3), (1, 2, 3), (4, 1, 1)], ids=str)
def test_scales_that_do_not_fit_are_errors(function: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not broadcast"):
        SCALED[function](torch.ones(shape))


@pytest.mark.parametrize("format", [FP32, BF16, FP16], ids=lambda format: format.name)
def test_codes_of_wide_formats_are_errors(format: FP8Format) -> None:
    with pytest.raises(ValueError, match="codes are 8 bits wide"):
        encode(torch.ones(1), format)
    with pytest.raises(ValueError, match="codes are 8 bits wide"):
        decode(torch.zeros(1, dtype=torch.uint8), format)


def test_wrong_dtypes_are_errors() -> None:
    with pytest.raises(ValueError, match=r"floating point, got torch\.int64"):
        quantize(torch.ones(1, dtype=torch.int64), E4M3, 1.0)
    for function in (rung, lambda codes: decode(codes, E4M3)):
        with pytest.raises(ValueError, match=r"uint8, got torch\.int32"):
            function(torch.zeros(1, dtype=torch.int32))
