"""Flips, updates and stalls: the definitions, element by element."""

import math

import pytest
import torch
from grid_oracle import near_values

from altgrad.quantization.flip_metrics import WeightFlipTracker, compute_flip_rate, compute_stall_ratio
from altgrad.quantization.formats import E3M4, E4M3, E5M2, FORMAT_REGISTRY, FP8Format
from altgrad.quantization.ops import quantize

by_every_name = pytest.mark.parametrize("format", FORMAT_REGISTRY.values(), ids=lambda format: format.name)


def step(tracker: WeightFlipTracker, before: list[float], after: list[float], grad: list[float] | None = None) -> int:
    gradient = None if grad is None else torch.tensor(grad)
    tracker.snapshot_pre_step("w", torch.tensor(before), E4M3, 1.0, grad=gradient)
    return tracker.compute_flips_post_step("w", torch.tensor(after), E4M3, 1.0)


class TestTracker:
    @by_every_name
    @pytest.mark.parametrize("scale", [1.0, 0.3])
    def test_flips_are_changes_of_the_quantized_value(self, format: FP8Format, scale: float) -> None:
        near = format if format.bits == 8 else E5M2
        before = torch.from_numpy(near_values(near, 1000, seed=1))
        after = before * torch.linspace(0.8, 1.2, 1000)
        tracker = WeightFlipTracker()
        tracker.snapshot_pre_step("w", before, format, scale)
        flips = tracker.compute_flips_post_step("w", after, format, scale)
        assert flips == int((quantize(before, format, scale) != quantize(after, format, scale)).sum())
        assert 0 < flips <= 1000

    def test_zeros_of_both_signs_are_one_code(self) -> None:
        assert step(WeightFlipTracker(), [0.0, 1e-9, -1e-9], [-0.0, -1e-9, 1e-9]) == 0

    def test_becoming_nan_is_a_flip_and_staying_nan_is_none(self) -> None:
        assert step(WeightFlipTracker(), [1.0, math.nan, 1.0], [math.nan, math.nan, 1.0]) == 1

    def test_stalls_count_flips_among_updated_elements_only(self) -> None:
        tracker = WeightFlipTracker()
        # Element 1 flips by weight decay alone: its gradient is zero, so it is a flip and no update.
        flips = step(tracker, [1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 1.0, 1.0], grad=[1.0, 0.0, 1.0, 1e-11])
        assert flips == 2
        assert tracker.get_flip_counts() == {"w": 2}
        assert tracker.get_update_counts() == {"w": 2}
        assert tracker.get_stall_ratios() == {"w": 0.5}
        assert tracker.get_flip_rates() == {"w": 0.5}

    def test_without_a_gradient_every_element_is_updated(self) -> None:
        tracker = WeightFlipTracker()
        step(tracker, [1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 1.0, 1.0])
        assert tracker.get_update_counts() == {"w": 4}
        assert tracker.get_stall_ratios() == {"w": 0.75}

    def test_nothing_updated_is_no_stall(self) -> None:
        tracker = WeightFlipTracker()
        step(tracker, [1.0], [2.0], grad=[0.0])
        assert tracker.get_stall_ratios() == {"w": 0.0}

    def test_counts_accumulate_and_rates_may_exceed_one(self) -> None:
        tracker = WeightFlipTracker()
        for _ in range(3):
            assert step(tracker, [1.0, 1.0], [2.0, 3.0]) == 2
        assert tracker.total_weights == {"w": 2}
        assert tracker.get_flip_counts() == {"w": 6}
        assert tracker.get_flip_rates() == {"w": 3.0}
        assert tracker.get_stall_ratios() == {"w": 0.0}

    def test_names_are_apart(self) -> None:
        tracker = WeightFlipTracker()
        for name, after in (("a", 2.0), ("b", 1.0)):
            tracker.snapshot_pre_step(name, torch.ones(1), E4M3, 1.0)
            tracker.compute_flips_post_step(name, torch.tensor([after]), E4M3, 1.0)
        assert tracker.get_flip_counts() == {"a": 1, "b": 0}

    def test_a_snapshot_is_codes_of_one_byte_and_used_once(self) -> None:
        tracker = WeightFlipTracker()
        weight = torch.ones(3)
        tracker.snapshot_pre_step("w", weight, E4M3, 1.0)
        weight.mul_(2.0)
        assert tracker.prev_quantized["w"].element_size() == 1
        assert tracker.compute_flips_post_step("w", weight, E4M3, 1.0) == 3
        assert tracker.prev_quantized == {}
        with pytest.raises(KeyError, match="No pre-step snapshot of 'w'"):
            tracker.compute_flips_post_step("w", weight, E4M3, 1.0)

    def test_a_replaced_snapshot_leaves_no_trace(self) -> None:
        tracker = WeightFlipTracker()
        tracker.snapshot_pre_step("w", torch.ones(4), E4M3, 1.0)
        step(tracker, [1.0, 1.0], [2.0, 1.0])
        assert tracker.get_update_counts() == {"w": 2}
        assert tracker.get_stall_ratios() == {"w": 0.5}

    def test_a_pending_snapshot_is_no_stall(self) -> None:
        tracker = WeightFlipTracker()
        step(tracker, [1.0, 1.0], [2.0, 2.0])
        tracker.snapshot_pre_step("w", torch.ones(2), E4M3, 1.0)
        assert tracker.get_stall_ratios() == {"w": 0.0}

    def test_trains_on(self) -> None:
        tracker, weight = WeightFlipTracker(), torch.ones(2, requires_grad=True)
        tracker.snapshot_pre_step("w", weight, E4M3, torch.tensor(0.5), grad=torch.ones(2))
        assert tracker.compute_flips_post_step("w", weight, E4M3, torch.tensor(0.5)) == 0

    @pytest.mark.parametrize(("weight", "format"), [(torch.ones(3), E4M3), (torch.ones(2), E3M4)])
    def test_another_tensor_than_the_snapshots_is_an_error(self, weight: torch.Tensor, format: FP8Format) -> None:
        tracker = WeightFlipTracker()
        tracker.snapshot_pre_step("w", torch.ones(2), E4M3, 1.0)
        with pytest.raises(ValueError, match="the snapshot is of format and shape"):
            tracker.compute_flips_post_step("w", weight, format, 1.0)

    def test_a_gradient_of_another_shape_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="differ in shape"):
            WeightFlipTracker().snapshot_pre_step("w", torch.ones(2), E4M3, 1.0, grad=torch.ones(3))

    def test_reset_forgets(self) -> None:
        tracker = WeightFlipTracker()
        step(tracker, [1.0], [2.0])
        tracker.snapshot_pre_step("w", torch.ones(1), E4M3, 1.0)
        tracker.reset()
        assert vars(tracker) == vars(WeightFlipTracker())


@pytest.mark.parametrize(
    ("prev", "curr", "expected"),
    [
        ([], [], 0.0),
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 0.0, 0.0], 0.5),
        ([0.0], [-0.0], 0.0),
        ([math.nan, 1.0], [math.nan, math.nan], 0.5),
    ],
)
def test_flip_rate(prev: list[float], curr: list[float], expected: float) -> None:
    assert compute_flip_rate(torch.tensor(prev), torch.tensor(curr)) == expected


def test_flip_rate_of_codes() -> None:
    codes = torch.arange(4, dtype=torch.uint8).view(2, 2)
    assert compute_flip_rate(codes, codes.T) == 0.5


def test_flip_rate_of_unlike_shapes_is_an_error() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        compute_flip_rate(torch.ones(2), torch.ones(1, 2))


@pytest.mark.parametrize(
    ("flips", "updates", "expected"), [(0, 0, 0.0), (0, 10, 1.0), (10, 10, 0.0), (25, 100, 0.75), (3, 0, 0.0)]
)
def test_stall_ratio(flips: int, updates: int, expected: float) -> None:
    assert compute_stall_ratio(flips, updates) == expected
