"""Values and codes against the casts of torch, ml_dtypes and torchao; gfloat has a file of its own, test_exactness.py.

Others make infinity or NaN of what lies beyond the largest value: their input is limited to it first.
"""

import functools
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from cases import name_of, numbers
from grid_oracle import hard_values, random_values, same_bits
from torch import Tensor
from torchao.prototype.custom_fp_utils import _f32_to_floatx_unpacked, _floatx_unpacked_to_f32

from altgrad.quantization import kernels, ops
from altgrad.quantization.formats import BF16, E2M5, E3M4, E4M3, E5M2, E6M1, FP16, FP8Format

EVERY_CODE = torch.arange(256, dtype=torch.uint8)


@functools.cache
def hard_tensor(format: FP8Format) -> Tensor:
    return torch.from_numpy(np.concatenate([hard_values(format), random_values(1_000_000, seed=1)]))


def limited(x: Tensor, format: FP8Format) -> Tensor:
    return x.clamp(-format.max_representable_value, format.max_representable_value)


class TestTorch:
    @pytest.mark.parametrize(
        ("format", "dtype"),
        [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2), (BF16, torch.bfloat16), (FP16, torch.float16)],
        ids=name_of,
    )
    def test_rounds_alike(self, format: FP8Format, dtype: torch.dtype) -> None:
        x = hard_tensor(format)
        expected = limited(x, format).to(dtype)
        assert same_bits(ops.quantize(x, format, 1.0), expected.to(torch.float32) + 0.0)
        if format.bits == 8:
            x = torch.cat([x, torch.tensor([math.nan, -math.nan])])
            assert torch.equal(ops.encode(x, format), limited(x, format).to(dtype).view(torch.uint8))

    @pytest.mark.parametrize(("format", "dtype"), [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)], ids=name_of)
    def test_codes_mean_the_same(self, format: FP8Format, dtype: torch.dtype) -> None:
        theirs = EVERY_CODE.view(dtype).to(torch.float32)
        assert same_bits(ops.decode(EVERY_CODE, format), theirs)
        assert torch.equal(ops.decode(EVERY_CODE, format).signbit(), theirs.signbit())


#: All of ml_dtypes that have a sign, a zero and up to 16 bits; those that are none of ours are described here.
ML_DTYPES = {
    "bfloat16": BF16,
    "float8_e4m3fn": E4M3,
    "float8_e5m2": E5M2,
    "float8_e3m4": FP8Format("IEEE E3M4", 3, 4, bias=3, has_inf=True, has_nan=True),
    "float8_e4m3": FP8Format("IEEE E4M3", 4, 3, bias=7, has_inf=True, has_nan=True),
    "float8_e4m3b11fnuz": FP8Format("E4M3B11FNUZ", 4, 3, bias=11),
    "float8_e4m3fnuz": FP8Format("E4M3FNUZ", 4, 3, bias=8),
    "float8_e5m2fnuz": FP8Format("E5M2FNUZ", 5, 2, bias=16),
    "float6_e3m2fn": FP8Format("E3M2", 3, 2, bias=3),
    "float6_e2m3fn": FP8Format("E2M3", 2, 3, bias=1),
    "float4_e2m1fn": FP8Format("E2M1", 2, 1, bias=1),
}


@pytest.mark.parametrize("name", ML_DTYPES)
class TestMlDtypes:
    def test_rounds_alike(self, name: str) -> None:
        format, x = ML_DTYPES[name], hard_tensor(ML_DTYPES[name])
        theirs = limited(x, format).numpy().astype(getattr(ml_dtypes, name))
        expected = torch.from_numpy(theirs.astype(np.float32)) + 0.0
        assert same_bits(ops.quantize(x, format, 1.0), expected)
        assert torch.equal(kernels.value_to_rung(expected, numbers(format)), self.rungs(theirs, format))

    def test_codes_mean_the_same(self, name: str) -> None:
        format, dtype = ML_DTYPES[name], getattr(ml_dtypes, name)
        codes = np.arange(1 << format.bits, dtype=np.uint8 if format.bits <= 8 else np.uint16)
        theirs = torch.from_numpy(codes.view(dtype).astype(np.float32))
        if name.endswith("fnuz"):  # the code of -0 is their NaN
            theirs[128] = -0.0
        assert same_bits(torch.tensor([format.to_real(code) for code in codes.tolist()]), theirs)
        if format.bits == 8:
            assert same_bits(ops.decode(EVERY_CODE, format), theirs)

    @staticmethod
    def rungs(values: np.ndarray, format: FP8Format) -> Tensor:
        codes = values.view(np.uint8 if format.bits <= 8 else np.uint16).astype(np.int32)
        sign = 1 << (format.bits - 1)
        return torch.from_numpy(np.where(codes & sign, -(codes & (sign - 1)), codes))


class TestTorchao:
    """Its formats have IEEE 754's bias and no specials; our E3M4 has another bias, which is a power of two in value."""

    by_format = pytest.mark.parametrize(
        ("format", "unit"), [(E2M5, 1.0), (E3M4, 4.0), (E4M3, 1.0), (E5M2, 1.0), (E6M1, 1.0)], ids=name_of
    )

    @by_format
    def test_rounds_alike(self, format: FP8Format, unit: float) -> None:
        x, fields = hard_tensor(format), (format.exponent_bits, format.mantissa_bits)
        x = limited(x, format) if format.has_nan else x
        codes = _f32_to_floatx_unpacked(x / unit, *fields)
        assert torch.equal(ops.encode(x, format), codes)
        assert same_bits(ops.quantize(x, format, 1.0), _floatx_unpacked_to_f32(codes, *fields) * unit + 0.0)

    @by_format
    def test_codes_mean_the_same(self, format: FP8Format, unit: float) -> None:
        theirs = _floatx_unpacked_to_f32(EVERY_CODE, format.exponent_bits, format.mantissa_bits) * unit
        ours = ops.decode(EVERY_CODE, format)
        special = ~ours.isfinite()
        assert int(special.sum()) == 254 - 2 * format.max_code
        assert same_bits(ours.masked_fill(special, 0.0), theirs.masked_fill(special, 0.0))
