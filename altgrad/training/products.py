"""Products of quantized operands as products of bf16 numbers.

Every value of an 8-bit format times a power of two is exact in bf16. So where both operands of a product are
quantized, multipliers of bf16 that add in float32 lose nothing: only the order of addition is another, as between any
two float32 libraries. A product with one operand in full precision stays in float32.

On GPUs that means tensor cores, on CPUs a kernel of our own in compiled programs. Eagerly it is a permission there:
oneDNN multiplies in bf16 or in float32, as it likes (docs/decisions/0010-bf16-products.md says what all that gains).

Shapes: L lanes; products are ``(L, m, k) @ (L, k, n)``.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from altgrad.quantization.formats import FP8Format
from altgrad.training.bf16_bmm import native_bmm_bf16
from altgrad.training.config import RunConfig

#: Mantissa bits of bf16.
_BF16_MANTISSA = 7
#: PyTorch gives products up to this size to one library and larger ones to another, by the size of all lanes together.
#: So products whose lanes are no larger go lane by lane, and a lane's bits do not depend on its neighbours; where one
#: lane is larger, all together are.
_SMALL = 16**3


class Span(NamedTuple):
    """Consecutive lanes."""

    start: int
    stop: int
    #: Their operands are exact in bf16.
    exact: bool


#: How the lanes of one product divide.
Spans = tuple[Span, ...]


@functools.cache
def has_bf16_products(device_type: str) -> bool:
    """Whether a machine multiplies bf16 in hardware and adds in float32, and PyTorch can be told to."""
    if device_type == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()


def is_exact_in_bf16(format: FP8Format, config: RunConfig) -> bool:
    """Whether a tensor of this format, as a run scales it, holds only values that bf16 has too."""
    scaled = format.bits == 8 and config.scaling == "amax"
    return not format.is_identity and not scaled and format.significand_bits <= _BF16_MANTISSA


def bmm_bf16(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of float32 tensors whose values bf16 has too, added in float32: ``(L, m, k) @ (L, k, n)``.

    Magnitudes below float32's normal range may count as zero. The switch that PyTorch has for this is the whole
    process's; it is turned only while the product runs.
    """
    if a.is_cuda:
        return torch.bmm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
    switch: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    usual = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        if a.shape[1] * a.shape[2] * b.shape[2] > _SMALL:
            return torch.bmm(a, b)
        return torch.cat([torch.bmm(a[i : i + 1], b[i : i + 1]) for i in range(len(a))])
    finally:
        switch.fp32_precision = usual


@torch.library.custom_op("altgrad::bmm_bf16", mutates_args=())
def bmm_bf16_compiled(a: Tensor, b: Tensor) -> Tensor:
    """The same in compiled programs, on CPUs by a kernel of our own: that needs a compiler.

    As an operator, which the compiler leaves as it is. Eagerly one would import the compiler: two seconds.
    """
    native = None if a.is_cuda else native_bmm_bf16()
    return (native or bmm_bf16)(a, b)


@bmm_bf16_compiled.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[1], b.shape[2])


def multiply(a: Tensor, b: Tensor, spans: Spans) -> Tensor:
    """``a @ b``, each lane in its own way."""
    if len(spans) == 1:
        exact = bmm_bf16_compiled if torch.compiler.is_compiling() else bmm_bf16
        return exact(a, b) if spans[0].exact else torch.bmm(a, b)
    pieces = [multiply(a[s.start : s.stop], b[s.start : s.stop], (Span(0, s.stop - s.start, s.exact),)) for s in spans]
    return torch.cat(pieces)


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, product: "Product") -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.product = product
        return multiply(x, w, product.output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, w = ctx.saved_tensors
        product = ctx.product
        return multiply(gradient, w.mT, product.input), multiply(x.mT, gradient, product.weight), None


class Product(NamedTuple):
    """The three products of one matrix: its output, and the gradients of its input and of its weight."""

    output: Spans
    input: Spans
    weight: Spans

    def __call__(self, x: Tensor, w: Tensor) -> Tensor:
        """``x @ w`` for ``x`` of ``(L, N, in)`` and ``w`` of ``(L, in, out)``."""
        if any(span.exact for spans in self for span in spans):
            return _Multiply.apply(x, w, self)
        return torch.bmm(x, w)


def product_of(activation: Sequence[bool], weight: Sequence[bool], gradient: Sequence[bool]) -> Product:
    """The products of a matrix, from which of its operands are exact in bf16, lane by lane.

    >>> product_of([True, True], [True, False], [False, False]).output
    (Span(start=0, stop=1, exact=True), Span(start=1, stop=2, exact=False))
    """
    return Product(_spans(activation, weight), _spans(gradient, weight), _spans(activation, gradient))


def _spans(a: Sequence[bool], b: Sequence[bool]) -> Spans:
    both = [x and y for x, y in zip(a, b, strict=True)]
    spans, start = [], 0
    for exact, run in itertools.groupby(both):
        stop = start + len(list(run))
        spans.append(Span(start, stop, exact))
        start = stop
    return tuple(spans)
