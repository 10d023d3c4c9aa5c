"""Products of two quantized operands on bf16 hardware: the same numbers, and only where both operands are exact."""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import assert_same_rows, lane_rows, run, small, steps_from_equal_states
from torch import Tensor
from torch._inductor.codecache import CppCodeCache

from altgrad.quantization.formats import BF16, E2M5, E4M3, E5M2, FP8_FORMATS, FP16, FP32, FP8Format
from altgrad.quantization.kernels import format_numbers, round_nearest
from altgrad.training import lanes as lanes_module
from altgrad.training import products
from altgrad.training.bf16_bmm import native_bmm_bf16
from altgrad.training.config import RunConfig
from altgrad.training.corpus import Corpus
from altgrad.training.lanes import Lanes
from altgrad.training.precision import Scaler
from altgrad.training.products import bmm_bf16, bmm_bf16_compiled, is_exact_in_bf16, multiply, product_of

#: A product in bf16: (L, m, k), (L, k, n) -> (L, m, n).
Bmm = Callable[[Tensor, Tensor], Tensor]

CPU = torch.device("cpu")
#: Below this bf16 hardware may take a magnitude for zero.
LEAST_NORMAL = 2.0**-126
#: (m, k, n): nanoGPT's forward products at its CPU size, the wider model's, and some that fill no vector.
SHAPES = [(768, 128, 384), (768, 128, 128), (768, 128, 512), (768, 512, 128), (1024, 384, 1536)]
SHAPES += [(65, 129, 67), (33, 513, 80), (5, 3, 7), (1, 9, 1), (7, 1, 3), (1, 1, 1)]
#: Whether PyTorch hands a product to the bf16 library depends on its size; the first is below, three of it are above.
LANE_SHAPES = [(16, 8, 32), (64, 32, 96), (64, 128, 32), (768, 128, 256), (768, 512, 128)]
ALL_THREE = ("weights", "activations", "gradients")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[bmm_bf16, bmm_bf16_compiled], ids=["eager", "compiled"])
def bmm(request: pytest.FixtureRequest) -> Bmm:
    """Both ways of multiplying in bf16."""
    return request.param


@pytest.fixture
def on_bf16_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """Go the way of bf16 on any machine: where it is not faster, it is as right."""
    monkeypatch.setattr(lanes_module, "has_bf16_products", lambda device_type: True)


@pytest.fixture
def switch() -> Iterator[Any]:
    """PyTorch's switch for the whole process, at a setting that is not its default."""
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    usual = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    yield matmul
    matmul.fp32_precision = usual


def finite_values(format: FP8Format) -> Tensor:
    values = torch.tensor([format.to_real(code) for code in range(1 << format.bits)], dtype=torch.float64)
    return values[values.isfinite()].float()


def survives(x: Tensor) -> Tensor:
    """Which values bf16 has too, of those that are zero or of normal magnitude."""
    return (x.bfloat16().float() == x) | ((x != 0) & (x.abs() < LEAST_NORMAL))


def operand(format: FP8Format, *shape: int, scale: float = 2.0**-7) -> Tensor:
    """Random numbers of many binades on a format's grid."""
    x = torch.randn(shape) * torch.randn(shape).exp()
    return round_nearest(x, format_numbers([format])) * scale


def three_products(m: int, k: int, n: int, lanes: int, format: FP8Format) -> list[tuple[Tensor, Tensor]]:
    """The operands of a matrix's output, of the gradient of its input, and of that of its weight."""
    x, w, gradient = operand(format, lanes, m, k), operand(format, lanes, k, n), operand(format, lanes, m, n)
    return [(x, w), (gradient, w.mT), (x.mT, gradient)]


class TestBits:
    @pytest.mark.parametrize("scaling", ["power_of_two", "none"])
    @pytest.mark.parametrize("format", [*FP8_FORMATS, BF16], ids=lambda format: format.name)
    def test_bf16_has_every_value_under_every_scale(self, format: FP8Format, scaling: str) -> None:
        config = small(scaling=scaling, amax_history=1)
        values = finite_values(format)
        for amax in (1e-6, 0.02, 0.07, 1.0, 448.0, 1e5):
            scaler = Scaler([[format]], config, CPU)
            scale = scaler.observe(torch.tensor([[amax]]), scaler.slot(0))
            assert survives(values * scale).all()
        assert is_exact_in_bf16(format, config)

    @pytest.mark.parametrize(("format", "scaling"), [(E4M3, "amax"), (FP16, "none"), (FP16, "power_of_two")])
    def test_other_values_it_has_not(self, format: FP8Format, scaling: str) -> None:
        config = small(scaling=scaling, amax_history=1)
        scaler = Scaler([[format]], config, CPU)
        scale = scaler.observe(torch.tensor([[0.07]]), scaler.slot(0))
        assert not survives(finite_values(format) * scale).all()
        assert not is_exact_in_bf16(format, config)

    @pytest.mark.parametrize("scaling", ["power_of_two", "none", "amax"])
    def test_what_qualifies(self, scaling: str) -> None:
        config = small(scaling=scaling)
        qualify = [format for format in (*FP8_FORMATS, BF16, FP16, FP32) if is_exact_in_bf16(format, config)]
        assert qualify == ([BF16] if scaling == "amax" else [*FP8_FORMATS, BF16])


class TestProduct:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_equals_float64_where_float32_adds_without_rounding(self, shape: tuple[int, int, int], bmm: Bmm) -> None:
        m, k, n = shape
        x, w, gradient = (torch.randint(-64, 65, (2, *s)).float() for s in ((m, k), (k, n), (m, n)))
        for a, b in ((x, w), (gradient, w.mT), (x.mT, gradient)):
            assert torch.equal(bmm(a, b).double(), a.double() @ b.double())

    @pytest.mark.parametrize("format", [E2M5, E4M3, E5M2], ids=lambda format: format.name)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_errs_as_float32_does(self, shape: tuple[int, int, int], format: FP8Format, bmm: Bmm) -> None:
        for a, b in three_products(*shape, lanes=1, format=format):
            exact, size = a.double() @ b.double(), a.abs().double() @ b.abs().double()
            ours, theirs = bmm(a, b) - exact, torch.bmm(a, b) - exact
            # Measured over all formats: 1.9 times, and 6e-7 (float32 itself 3e-7). Sums in bf16 would err by 1e-3.
            assert ours.norm() <= 3 * theirs.norm()
            assert (ours.abs() <= 1e-6 * size).all()

    def test_magnitudes_below_float32s_normal_range_are_all_that_may_be_lost(self, bmm: Bmm) -> None:
        a = torch.full((1, 64, 64), LEAST_NORMAL / 4)
        a[:, :, 1] = 2.0**-20
        b = torch.ones(1, 64, 64)
        assert ((bmm(a, b) - torch.bmm(a, b)).abs() <= 64 * LEAST_NORMAL).all()

    def test_takes_operands_however_they_lie(self, bmm: Bmm) -> None:
        a, b = operand(E4M3, 3, 80, 66), operand(E4M3, 3, 66, 70)
        views = [
            (torch.cat([a, a], 2)[:, :, :66], torch.cat([b, b], 1)[:, :66]),
            (a.mT.contiguous().mT, b.mT.contiguous().mT),
            (a.repeat_interleave(2, 2)[:, :, ::2], b.repeat_interleave(3, 1)[:, ::3]),
            (torch.stack([a, a], 3)[..., 1], torch.stack([b, b], 3)[..., 0]),
            (a.transpose(0, 1).contiguous().transpose(0, 1), b.permute(2, 1, 0).contiguous().permute(2, 1, 0)),
        ]
        for left, right in views:
            assert torch.equal(left, a)
            assert torch.equal(right, b)
            assert torch.equal(bmm(left, right), bmm(a, b))

    def test_operands_that_do_not_fit_are_refused(self, bmm: Bmm) -> None:
        for shape in ((1, 63, 64), (2, 64, 64)):
            with pytest.raises((RuntimeError, ValueError)):
                bmm(torch.ones(1, 64, 64), torch.ones(shape))

    @pytest.mark.parametrize("lost", [torch.inf, torch.nan])
    def test_a_lane_that_blew_up_stays_so_and_harms_no_other(self, lost: float, bmm: Bmm) -> None:
        a, b = operand(E5M2, 2, 64, 64), operand(E5M2, 2, 64, 64)
        healthy = bmm(a, b)
        a[0, 3] = lost
        product = bmm(a, b)
        assert not product[0, 3].isfinite().any()
        assert torch.equal(product[1], healthy[1])


class TestLanes:
    @pytest.mark.parametrize("threads", [1, 2])
    @pytest.mark.parametrize("shape", LANE_SHAPES, ids=str)
    def test_together_are_as_alone(self, shape: tuple[int, int, int], threads: int, bmm: Bmm) -> None:
        torch.set_num_threads(threads)
        # bf16 itself has the most bits: nearly every sum is rounded, so another order of addition shows.
        for a, b in three_products(*shape, lanes=5, format=BF16):
            alone = [bmm(a[i : i + 1], b[i : i + 1]) for i in range(5)]
            assert torch.equal(bmm(a, b), torch.cat(alone))

    @pytest.mark.parametrize("exact", [[True, True, False], [False, True, False], [True, False, True]], ids=str)
    def test_that_differ_are_each_as_alone(self, exact: list[bool]) -> None:
        def results(lanes: slice) -> list[Tensor]:
            x, w = leaf[0][lanes].clone().requires_grad_(), leaf[1][lanes].clone().requires_grad_()
            y = product_of(exact[lanes], exact[lanes], exact[lanes])(x, w)
            return [y.detach(), *torch.autograd.grad(y, (x, w), gradient[lanes])]

        # Not on a grid: what the two ways give then differs, so a lane that went the wrong one would be seen.
        leaf, gradient = (torch.randn(3, 64, 512), torch.randn(3, 512, 64)), torch.randn(3, 64, 64)
        alone = zip(*(results(slice(i, i + 1)) for i in range(3)), strict=True)
        for together, apart in zip(results(slice(0, 3)), alone, strict=True):
            assert torch.equal(together, torch.cat(apart))

    @pytest.mark.usefixtures("on_bf16_hardware")
    def test_in_float32_do_not_know_of_bf16(self, corpus: Corpus) -> None:
        def float32_lane(way: str) -> dict[str, np.ndarray]:
            settings: dict[str, Any] = {"products": way, "tensors": ALL_THREE, "steps": 10}
            return lane_rows(run([small(format=f, **settings) for f in ("E5M2", "fp32", "E4M3")], corpus), "lane1")

        assert_same_rows(float32_lane("bf16"), float32_lane("float32"))


class TestGradients:
    def test_equal_those_of_bmm(self) -> None:
        x, w = (operand(E4M3, 2, *shape).requires_grad_() for shape in ((96, 64), (64, 48)))
        gradient = operand(E5M2, 2, 96, 48)
        ours = torch.autograd.grad(product_of([True] * 2, [True] * 2, [True] * 2)(x, w), (x, w), gradient)
        wide = (x.detach().double().requires_grad_(), w.detach().double().requires_grad_())
        theirs = torch.autograd.grad(torch.bmm(*wide), wide, gradient.double())
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6 * float(other.abs().max()))

    @pytest.mark.parametrize(
        ("changes", "forward", "backward"),
        [
            ({"tensors": ("weights",)}, 0, 0),
            ({"tensors": ("activations",)}, 0, 0),
            ({"tensors": ("weights", "activations")}, 9, 0),
            ({"tensors": ("weights", "gradients")}, 0, 9),
            ({"tensors": ("activations", "gradients")}, 0, 9),
            ({"tensors": ALL_THREE}, 9, 18),
            ({"tensors": ALL_THREE, "gradient_format": "fp16"}, 9, 0),
            ({"tensors": ALL_THREE, "layers": "no_head"}, 8, 16),
            ({"tensors": ALL_THREE, "format": "bf16"}, 9, 18),
            ({"tensors": ALL_THREE, "format": "fp32"}, 0, 0),
            ({"tensors": ALL_THREE, "scaling": "amax"}, 0, 0),
            ({"tensors": ALL_THREE, "products": "float32"}, 0, 0),
        ],
        ids=str,
    )
    @pytest.mark.usefixtures("on_bf16_hardware")
    def test_go_the_way_their_operands_allow(
        self, changes: dict, forward: int, backward: int, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[tuple[Tensor, Tensor]] = []

        def spy(a: Tensor, b: Tensor) -> Tensor:
            calls.append((a.detach(), b.detach()))
            return bmm_bf16(a, b)

        monkeypatch.setattr(products, "bmm_bf16", spy)
        lanes = Lanes(["a"], {"a": small(**changes)}, corpus, CPU)
        lanes.begin(1, training=True)
        loss = lanes.loss(lanes.weights(), *lanes.batches.train(1)).sum()
        assert len(calls) == forward
        loss.backward()
        assert len(calls) == forward + backward
        for x in itertools.chain.from_iterable(calls):
            assert survives(x).all()


class TestSwitch:
    def test_is_as_before_after_a_product(self, switch: Any) -> None:
        bmm_bf16(torch.ones(1, 64, 64), torch.ones(1, 64, 64))
        assert switch.fp32_precision == "ieee"

    def test_and_after_one_that_fails(self, switch: Any) -> None:
        with pytest.raises(RuntimeError):
            bmm_bf16(torch.ones(1, 64, 64), torch.ones(1, 63, 64))
        assert switch.fp32_precision == "ieee"

    def test_is_off_for_products_in_float32(self, switch: Any) -> None:
        x, w = torch.randn(2, 64, 512), torch.randn(2, 512, 64)
        spans = product_of([True, False], [True, True], [False, False]).output
        assert torch.equal(multiply(x, w, spans)[1:], torch.bmm(x[1:], w[1:]))


@pytest.mark.usefixtures("on_bf16_hardware")
@pytest.mark.parametrize("format", ["E5M2", "E2M5"])
def test_ten_steps_agree_with_float32_from_equal_states(format: str, corpus: Corpus) -> None:
    """From the same state the losses of one step differ by the order of addition, and by codes that it flips."""

    def program(way: str) -> Lanes:
        config: RunConfig = small(format=format, products=way, tensors=ALL_THREE)
        return Lanes(["a"], {"a": config}, corpus, CPU)

    one, other = program("bf16"), program("float32")
    for theirs, ours in steps_from_equal_states(other, one, steps=10):
        np.testing.assert_allclose(ours.steps["loss"], theirs.steps["loss"], rtol=1e-3)
        np.testing.assert_allclose(ours.steps["grad_norm"], theirs.steps["grad_norm"], rtol=0.02)


def test_eager_products_do_not_import_the_compiler() -> None:
    """It takes one to two seconds, in every worker."""
    program = (
        "import sys, torch\n"
        "from altgrad.training.products import product_of\n"
        "product = product_of([True], [True], [False])\n"
        "x, w = torch.ones(1, 64, 64), torch.ones(1, 64, 64, requires_grad=True)\n"
        "product(x, w).sum().backward()\n"
        "assert product.output[0].exact\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_compiled_products_keep_their_operator() -> None:
    torch.library.opcheck(products.bmm_bf16_compiled, (torch.ones(2, 64, 64), torch.ones(2, 64, 64)))


class TestNative:
    """The kernel that compiled programs multiply with."""

    @pytest.fixture(autouse=True)
    def fresh(self) -> Iterator[None]:
        native_bmm_bf16.cache_clear()
        yield
        native_bmm_bf16.cache_clear()

    @pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="no bf16 products here")
    def test_is_built_where_the_processor_has_such_products(self) -> None:
        assert native_bmm_bf16() is not None

    def test_is_nowhere_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        assert native_bmm_bf16() is None

    def test_that_cannot_be_built_is_done_without(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails(source: str) -> None:
            raise RuntimeError("no such header")

        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        monkeypatch.setattr(CppCodeCache, "load", fails)
        a, b = operand(E5M2, 1, 64, 64), operand(E5M2, 1, 64, 64)
        assert torch.equal(bmm_bf16_compiled(a, b), bmm_bf16(a, b))
        assert "no such header" in caplog.text
