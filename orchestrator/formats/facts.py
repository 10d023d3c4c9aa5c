"""The facts of a format and its codes, as plain data: nothing here needs more than the standard library."""

import math
from collections.abc import Iterator
from typing import Any

from altgrad.quantization.formats import FP8Format

#: Where spacings are compared: the size of a typical weight, and one.
SPACING_NEAR = (0.02, 1.0)


def facts(format: FP8Format) -> dict[str, Any]:
    """What defines a format, and what follows from it.

    >>> from altgrad.quantization.formats import E3M4
    >>> shown = facts(E3M4)
    >>> shown["largest"], shown["smallest"], shown["spacing_near"]
    (124.0, 0.0625, {'0.02': 0.0625, '1': 0.0625})
    """
    return {
        "name": format.name,
        "bits": format.bits,
        "exponent_bits": format.exponent_bits,
        "mantissa_bits": format.mantissa_bits,
        "bias": format.bias,
        "infinity": format.has_inf,
        "nan": format.has_nan,
        "largest": format.max_representable_value,
        "smallest": format.min_positive_value,
        "finite_values": format.finite_values,
        "spacing_near": {f"{value:g}": spacing(format, format.to_bits(value)) for value in SPACING_NEAR},
    }


def spacing(format: FP8Format, code: int) -> float:
    """The distance from a finite value to the next one outward; for the largest, what it is in its binade.

    >>> from altgrad.quantization.formats import E4M3
    >>> spacing(E4M3, E4M3.to_bits(0.0)), spacing(E4M3, E4M3.to_bits(-1.0)), spacing(E4M3, E4M3.to_bits(448.0))
    (0.001953125, 0.125, 32.0)
    """
    exponent_field = (code >> format.mantissa_bits) & ((1 << format.exponent_bits) - 1)
    return math.ldexp(1.0, max(exponent_field, 1) - format.bias - format.mantissa_bits)


def codes(format: FP8Format) -> Iterator[dict[str, Any]]:
    """Every code of a format in order, with its bits as sign, exponent and mantissa.

    ``special`` names what is no ordinary number (-0, inf, -inf, NaN); where that is not finite, the value and the
    spacing are None.

    >>> from altgrad.quantization.formats import E5M2
    >>> list(codes(E5M2))[0x3D]
    {'code': '3D', 'bits': '0|01111|01', 'value': 1.25, 'spacing': 0.25, 'special': None}
    """
    for code in range(1 << format.bits):
        value = format.to_real(code)
        finite = math.isfinite(value)
        yield {
            "code": f"{code:0{format.bits // 4}X}",
            "bits": _split(format, code),
            "value": value if finite else None,
            "spacing": spacing(format, code) if finite else None,
            "special": _special(value),
        }


def _split(format: FP8Format, code: int) -> str:
    digits, mantissa_at = f"{code:0{format.bits}b}", 1 + format.exponent_bits
    return f"{digits[0]}|{digits[1:mantissa_at]}|{digits[mantissa_at:]}"


def _special(value: float) -> str | None:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return "-0" if value == 0 and math.copysign(1.0, value) < 0 else None
