"""Products of bf16 numbers that add in float32, on CPUs: the one kernel that PyTorch has no operator for."""

import ctypes
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_suffix(".cpp")
_LOG = logging.getLogger(__name__)


@functools.cache
def native_bmm_bf16() -> Callable[[Tensor, Tensor], Tensor] | None:
    """`bf16_bmm.cpp`, built by PyTorch's compiler and kept in its cache; None where the processor or it cannot.

    The function takes float32 tensors ``(L, m, k)`` and ``(L, k, n)``, all sizes at least 1, whose values bf16 has too.
    Building takes some seconds, once a machine.
    """
    if not torch.cpu._is_avx512_bf16_supported():
        return None
    try:
        from torch._inductor.codecache import CppCodeCache  # seconds to import, but for those who compile anyway

        function = CppCodeCache.load(_SOURCE.read_text()).bmm_bf16
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        _LOG.warning("products in bf16 take the slower way: %s", " ".join(str(error).split())[:200])
        return None
    function.restype = None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, *[number] * 3, pointer, *[number] * 3, pointer, *[number] * 4]
    return functools.partial(_bmm, function)


def _bmm(function: Callable[..., None], a: Tensor, b: Tensor) -> Tensor:
    (lanes, m, k), n = a.shape, b.shape[-1]
    if b.shape != (lanes, k, n) or a.dtype != torch.float32 or b.dtype != torch.float32:
        raise ValueError(f"no product of {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}")
    a, b = _strided(a), _strided(b)
    product = a.new_empty(lanes, m, n)
    function(a.data_ptr(), *a.stride(), b.data_ptr(), *b.stride(), product.data_ptr(), lanes, m, k, n)
    return product


def _strided(x: Tensor) -> Tensor:
    """Matrices whose rows or columns are contiguous."""
    return x if 1 in x.stride()[1:] else x.contiguous()
