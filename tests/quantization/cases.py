"""What tests of rounding share: formats as parameters, and their numbers."""

from typing import Any

import pytest
import torch

from altgrad.quantization import kernels
from altgrad.quantization.formats import BF16, FORMAT_REGISTRY, FP8_FORMATS, FP16, FP8Format

#: Every format but float32 itself.
ROUNDED_FORMATS = (*FP8_FORMATS, BF16, FP16)


def name_of(value: Any) -> str:
    """What names a parameter in the list of tests."""
    return value.name if isinstance(value, FP8Format) else str(value)


by_name = pytest.mark.parametrize("format", FP8_FORMATS, ids=name_of)
by_rounded_name = pytest.mark.parametrize("format", ROUNDED_FORMATS, ids=name_of)
by_every_name = pytest.mark.parametrize("format", FORMAT_REGISTRY.values(), ids=name_of)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def numbers(format: FP8Format, device: Any = None) -> kernels.FormatNumbers:
    """The numbers of one format, 0-d."""
    return kernels.format_numbers([format], device).view()
