"""Measurements of one step as pure functions, and the rows they become."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from altgrad.quantization.kernels import MAGNITUDE, FormatNumbers
from altgrad.quantization.rank_health import RankHealthMonitor
from altgrad.training.precision import Transition
from altgrad.training.weights import copy_whole, count

#: Columns of `discrete_metrics`.
DISCRETE = (
    *("updates", "flips", "stall_ratio", "oscillations", "rung_distance"),
    *("weight_saturated", "weight_underflowed"),
)
#: Columns of counts that a run's row sums over its matrices.
COUNTS = ("updates", "flips", "rescale_flips", "oscillations")
#: Columns of shares that a run's row averages over its matrices, weighted by elements (activations: plainly).
SHARES = (
    *("weight_saturated", "weight_underflowed", "activation_saturated", "activation_underflowed"),
    *("gradient_saturated", "gradient_underflowed"),
)


def discrete_metrics(
    t: Transition, updated: Tensor, numbers: FormatNumbers, last: Tensor, out: Tensor
) -> dict[str, Tensor]:
    """Counts of one stack's step, each float64 ``(n, L)``; undefined is NaN. Rescale flips are counted elsewhere.

    Masks are numbers, 0 or 1: booleans are slow in PyTorch's loops and in compiled ones.

    Args:
        t: the rungs before and after.
        updated: as 0 or 1, int32: elements whose gradient, clipped as the optimizer gets it, is more than nothing.
        numbers: of the lanes' formats.
        last: direction of each element's last flip before this step, -1, 0 (never) or 1.
        out: gets the same after this step.
    """
    # In place, and counted before the next is made: eagerly a fresh tensor costs several times the arithmetic.
    moved = t.after - t.before.to(torch.int32)
    distance = count(moved.abs(), most=2 * torch.iinfo(t.before.dtype).max)
    direction = moved.clamp_(-1, 1)
    flipped = direction & 1
    before = last.to(torch.int32)
    oscillations = -count((direction * before).clamp_(-1, 0))
    copy_whole(out, torch.addcmul(before, flipped, direction.sub_(before)))
    flips, updates = count(flipped), count(updated)
    both = count(flipped.bitwise_and_(updated))
    rungs = t.after.abs()
    at_end = count((rungs - (numbers.max_rung - 1)).clamp_min_(0))
    # One sum that reads both: a compiler makes one loop only of sums that share what they read.
    there = t.unrounded.view(torch.int32).bitwise_and(MAGNITUDE).clamp_max_(1)
    lost = count(there.sub_(rungs.clamp_max_(1)))
    size = float(updated[0, 0].numel())
    return {
        "updates": updates,
        "flips": flips,
        "stall_ratio": torch.where(updates > 0, 1 - both / updates, 0.0),
        "oscillations": oscillations,
        "rung_distance": distance / flips,
        "weight_saturated": at_end / size,
        "weight_underflowed": lost / size,
    }


def pooled(layers: dict[str, Tensor], elements: Tensor) -> dict[str, Tensor]:
    """Rows of lanes from those of their matrices; undefined matrices are left out, except that ranks are NaN if any is.

    Sums run along the last axis, so that no lane's order of addition depends on how many lanes there are.

    Args:
        layers: the matrices' columns, each ``(..., L, S)`` and contiguous.
        elements: their sizes, ``(S,)``.

    Returns:
        columns ``(..., L)``; NaN where no matrix has a defined value.
    """
    row = {name: _sum(layers[name]) for name in COUNTS}
    stalled = layers["stall_ratio"] * layers["updates"]
    row["stall_ratio"] = torch.where(row["updates"] == 0, 0.0, _sum(stalled) / row["updates"])
    row["rung_distance"] = _sum(layers["rung_distance"] * layers["flips"]) / row["flips"]
    for name in SHARES:
        weight = torch.where(layers[name].isnan(), 0.0, elements if name.startswith("weight") else 1.0)
        row[name] = (layers[name].nan_to_num(0.0) * weight).sum(-1) / weight.sum(-1)
    for name in ("stable_rank", "effective_rank"):
        row[f"{name}_mean"] = layers[name].mean(-1)
        row[f"{name}_min"] = layers[name].amin(-1)
    return row


def _sum(values: Tensor) -> Tensor:
    """Sum over matrices with a defined value; NaN where there is none."""
    nothing = values.isnan().all(-1)
    return torch.where(nothing, float("nan"), values.nansum(-1))


@dataclass(frozen=True)
class Rows:
    """Consecutive steps of every lane as columns, in the schema's names."""

    steps: dict[str, np.ndarray]
    layers: dict[str, np.ndarray]


class Recorder:
    """Keeps measurements on their device, step after step, until they are asked for as rows."""

    def __init__(
        self, keys: Sequence[str], matrices: Sequence[str], formats: Sequence[Sequence[str]], elements: Tensor
    ):
        """``formats[matrix][lane]``; ``elements``: sizes of the matrices, ``(S,)``."""
        self._keys, self._matrices, self._formats, self._elements = keys, matrices, formats, elements
        self._steps: list[int] = []
        self._lanes: list[dict[str, Tensor]] = []
        self._layers: list[dict[str, Tensor]] = []

    def add(self, step: int, lanes: dict[str, Tensor], layers: dict[str, Tensor]) -> None:
        """Take one step: columns ``(L,)`` and ``(S, L)``."""
        self._steps.append(step)
        self._lanes.append(lanes)
        self._layers.append(layers)

    def rows(self, last: dict[str, Tensor]) -> Rows:
        """Everything since the last call; ``last`` adds columns ``(L,)`` to the last step only."""
        if not self._steps:
            return Rows({}, {})
        by_lane = _over_steps(self._lanes)  # (steps, L)
        by_matrix = _over_steps(self._layers)  # (steps, S, L)
        by_lane |= pooled({name: values.mT.contiguous() for name, values in by_matrix.items()}, self._elements)
        lanes, matrices, steps = len(self._keys), len(self._matrices), np.array(self._steps)
        step_columns: dict[str, np.ndarray] = {
            "key": np.tile(np.array(self._keys, dtype=object), len(steps)),
            "step": np.repeat(steps, lanes),
        }
        step_columns |= {name: _flat(values) for name, values in by_lane.items()}
        for name, values in last.items():
            column = np.full((len(steps), lanes), np.nan)
            column[-1] = values.double().cpu().numpy()
            step_columns[name] = column.reshape(-1)
        layer_columns: dict[str, np.ndarray] = {
            "key": np.tile(np.array(self._keys, dtype=object), len(steps) * matrices),
            "step": np.repeat(steps, lanes * matrices),
            "matrix": np.tile(np.repeat(np.array(self._matrices, dtype=object), lanes), len(steps)),
            "format": np.tile(np.array(self._formats, dtype=object).reshape(-1), len(steps)),
            "elements": np.tile(np.repeat(self._elements.cpu().numpy(), lanes), len(steps)),
        }
        layer_columns |= {name: _flat(values) for name, values in by_matrix.items()}
        self._steps, self._lanes, self._layers = [], [], []
        return Rows(step_columns, layer_columns)


def _over_steps(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _flat(values: Tensor) -> np.ndarray:
    return values.reshape(-1).double().cpu().numpy()


def compute_rank_stats(model: nn.Module) -> dict[str, float]:
    """Ranks of every matrix of any model as a flat dict.

    Returns:
        ``stable_rank/<name>``, ``effective_rank/<name>``; of both, ``.../mean`` and ``.../min`` (0.0 without matrices).
    """
    layers = RankHealthMonitor().compute_layer_ranks(model)
    stats: dict[str, float] = {}
    for kind in ("stable_rank", "effective_rank"):
        values = [ranks[kind] for ranks in layers.values()]
        stats |= {f"{kind}/{name}": ranks[kind] for name, ranks in layers.items()}
        stats[f"{kind}/mean"] = sum(values) / len(values) if values else 0.0
        stats[f"{kind}/min"] = min(values, default=0.0)
    return stats
