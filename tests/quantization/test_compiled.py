"""torch.compile: of `ops` by a caller, and of the kernels by `fused`; how many programs there are, and which engine."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import numbers
from grid_oracle import edge_values, near_values, same_bits
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from altgrad.quantization import fused, kernels, ops
from altgrad.quantization.formats import BF16, E3M4, E4M3, E5M2, E7M0, FORMAT_REGISTRY, FP8_FORMATS, FP16, FP32

pytestmark = pytest.mark.usefixtures("honest_compilation")

SCALE = torch.tensor(0.3)
KEY = torch.tensor(kernels.stream_keys([0], step=3, stream=1)[0], dtype=torch.int32)


def example(size: int = 500) -> Tensor:
    values = np.concatenate([near_values(E4M3, 100), edge_values(E4M3)])[:size]
    return torch.cat([torch.from_numpy(values[1:]), torch.tensor([math.nan])])


BITS = ops.random_bits(example().shape, seed=0, step=1)
STEPS = (torch.arange(500) % 256 - 128).to(torch.int8)

#: Functions of values and a scale, to be compiled by whoever calls them.
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "quantize": lambda x, scale: ops.quantize(x, E4M3, scale),
    "quantize_stochastic": lambda x, scale: ops.quantize_stochastic(x, E4M3, scale, BITS),
    "dequantize": lambda x, scale: ops.dequantize(x, scale),
    "encode": lambda x, scale: ops.encode(x, E4M3, scale),
    "decode": lambda x, scale: ops.decode(x.to(torch.uint8), E5M2, scale),
    "rung": lambda x, scale: ops.rung(x.to(torch.uint8)),
    "step_rungs": lambda x, scale: ops.step_rungs(x.to(torch.uint8), STEPS, E4M3),
    "grid_state": lambda x, scale: ops.grid_state(x, E7M0, scale),
    "random_bits": lambda x, scale: ops.random_bits(x.shape, seed=0, step=1, stream=2),
}


class TestCompiledByTheCaller:
    @pytest.mark.usefixtures("compiler")
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_every_function_is_one_graph_with_the_same_bits(self, name: str) -> None:
        x = (torch.arange(500) % 256).float() if name in ("decode", "rung", "step_rungs") else example()
        function = FUNCTIONS[name]
        assert same_bits(torch.compile(function, fullgraph=True)(x, SCALE), function(x, SCALE))

    @pytest.mark.usefixtures("compiler")
    @pytest.mark.parametrize("name", ["quantize", "quantize_stochastic", "dequantize"])
    def test_gradients_are_the_same(self, name: str) -> None:
        gradients = []
        for function in (FUNCTIONS[name], torch.compile(FUNCTIONS[name], fullgraph=True)):
            x = example().requires_grad_()
            (gradient,) = torch.autograd.grad(function(x, SCALE), x, torch.arange(500.0))
            gradients.append(gradient)
        assert same_bits(*gradients)

    @pytest.mark.parametrize("name", ["quantize", "quantize_stochastic"])
    def test_one_graph_serves_every_format_but_bf16(self, name: str) -> None:
        def function(x: Tensor, n: kernels.FormatNumbers, scale: Tensor) -> Tensor:
            return ops.quantize(x, n, scale) if name == "quantize" else ops.quantize_stochastic(x, n, scale, BITS)

        counter, x = CompileCounter(), example()
        compiled = torch.compile(function, fullgraph=True, backend=counter)
        for format in FORMAT_REGISTRY.values():
            n = numbers(format)
            assert same_bits(compiled(x, n, SCALE), function(x, n, SCALE))
            assert counter.frame_count == 1 + (format in (BF16, FP16) and name == "quantize"), format.name
        for scale in (torch.tensor(2.0), torch.tensor(1e-5)):
            assert same_bits(compiled(x, n, scale), function(x, n, scale))
        assert counter.frame_count <= 2

    @pytest.mark.usefixtures("compiler")
    def test_a_scale_without_meaning_fails_when_the_graph_runs(self) -> None:
        compiled = torch.compile(FUNCTIONS["quantize"], fullgraph=True)
        for bad in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(RuntimeError, match=r"altgrad\.quantization does not accept"):
                compiled(example(), torch.tensor(bad))
        assert same_bits(compiled(example(), SCALE), ops.quantize(example(), E4M3, SCALE))

    @pytest.mark.usefixtures("compiler")
    def test_nan_without_a_code_fails_when_the_graph_runs(self) -> None:
        compiled = torch.compile(lambda x: ops.encode(x, E3M4), fullgraph=True)
        with pytest.raises(RuntimeError, match=r"altgrad\.quantization does not accept"):
            compiled(example())
        assert torch.equal(compiled(example()[:-1]), ops.encode(example()[:-1], E3M4))

    def test_a_bad_number_for_a_scale_fails_when_it_is_compiled(self) -> None:
        compiled = torch.compile(lambda x: ops.quantize(x, E4M3, -1.0), backend="eager")
        with pytest.raises(Exception, match=r"does not accept|scale must be positive"):
            compiled(example())


def programs() -> int:
    """How many graphs were compiled so far."""
    return counters["stats"]["unique_graphs"]


CALLS: dict[str, Callable[[Tensor, Any, Any], Tensor]] = {
    "quantize": lambda x, format, scale: fused.quantize(x, format, scale, torch.empty_like(x)),
    "quantize_stochastic": lambda x, format, scale: fused.quantize_stochastic(
        x, format, scale, KEY, torch.empty_like(x)
    ),
    "quantize_and_count": lambda x, format, scale: fused.quantize_and_count(
        x, format, scale, x.to(torch.int8), torch.empty_like(x, dtype=torch.int8), torch.empty_like(x)
    ),
    "decode_states": lambda x, format, scale: fused.decode_states(x.to(torch.int8), format, scale, torch.empty_like(x)),
    "step_states": lambda x, format, scale: fused.step_states(
        x.to(torch.int8), x.to(torch.int8), format, torch.empty_like(x, dtype=torch.int8)
    ),
}


class TestFused:
    @pytest.mark.usefixtures("compiler")
    @pytest.mark.parametrize("name", CALLS)
    def test_one_program_serves_every_format_scale_and_length(self, name: str) -> None:
        call, values = CALLS[name], torch.linspace(-100, 100, 500)
        none = programs()
        call(values, E4M3, 0.3)
        assert programs() == none + 1
        wide = {"quantize": (FP16, FP32), "quantize_stochastic": (FP16, FP32, BF16)}.get(name, ())
        for format in (*FP8_FORMATS, *wide):
            call(values[: 2 + format.exponent_bits * 40], format, torch.tensor(2.0))
            assert programs() == none + 1, format.name
        if name == "quantize":
            for _ in range(2):
                call(values, BF16, 0.3)
                assert programs() == none + 2

    @pytest.mark.usefixtures("compiler")
    def test_one_program_serves_every_shape(self) -> None:
        none = programs()
        for shape in ((500,), (20, 30), (2, 3, 50)):
            x = torch.ones(shape)
            fused.quantize(x, E4M3, 0.3, torch.empty_like(x))
        assert programs() <= none + 1

    @pytest.mark.parametrize("threads", [1, 2])
    @pytest.mark.parametrize("size", [(1 << 16) - 1, 1 << 16, (1 << 16) + 13])
    def test_threads_change_no_bit(self, threads: int, size: int) -> None:
        x, before = torch.from_numpy(near_values(E4M3, size)), torch.zeros(size, dtype=torch.int8)
        out, after, usual = torch.empty_like(x), torch.empty_like(before), torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            flips = fused.quantize_and_count(x, E4M3, 0.3, before, after, out)
            drawn = fused.quantize_stochastic(x, E4M3, 0.3, KEY, torch.empty_like(x))
        finally:
            torch.set_num_threads(usual)
        assert same_bits(out, ops.quantize(x, E4M3, 0.3))
        assert torch.equal(after, ops.grid_state(x, E4M3, 0.3))
        assert flips == after.count_nonzero()
        expected = ops.quantize_stochastic(x, E4M3, 0.3, kernels.random_bits(KEY, size))
        assert same_bits(drawn, expected)

    def test_says_why_where_it_is_eager(self) -> None:
        for device in ("cpu", "no such device"):
            engine = fused.engine(device)
            assert engine.name in ("compiled", "eager")
            assert bool(engine.reason) == (engine.name == "eager")
        assert fused.engine("no such device").name == "eager"

    def test_a_machine_without_a_compiler_computes_the_same(self, tmp_path: Path) -> None:
        script = """if True:
            import json, sys, torch
            from test_compiled import counted_by_format
            from altgrad.quantization import fused

            json.dump([*fused.engine(), counted_by_format()], sys.stdout)
            """
        bare = {"PATH": "", "CXX": "/nonexistent/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script],
            cwd=Path(__file__).parent,
            env=os.environ | bare,
            stdout=subprocess.PIPE,
            check=True,
        )
        name, reason, results = json.loads(done.stdout)
        assert name == "eager"
        assert reason != ""
        assert results == counted_by_format()


def counted_by_format() -> list[list[int]]:
    """Flips, bits of values, and states, of some values in every format of eight bits."""
    x, results = torch.linspace(-3, 3, 1000), []
    for format in FP8_FORMATS:
        out, before = torch.empty(1000), torch.zeros(1000, dtype=torch.int8)
        after = torch.empty_like(before)
        flips = fused.quantize_and_count(x, format, 0.01, before, after, out)
        results.append([int(flips), *out.view(torch.int32).tolist(), *after.tolist()])
    return results
