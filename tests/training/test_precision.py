"""Which matrix gets which format, how scales follow the data, and where the quantized values are used."""

import math

import numpy as np
import pytest
import torch
from small_runs import small
from torch import Tensor

from altgrad.quantization.formats import BF16, E4M3, E5M2, FORMAT_REGISTRY, FP8_FORMATS, FP16, FP32, FP8Format
from altgrad.quantization.ops import quantize
from altgrad.quantization.scaling import power_of_two_scale
from altgrad.training.config import ConfigError, LayerRule, ModelConfig
from altgrad.training.corpus import Corpus
from altgrad.training.lanes import Lanes
from altgrad.training.layers import layer_formats
from altgrad.training.loop import evaluate, train_step
from altgrad.training.model import cross_entropy, forward
from altgrad.training.precision import Flow, Scaler, WeightGrid
from altgrad.training.weights import Stack

CPU = torch.device("cpu")
TIED = ModelConfig(n_layer=1, n_head=2, n_embd=8, block_size=8)
UNTIED = ModelConfig(n_layer=1, n_head=2, n_embd=8, block_size=8, tied_head=False)
NAMES = ("wte", "wpe", "h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj", "lm_head")


def formats(layers: str | tuple[LayerRule, ...], model: ModelConfig = TIED) -> dict[str, str]:
    """Names of the matrices with a narrow format, and which."""
    found = layer_formats(small(format="E3M4", layers=layers, model=model))
    assert tuple(found) == NAMES[: 6 + (not model.tied_head)]
    return {name: format.name for name, format in found.items() if format != FP32}


def e3m4(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "E3M4")


class TestLayers:
    @pytest.mark.parametrize(
        ("preset", "tied", "untied"),
        [
            ("all", NAMES[:6], NAMES),
            ("attention", NAMES[2:4], NAMES[2:4]),
            ("mlp", NAMES[4:6], NAMES[4:6]),
            ("no_head", NAMES[1:6], NAMES[:6]),
            ("head", ("wte",), ("lm_head",)),
        ],
    )
    def test_presets(self, preset: str, tied: tuple[str, ...], untied: tuple[str, ...]) -> None:
        assert formats(preset) == e3m4(*tied)
        assert formats(preset, UNTIED) == e3m4(*untied)

    @pytest.mark.parametrize(
        ("rules", "expected"),
        [
            ([("lm_head", "bf16")], {"wte": "bf16"}),
            ([("wte", "E5M2"), ("lm_head", "bf16")], {"wte": "E5M2"}),
            ([("lm_head", "bf16"), ("wte", "E5M2")], {"wte": "bf16"}),
            ([("*.c_proj", "bf16"), ("h.*", None)], e3m4(*NAMES[2:6]) | dict.fromkeys((NAMES[3], NAMES[5]), "bf16")),
            ([("*.c_proj", "fp32"), ("h.*", "E5M2")], dict.fromkeys((NAMES[2], NAMES[4]), "E5M2")),
            ([("h.[0-3].mlp.*", None)], e3m4(*NAMES[4:6])),
        ],
        ids=str,
    )
    def test_the_first_rule_that_matches_wins(self, rules: list[tuple], expected: dict[str, str]) -> None:
        assert formats(tuple(LayerRule(*rule) for rule in rules)) == expected

    def test_rules_that_match_nothing_are_errors_all_at_once(self) -> None:
        with pytest.raises(ConfigError) as caught:
            formats((LayerRule("*.atn.*"), LayerRule("*"), LayerRule("h.1.*")))
        assert [problem.path for problem in caught.value.problems] == [("layers", 0, "match"), ("layers", 2, "match")]
        assert f"matches no matrix; there are {', '.join(NAMES[:6])}" in str(caught.value)

    def test_case_counts(self) -> None:
        with pytest.raises(ConfigError):
            formats((LayerRule("WTE"),))


class TestScaler:
    @pytest.mark.parametrize(
        ("mode", "amaxes", "scales"),
        [
            ("power_of_two", [448.0, 449.0, 100.0, 100.0, 100.0], [1.0, 2.0, 2.0, 2.0, 0.25]),
            ("amax", [448.0, 896.0, 100.0, 100.0, 100.0], [1.0, 2.0, 2.0, 2.0, 100 / 448]),
            ("none", [448.0, 1e9, 1e-9], [1.0, 1.0, 1.0]),
            ("power_of_two", [0.0, 448.0], [2.0**-33, 1.0]),
        ],
        ids=str,
    )
    def test_scales_follow_the_largest_of_a_window(self, mode: str, amaxes: list[float], scales: list[float]) -> None:
        scaler = Scaler([[E4M3]], small(scaling=mode, amax_history=3), CPU)
        assert scaler.scale.item() == 1.0
        found = [scaler.observe(torch.tensor([[amax]]), scaler.slot(i)).item() for i, amax in enumerate(amaxes)]
        assert found == pytest.approx(scales, rel=1e-6)

    @pytest.mark.parametrize("mode", ["power_of_two", "amax", "none"])
    @pytest.mark.parametrize("format", [BF16, FP16, FP32], ids=lambda format: format.name)
    def test_wide_formats_keep_a_scale_of_one(self, mode: str, format: FP8Format) -> None:
        scaler = Scaler([[format, E5M2]], small(scaling=mode), CPU)
        for i, amax in enumerate((1e-6, 1.0, 1e6)):
            scales = scaler.observe(torch.full((1, 2), amax), scaler.slot(i))
            assert scales[0, 0] == 1.0
            assert (scales[0, 1] == 1.0) == (mode == "none")

    def test_tensors_and_lanes_have_their_own_windows(self) -> None:
        scaler = Scaler([[E4M3, E4M3], [E4M3, E4M3]], small(amax_history=2), CPU)
        for step, (first, second) in enumerate([((1, 8), (2, 1)), ((2, 1), (1, 1)), ((1, 1), (1, 1))]):
            scaler.observe(448.0 * torch.tensor([first, second]), scaler.slot(step))
        assert scaler.scale.tolist() == [[2.0, 1.0], [2.0, 1.0]]
        assert scaler.history.tolist() == [[[448.0, 896.0], [448.0, 448.0]], [[448.0, 448.0], [448.0, 448.0]]]

    def test_a_lane_that_is_no_number_moves_no_other(self) -> None:
        scaler = Scaler([[E4M3, E4M3]], small(), CPU)
        for i, lost in enumerate((math.nan, math.inf)):
            assert scaler.observe(torch.tensor([[lost, 448.0]]), scaler.slot(i))[0, 1] == 1.0


def one_matrix(weight: list[list[float]], format: FP8Format, **changes: object) -> tuple[Stack, WeightGrid]:
    stack = Stack(["w"], {"w": torch.tensor([weight])}, CPU)
    return stack, WeightGrid(stack, [format], [0], [small(format=format.name, scaling="none", **changes)])


class TestStraightThrough:
    """A linear layer in E5M2 by hand: 0.3 is held as 0.3125, -1.1 as -1.0, 2.2 as 2.0."""

    WEIGHT, HELD = ((0.3, -1.1), (2.2, 1.0)), ((0.3125, -1.0), (2.0, 1.0))
    X, X_HELD = ((1.1, -0.3),), ((1.0, -0.3125),)

    def passed(self, *tensors: str) -> tuple[Tensor, Tensor, Tensor]:
        """Output, gradient of the input, gradient of the weight, for an output gradient of (1, 1.1)."""
        stack, _ = one_matrix([list(row) for row in self.WEIGHT], E5M2)
        config = small(scaling="none")
        formats = [E5M2 if kind in tensors else FP32 for kind in ("activations", "gradients")]
        enter, leave = (Flow([format], config, CPU) for format in formats)
        for flow in (enter, leave):
            flow.begin(flow.scaler.slot(1), training=True)
        x = torch.tensor([self.X], requires_grad=True)
        y = leave.leave(torch.bmm(enter.enter(x), stack.leaves()["w"]))
        y.backward(torch.tensor([[[1.0, 1.1]]]))
        stack.take_gradient()
        assert x.grad is not None
        return y.detach()[0], x.grad[0], stack.gradient[0, 0]

    def test_the_forward_pass_multiplies_held_values(self) -> None:
        y, _, _ = self.passed("activations")
        torch.testing.assert_close(y, torch.tensor(self.X_HELD) @ torch.tensor(self.HELD), rtol=0, atol=0)

    def test_the_backward_pass_sees_held_weights_and_held_activations(self) -> None:
        """The gradient itself passes both roundings unchanged."""
        _, to_input, to_weight = self.passed("activations")
        torch.testing.assert_close(to_input, torch.tensor([[0.3125 - 1.1, 2.0 + 1.1]]))
        torch.testing.assert_close(to_weight, torch.tensor([[1.0, 1.1], [-0.3125, -0.3125 * 1.1]]))

    def test_activations_are_held_only_when_asked(self) -> None:
        y, _, to_weight = self.passed()
        torch.testing.assert_close(y, torch.tensor(self.X) @ torch.tensor(self.HELD))
        torch.testing.assert_close(to_weight, torch.tensor([[1.1, 1.21], [-0.3, -0.33]]))

    def test_gradients_are_held_only_when_asked(self) -> None:
        _, to_input, to_weight = self.passed("activations", "gradients")
        torch.testing.assert_close(to_input, torch.tensor([[0.3125 - 1.0, 2.0 + 1.0]]))
        torch.testing.assert_close(to_weight, torch.tensor([[1.0, 1.0], [-0.3125, -0.3125]]))

    def test_masters_stay_and_are_what_the_optimizer_moves(self) -> None:
        stack, grid = one_matrix([list(row) for row in self.WEIGHT], E5M2)
        assert stack.stored[0, 0].tolist() == torch.tensor(self.WEIGHT).tolist()
        stack.stored[0, 0, 0, 0] = 0.4
        grid.begin(1)
        grid.settle(stack)
        assert stack.leaves()["w"][0].tolist() == [[0.375, -1.0], [2.0, 1.0]]
        assert stack.stored[0, 0, 0, 0] == torch.tensor(0.4)

    def test_without_masters_nothing_finer_is_kept(self) -> None:
        stack, grid = one_matrix([list(row) for row in self.WEIGHT], E5M2, storage="nearest")
        assert stack.stored[0, 0].tolist() == [list(row) for row in self.HELD]
        stack.stored[0, 0, 0, 0] = 0.4
        grid.begin(1)
        grid.settle(stack)
        assert stack.stored[0, 0, 0, 0] == 0.375


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_what_is_not_finite_has_no_shares_and_harms_no_other_lane(lost: float) -> None:
    flow = Flow([E4M3, E4M3], small(), CPU)
    flow.begin(flow.scaler.slot(1), training=True)
    x = torch.tensor([[[lost, 1.0]], [[448.0, 1.0]]])
    assert flow.quantize(x)[1].tolist() == [[448.0, 1.0]]
    for shares, other in zip(flow.shares, (0.5, 0.0), strict=True):
        assert math.isnan(shares[0])
        assert shares[1] == other


def trained(corpus: Corpus, **changes: object) -> Lanes:
    config = small(**changes)
    lanes = Lanes(["a"], {"a": config}, corpus, CPU)
    for step in (1, 2, 3):
        train_step(lanes, step)
    return lanes


@pytest.mark.parametrize("lanes", [1, 3, 8, 17])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_the_largest_magnitude_of_zeros_has_no_sign(zero: float, lanes: int) -> None:
    """PyTorch's maximum of both zeros is either, by the place in a tensor: a checkpoint would tell of neighbours."""
    flow = Flow([E4M3] * lanes, small(), CPU)
    flow.begin(flow.scaler.slot(1), training=True)
    flow.quantize(torch.full((lanes, 4, 33), zero))
    assert not flow.scaler.history.signbit().any()


class TestProgram:
    def test_evaluation_uses_held_weights_and_activations_and_moves_nothing(self, corpus: Corpus) -> None:
        lanes = trained(corpus, format="E6M1", lr=0.01)
        before = {name: tensor.clone() for name, tensor in lanes.tensors().items()}
        loss = evaluate(lanes)
        assert torch.equal(loss, evaluate(lanes))
        for name, tensor in lanes.tensors().items():
            assert torch.equal(tensor, before[name]), name

        e6m1 = FORMAT_REGISTRY["E6M1"]
        stored = {name.removesuffix("/stored"): tensor for name, tensor in before.items() if name.endswith("/stored")}
        held = {
            name: quantize(w, e6m1, before[f"{name}/scale"].item()) if w.dim() == 3 else w for name, w in stored.items()
        }

        def enter(name: str, x: Tensor) -> Tensor:
            return quantize(x, e6m1, before[f"{name}/activations.scale"].item())

        model = lanes.config.model
        pairs = list(lanes.batches.validation(lanes.config.eval_batches))
        by_hand = torch.stack([cross_entropy(forward(held, x, model, enter), y) for x, y in pairs]).mean()
        full = torch.stack([cross_entropy(forward(stored, x, model), y) for x, y in pairs]).mean()
        torch.testing.assert_close(loss[0], by_hand, rtol=1e-6, atol=0)
        assert (loss[0] - full).abs() > 1e-5

    @pytest.mark.parametrize(
        "tensors",
        [("weights",), ("activations",), ("weights", "activations"), ("weights", "activations", "gradients")],
        ids=str,
    )
    def test_only_the_tensors_named_are_held(self, tensors: tuple[str, ...], corpus: Corpus) -> None:
        lanes = trained(corpus, tensors=tensors, model=TIED)
        rows = lanes.recorder.rows({}).layers
        flowing = rows["matrix"] != "wpe"
        for kind, measured in (("weights", "weight"), ("activations", "activation"), ("gradients", "gradient")):
            defined = ~np.isnan(rows[f"{measured}_saturated"])
            np.testing.assert_array_equal(defined, (flowing | (kind == "weights")) & (kind in tensors))
        for part in lanes.parts:
            assert (part.grid is not None) == ("weights" in tensors and part.stack.is_matrix)

    def test_matrices_in_float32_are_left_alone(self, corpus: Corpus) -> None:
        lanes = trained(corpus, layers="mlp", tensors=("weights", "activations", "gradients"), model=TIED)
        rows = lanes.recorder.rows({}).layers
        for name in ("flips", "weight_saturated", "activation_saturated", "gradient_saturated"):
            defined = {
                matrix for matrix, value in zip(rows["matrix"], rows[name], strict=True) if not math.isnan(value)
            }
            assert defined == {"h.0.mlp.c_fc", "h.0.mlp.c_proj"}

    def test_an_untied_embedding_has_no_activations_entering(self, corpus: Corpus) -> None:
        rows = trained(corpus, model=UNTIED).recorder.rows({}).layers
        assert set(rows["matrix"][np.isnan(rows["activation_saturated"])]) == {"wte", "wpe"}


@pytest.mark.parametrize("format", FP8_FORMATS, ids=lambda format: format.name)
def test_every_value_times_its_scale_is_exact_in_bf16(format: FP8Format) -> None:
    """So products of two quantized operands lose nothing on bf16 hardware that accumulates in float32."""
    values = torch.tensor([format.to_real(code) for code in range(256)])
    values = values[values.isfinite()]
    amaxes = torch.exp2(torch.arange(-60.0, 61.0)) * 1.37
    limit = torch.tensor(format.max_representable_value)
    scales = power_of_two_scale(amaxes, limit, torch.zeros_like(amaxes))
    product = values * scales.unsqueeze(-1)
    assert product.isfinite().all()
    assert torch.equal(product.bfloat16().float(), product)
    assert torch.equal(product / scales.unsqueeze(-1), values.expand_as(product))
