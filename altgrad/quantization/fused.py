"""One pass over memory: the kernels under `torch.compile`, writing into buffers that are already there.

Results equal those of `altgrad.quantization.ops` bit for bit; what differs is the time. One graph serves every format
(bf16 apart). Where PyTorch finds no compiler the same expressions run eagerly, and `engine` says so. No gradient flows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from altgrad.quantization import kernels
from altgrad.quantization.formats import FP8Format
from altgrad.quantization.kernels import FormatNumbers
from altgrad.quantization.ops import NAN_STATE, checked_numbers, checked_scale, require_floating, require_integers


class Engine(NamedTuple):
    """What runs the kernels on a kind of device."""

    #: ``compiled`` or ``eager``.
    name: str
    #: Why it is eager; empty where it is compiled.
    reason: str = ""


@functools.cache
def engine(device_type: str = "cpu") -> Engine:
    """What runs the kernels on a kind of device (``cpu``, ``cuda``), found once a process by compiling a tiny program.

    >>> engine().name in ("compiled", "eager")
    True
    """
    if torch._dynamo.config.disable:
        return Engine("eager", "compilation is disabled (TORCHDYNAMO_DISABLE)")
    try:
        torch.compile(torch.neg)(torch.zeros(1, device=device_type))
    except RuntimeError as error:
        return Engine("eager", str(error).strip().splitlines()[0])
    return Engine("compiled")


def quantize(x: Tensor, format: FP8Format | FormatNumbers, scale: float | Tensor, out: Tensor) -> Tensor:
    """`ops.quantize` into ``out``, which may be ``x`` itself.

    Args:
        x: floating-point values of any shape.
        format: the number format, or the numbers of one format a lane.
        scale: what one unit of the format is worth, > 0 and finite.
        out: a floating-point tensor of the shape of ``x``.

    Returns:
        ``out``.

    Raises:
        ValueError: as `ops.quantize`, or ``out`` does not lie beside ``x``.

    >>> from altgrad.quantization.formats import E4M3
    >>> x = torch.tensor([0.3, 1000.0])
    >>> quantize(x, E4M3, 1.0, out=x)
    tensor([3.1250e-01, 4.4800e+02])
    """
    require_floating(x)
    require_floating(out)
    _require_beside(x, out)
    _run(_quantize, x, format, scale, out)
    return out


def quantize_stochastic(
    x: Tensor, format: FP8Format | FormatNumbers, scale: float | Tensor, key: Tensor, out: Tensor
) -> Tensor:
    """`ops.quantize_stochastic` into ``out``, its random bits made on the way.

    Args:
        x: floating-point values of any shape; the elements under one key are counted in row-major order.
        format: the number format, or the numbers of one format a lane.
        scale: what one unit of the format is worth, > 0 and finite.
        key: int32 keys (`kernels.stream_keys`): 0-d, or one a lane (the first dimension of ``x``).
        out: a floating-point tensor of the shape of ``x``.

    Returns:
        ``out``.

    Raises:
        ValueError: as `ops.quantize`, or ``out`` does not lie beside ``x``.

    >>> from altgrad.quantization import ops
    >>> from altgrad.quantization.formats import E4M3
    >>> x = torch.linspace(0.1, 1.0, 100)
    >>> key = torch.tensor(kernels.stream_keys([0], step=1, stream=2)[0], dtype=torch.int32)
    >>> bits = ops.random_bits(x.shape, seed=0, step=1, stream=2)
    >>> same = ops.quantize_stochastic(x, E4M3, 1.0, bits)
    >>> torch.equal(quantize_stochastic(x, E4M3, 1.0, key, out=torch.empty_like(x)), same)
    True
    """
    require_floating(x)
    require_floating(out)
    _require_beside(x, out)
    if key.dtype != torch.int32 or key.numel() not in (1, len(x) if x.dim() else 1):
        raise ValueError(f"key must be int32, one or one a lane, got {key.dtype} of shape {tuple(key.shape)}")
    _run(_quantize_stochastic, x, format, scale, out, key)
    return out


def quantize_and_count(
    x: Tensor, format: FP8Format | FormatNumbers, scale: float | Tensor, before: Tensor, after: Tensor, out: Tensor
) -> Tensor:
    """`ops.quantize` into ``out``, `ops.grid_state` into ``after``, and how many states are not those of ``before``.

    Args:
        x: floating-point values of any shape.
        format: an 8-bit format, or the numbers of one a lane.
        scale: what one unit of the format is worth, > 0 and finite.
        before: int8 states of the shape of ``x``: what the elements were.
        after: int8 of the shape of ``x``: what they are now. It may be ``before`` itself, at the cost of a copy.
        out: a floating-point tensor of the shape of ``x``.

    Returns:
        The number of flips, 0-d int64.

    Raises:
        ValueError: as `ops.quantize`; a buffer does not lie beside ``x``; states are not int8; or a format is not 8
            bits wide.

    >>> from altgrad.quantization.formats import E4M3
    >>> x, before = torch.tensor([1.0, 2.0]), torch.tensor([56, 63], dtype=torch.int8)
    >>> after = torch.empty_like(before)
    >>> quantize_and_count(x, E4M3, 1.0, before, after, out=torch.empty_like(x)), after
    (tensor(1), tensor([56, 64], dtype=torch.int8))
    """
    require_floating(x)
    require_floating(out)
    _require_states(before, after)
    _require_beside(x, before, after, out)
    if after.data_ptr() == before.data_ptr():
        before = before.clone()
    _require_eight_bits(format)
    return _run(_quantize_and_count, x, format, scale, before, after, out).sum()


def decode_states(states: Tensor, format: FP8Format | FormatNumbers, scale: float | Tensor, out: Tensor) -> Tensor:
    """The values of `ops.grid_state` times the scale, into ``out``: arithmetic on codes, no table is searched.

    Args:
        states: int8 of any shape.
        format: an 8-bit format, or the numbers of one a lane.
        scale: what one unit of the format is worth, > 0 and finite.
        out: a floating-point tensor of the shape of ``states``.

    Returns:
        ``out``, NaN where the state is, or is none of the format's.

    Raises:
        ValueError: as in `quantize_and_count`.

    >>> from altgrad.quantization.formats import E4M3
    >>> decode_states(torch.tensor([0, 56, -57, -128], dtype=torch.int8), E4M3, 2.0, out=torch.empty(4))
    tensor([ 0.0000,  2.0000, -2.2500,     nan])
    """
    require_floating(out)
    _require_states(states)
    _require_beside(states, out)
    _require_eight_bits(format)
    _run(_decode_states, states, format, scale, out)
    return out


def step_states(states: Tensor, rungs: Tensor, format: FP8Format | FormatNumbers, out: Tensor) -> Tensor:
    """Move states up by whole rungs (down where negative), as far as the ends of the grid, into ``out``.

    Args:
        states: int8 of any shape; NaN stays.
        rungs: integers of the shape of ``states``.
        format: an 8-bit format, or the numbers of one a lane.
        out: int8 of the shape of ``states``, which may be ``states`` itself.

    Returns:
        ``out``.

    Raises:
        ValueError: as in `quantize_and_count`, or rungs that are not integers.

    >>> from altgrad.quantization.formats import E4M3
    >>> states, rungs = torch.tensor([0, 56, -128], dtype=torch.int8), torch.tensor([-3, 100, 1], dtype=torch.int8)
    >>> step_states(states, rungs, E4M3, out=states)
    tensor([  -3,  126, -128], dtype=torch.int8)
    """
    _require_states(states, out)
    _require_beside(states, rungs, out)
    _require_eight_bits(format)
    require_integers(rungs)
    _run(_step_states, states, format, 1.0, rungs, out)
    return out


def _quantize(x: Tensor, n: FormatNumbers, scale: Tensor, out: Tensor) -> None:
    out.copy_(kernels.round_nearest(x.to(torch.float32) / scale, n) * scale)


def _quantize_stochastic(x: Tensor, n: FormatNumbers, scale: Tensor, out: Tensor, key: Tensor) -> None:
    bits = kernels.random_bits(key, x.numel() // key.numel()).view(x.shape)
    out.copy_(kernels.round_stochastic(x.to(torch.float32) / scale, n, bits) * scale)


def _quantize_and_count(
    x: Tensor, n: FormatNumbers, scale: Tensor, before: Tensor, after: Tensor, out: Tensor
) -> Tensor:
    v = x.to(torch.float32) / scale
    q, rungs = kernels.round_to_rungs(v, n)
    states = torch.where(v != v, NAN_STATE, rungs)
    out.copy_(q * scale)
    after.copy_(states.to(torch.int8))
    return (states - before.to(torch.int32)).abs().clamp_max(1).sum(-1, dtype=torch.int32)


def _decode_states(states: Tensor, n: FormatNumbers, scale: Tensor, out: Tensor) -> None:
    rungs = states.to(torch.int32)
    out.copy_(torch.where(rungs.abs() > n.max_rung, torch.nan, kernels.rung_to_value(rungs, n)) * scale)


def _step_states(states: Tensor, n: FormatNumbers, scale: Tensor, rungs: Tensor, out: Tensor) -> None:
    here = states.to(torch.int32)
    out.copy_(torch.where(here == NAN_STATE, here, kernels.step_rungs(here, rungs, n)).to(torch.int8))


#: Tensors of fewer elements are not worth waking threads for.
_PARALLEL_FROM = 1 << 16


def exact_options() -> dict[str, Any]:
    """Options of `torch.compile` by which a GPU divides and keeps subnormals as outside of compiled programs.

    >>> half = torch.compile(lambda x: x / 2, options=exact_options())
    """
    wanted = ("eager_numerics.division_rounding", "eager_numerics.disable_ftz")
    return dict.fromkeys(set(wanted) & set(torch._inductor.list_options()), True)


@functools.cache
def _program(kernel: Callable[..., Any], parallel: bool) -> Callable[..., Any]:
    """A compiled kernel. Left alone, the compiler decides about threads by the first tensor it meets, for good."""
    threads: dict[str, Any] = {"cpp.dynamic_threads": True} if parallel else {"cpp.threads": 1}
    return torch.compile(kernel, dynamic=True, options=exact_options() | threads)


@torch.no_grad()
def _run(
    kernel: Callable[..., Any], x: Tensor, format: FP8Format | FormatNumbers, scale: float | Tensor, *rest: Tensor
) -> Tensor:
    """Call a kernel on ``x`` and its buffers, as rows where each row has one format and one scale."""
    n, factor = checked_numbers(x, format), checked_scale(x, scale)
    if x.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=x.device)
    single = n.max_value.numel() == factor.numel() == 1
    by_lane = all(t.numel() == 1 or t.shape == (x.shape[0], *[1] * (x.dim() - 1)) for t in (n.max_value, factor))
    # One tensor each, also where out is x; and of their own, since each depth of views would be compiled anew.
    data = {id(t): t.data for t in (x, *rest)}
    if by_lane and all(t.is_contiguous() for t in data.values()):
        rows = 1 if single else len(x)
        data = {key: t.view(rows, -1).data if t.shape == x.shape else t for key, t in data.items()}
        factor = factor.view(()) if single else factor.view(-1, 1)
        if n.max_value.dim() != factor.dim():
            n = n.view() if single else n.view(-1, 1)
    compiled = engine(x.device.type).name == "compiled" and not _overlap(*data.values(), factor)
    run = _program(kernel, x.numel() >= _PARALLEL_FROM) if compiled else kernel
    return run(data[id(x)], n, factor, *(data[id(t)] for t in rest))


def _overlap(*tensors: Tensor) -> bool:
    """Different tensors share memory, which compiled programs do not accept."""
    storages = [t.untyped_storage().data_ptr() for t in tensors]
    return len(set(storages)) < len(storages)


def _require_beside(x: Tensor, *others: Tensor) -> None:
    for other in others:
        if other.shape != x.shape or other.device != x.device:
            there, here = f"{tuple(other.shape)} on {other.device}", f"{tuple(x.shape)} on {x.device}"
            raise ValueError(f"a buffer must be of shape {here}, got {there}")


def _require_states(*states: Tensor) -> None:
    for each in states:
        if each.dtype != torch.int8:
            raise ValueError(f"states must be int8, got {each.dtype}")


def _require_eight_bits(format: FP8Format | FormatNumbers) -> None:
    bits = format.bits if isinstance(format, FP8Format) else 8 if int(format.max_rung.max()) < 128 else 16
    if bits != 8:
        raise ValueError(f"states are 8 bits wide, got a format of {bits}")
