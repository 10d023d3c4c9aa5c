"""Number formats as data: a handful of numbers each, and exact scalar code to read and write them.

The scalar code here is the slow reference that every tensor kernel is tested against.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class FP8Format:
    """A binary floating-point (or fixed-point) format: sign, exponent, mantissa.

    Values with exponent field 0 are subnormal: ``mantissa * 2**(1 - bias - mantissa_bits)``. A format without
    exponent bits has only those. The wide baselines (``fp32``, ``bf16``, ``fp16``) are described the same way.

    >>> E4M3.max_representable_value, E4M3.min_positive_value
    (448.0, 0.001953125)
    >>> E4M3.to_real(E4M3.to_bits(0.3))
    0.3125
    """

    name: str
    #: Width of the exponent field in bits; 0 is fixed point.
    exponent_bits: int
    #: Width of the mantissa field in bits.
    mantissa_bits: int
    #: Exponent bias; an exponent field ``E > 0`` means ``2**(E - bias)``.
    bias: int
    #: The largest exponent field is reserved for infinity and NaN, as in IEEE 754.
    has_inf: bool = False
    #: NaN exists; without ``has_inf`` it takes only the code of all ones, as in OCP e4m3fn.
    has_nan: bool = False

    def __post_init__(self) -> None:
        if self.exponent_bits < 0 or self.mantissa_bits < 0:
            raise ValueError(
                f"{self.name}: field widths must not be negative, got {self.exponent_bits=}, {self.mantissa_bits=}"
            )
        if self.has_inf and not self.has_nan:
            raise ValueError(f"{self.name}: a format with infinity has NaN too")

    @property
    def bits(self) -> int:
        """Width of a code, the sign included."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def is_identity(self) -> bool:
        """True for float32 itself: quantizing to it changes nothing."""
        return self.mantissa_bits >= 23

    @property
    def max_code(self) -> int:
        """The largest code of a finite positive value."""
        all_ones = (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        if self.has_inf:
            return all_ones - (1 << self.mantissa_bits)
        return all_ones - 1 if self.has_nan else all_ones

    @property
    def max_representable_value(self) -> float:
        """The largest finite value."""
        return self.to_real(self.max_code)

    @property
    def min_positive_value(self) -> float:
        """The smallest value above zero."""
        return self.to_real(1)

    @property
    def finite_values(self) -> int:
        """How many finite values there are, +0 and -0 counted once."""
        return 2 * self.max_code + 1

    @property
    def significand_bits(self) -> int:
        """Bits after the leading one in the largest binade: the relative precision at the top.

        This is ``mantissa_bits``, except in fixed point, which has no implicit leading one.
        """
        return self.mantissa_bits if self.exponent_bits else self.mantissa_bits - 1

    def to_real(self, bit_index: int) -> float:
        """The value of a code.

        Raises:
            ValueError: the code does not fit the format.
        """
        if not 0 <= bit_index < 1 << self.bits:
            raise ValueError(f"{self.name} codes are 0..{(1 << self.bits) - 1}, got {bit_index}")
        sign = -1.0 if bit_index >> (self.bits - 1) else 1.0
        magnitude = bit_index & ((1 << (self.bits - 1)) - 1)
        if magnitude > self.max_code:
            is_inf = self.has_inf and magnitude == self.max_code + 1
            return sign * math.inf if is_inf else math.nan
        exponent = max(magnitude >> self.mantissa_bits, 1)
        significand = magnitude - ((exponent - 1) << self.mantissa_bits)
        return sign * math.ldexp(significand, exponent - self.bias - self.mantissa_bits)

    def to_bits(self, value: float) -> int:
        """The code of the value nearest to ``value``, ties to the even significand; beyond the largest it saturates.

        Infinity saturates too, even where the format has one; only float32 itself, which changes nothing, keeps it.

        Raises:
            ValueError: ``value`` is NaN and the format has none.
        """
        sign = (1 << (self.bits - 1)) if math.copysign(1.0, value) < 0 else 0
        if math.isnan(value):
            if not self.has_nan:
                raise ValueError(f"{self.name} has no code for NaN")
            return sign | ((1 << (self.bits - 1)) - 1)
        magnitude = abs(value)
        if self.is_identity and math.isinf(magnitude):
            return sign | (self.max_code + 1)
        if magnitude >= self.max_representable_value:
            return sign | self.max_code
        lowest = 1 - self.bias
        exponent = max(math.frexp(magnitude)[1] - 1, lowest) if magnitude else lowest
        significand = round(math.ldexp(magnitude, self.mantissa_bits - exponent))
        return sign | (((exponent + self.bias - 1) << self.mantissa_bits) + significand)


E0M7 = FP8Format("E0M7", exponent_bits=0, mantissa_bits=7, bias=1)
E1M6 = FP8Format("E1M6", exponent_bits=1, mantissa_bits=6, bias=0)
E2M5 = FP8Format("E2M5", exponent_bits=2, mantissa_bits=5, bias=1)
E3M4 = FP8Format("E3M4", exponent_bits=3, mantissa_bits=4, bias=1)
E4M3 = FP8Format("E4M3", exponent_bits=4, mantissa_bits=3, bias=7, has_nan=True)
E5M2 = FP8Format("E5M2", exponent_bits=5, mantissa_bits=2, bias=15, has_inf=True, has_nan=True)
E6M1 = FP8Format("E6M1", exponent_bits=6, mantissa_bits=1, bias=31)
E7M0 = FP8Format("E7M0", exponent_bits=7, mantissa_bits=0, bias=63)
FP16 = FP8Format("fp16", exponent_bits=5, mantissa_bits=10, bias=15, has_inf=True, has_nan=True)
BF16 = FP8Format("bf16", exponent_bits=8, mantissa_bits=7, bias=127, has_inf=True, has_nan=True)
FP32 = FP8Format("fp32", exponent_bits=8, mantissa_bits=23, bias=127, has_inf=True, has_nan=True)

#: The eight ways to split seven bits between exponent and mantissa.
FP8_FORMATS: tuple[FP8Format, ...] = (E0M7, E1M6, E2M5, E3M4, E4M3, E5M2, E6M1, E7M0)
#: Baselines; they go through the same kernel.
WIDE_FORMATS: tuple[FP8Format, ...] = (FP32, BF16, FP16)
#: Every format by name.
FORMAT_REGISTRY: dict[str, FP8Format] = {format.name: format for format in (*FP8_FORMATS, *WIDE_FORMATS)}
