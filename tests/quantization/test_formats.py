"""The formats as data, against the published table and torch. The exact scalar code is in test_exactness.py too."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch

from altgrad.quantization.formats import BF16, E4M3, E5M2, FORMAT_REGISTRY, FP8_FORMATS, FP16, FP32, FP8Format

by_name = pytest.mark.parametrize("format", FP8_FORMATS, ids=lambda format: format.name)
by_every_name = pytest.mark.parametrize("format", FORMAT_REGISTRY.values(), ids=lambda format: format.name)


@pytest.mark.parametrize(
    ("name", "exponent", "mantissa", "bias", "largest", "smallest", "finite"),
    [
        ("E0M7", 0, 7, None, 127 / 128, 2.0**-7, 255),
        ("E1M6", 1, 6, 0, 3.96875, 2.0**-5, 255),
        ("E2M5", 2, 5, 1, 7.875, 2.0**-5, 255),
        ("E3M4", 3, 4, 1, 124.0, 2.0**-4, 255),
        ("E4M3", 4, 3, 7, 448.0, 2.0**-9, 253),
        ("E5M2", 5, 2, 15, 57344.0, 2.0**-16, 247),
        ("E6M1", 6, 1, 31, 6442450944.0, 2.0**-31, 255),
        ("E7M0", 7, 0, 63, 2.0**64, 2.0**-62, 255),
    ],
)
def test_table_of_facts(
    name: str, exponent: int, mantissa: int, bias: int | None, largest: float, smallest: float, finite: int
) -> None:
    format = FORMAT_REGISTRY[name]
    assert (format.exponent_bits, format.mantissa_bits, format.bits) == (exponent, mantissa, 8)
    assert bias is None or format.bias == bias
    assert format.max_representable_value == largest
    assert format.min_positive_value == smallest
    assert format.finite_values == finite
    values = {format.to_real(code) for code in range(256)}
    assert len({value for value in values if math.isfinite(value)}) == finite


@pytest.mark.parametrize("format", [E4M3, E5M2], ids=lambda format: format.name)
def test_specials(format: FP8Format) -> None:
    values = [format.to_real(code) for code in range(128)]
    assert sum(map(math.isnan, values)) == {"E4M3": 1, "E5M2": 3}[format.name]
    assert sum(map(math.isinf, values)) == {"E4M3": 0, "E5M2": 1}[format.name]


@by_name
def test_codes_survive_the_round_trip(format: FP8Format) -> None:
    codes = [code for code in range(256) if math.isfinite(format.to_real(code))]
    assert [format.to_bits(format.to_real(code)) for code in codes] == codes


@pytest.mark.parametrize(
    ("format", "dtype"),
    [(FP32, torch.float32), (BF16, torch.bfloat16), (FP16, torch.float16)],
    ids=["fp32", "bf16", "fp16"],
)
def test_wide_formats_are_torchs(format: FP8Format, dtype: torch.dtype) -> None:
    facts = torch.finfo(dtype)
    assert format.bits == facts.bits
    assert format.max_representable_value == facts.max
    assert format.min_positive_value == facts.smallest_normal * facts.eps
    assert 2.0**-format.mantissa_bits == facts.eps


@by_every_name
@pytest.mark.parametrize("sign", [1, -1])
def test_infinity_saturates_except_in_float32(format: FP8Format, sign: int) -> None:
    expected = math.inf if format is FP32 else format.max_representable_value
    assert format.to_real(format.to_bits(sign * math.inf)) == sign * expected


@by_every_name
def test_nan_has_a_code_or_is_an_error(format: FP8Format) -> None:
    if format.has_nan:
        assert math.isnan(format.to_real(format.to_bits(math.nan)))
    else:
        with pytest.raises(ValueError, match="no code for NaN"):
            format.to_bits(math.nan)


@pytest.mark.parametrize("code", [-1, 256])
def test_codes_out_of_range_are_errors(code: int) -> None:
    with pytest.raises(ValueError, match=r"codes are 0\.\.255"):
        E4M3.to_real(code)


@pytest.mark.parametrize(
    "fields",
    [
        {"exponent_bits": -1, "mantissa_bits": 8},
        {"exponent_bits": 8, "mantissa_bits": -1},
        {"exponent_bits": 5, "mantissa_bits": 2, "has_inf": True},
    ],
)
def test_impossible_formats_are_errors(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="bad"):
        FP8Format("bad", bias=1, **fields)


def test_formats_are_frozen_and_hashable() -> None:
    assert len(set(FORMAT_REGISTRY.values())) == len(FORMAT_REGISTRY) == 11
    with pytest.raises(dataclasses.FrozenInstanceError):
        E4M3.bias = 8  # type: ignore[misc]


def test_formats_need_no_torch() -> None:
    script = "import sys, altgrad.quantization.formats; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_every_public_name_exists() -> None:
    import altgrad.quantization as package

    assert all(hasattr(package, name) for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = package.quantise
