"""Observers of the loop: what flips, and when a falling rank is worth a warning."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.quantization.diagnostics import is_update
from altgrad.quantization.rank_health import RankHealthMonitor, RankTrendDetector
from altgrad.training.config import RankConfig
from altgrad.training.metrics import discrete_metrics
from altgrad.training.precision import Transition, WeightGrid
from altgrad.training.weights import Stack


class FlipObserver:
    """Counts what happens to the codes of one stack."""

    def __init__(self, stack: Stack, grid: WeightGrid) -> None:
        self._numbers = grid.numbers
        undefined = torch.tensor([f.is_identity for f in grid.formats], device=stack.stored.device)
        #: NaN for lanes whose weights have no codes, else 0, ``(L,)``.
        self.undefined = torch.where(undefined, float("nan"), 0.0).double()
        #: Direction of each element's last flip: -1, 0 (never) or 1, ``(n, L, in, out)``.
        self.direction = stack.zeros(torch.int8)
        self._next_direction = stack.zeros(torch.int8)

    def observe(self, transition: Transition, gradient: Tensor) -> dict[str, Tensor]:
        """Columns of one step, float64 ``(n, L)``; NaN for lanes whose weights have no codes or are not finite.

        Directions count from `turn` on: a compiled step is one loop only if it writes to nothing that it reads.
        """
        updated = is_update(gradient, torch.int32)
        metrics = discrete_metrics(transition, updated, self._numbers, self.direction, self._next_direction)
        undefined = torch.where(transition.amax.isfinite(), self.undefined, torch.nan)
        return {name: values + undefined for name, values in metrics.items()}

    def turn(self) -> None:
        """Take the directions of the step observed last."""
        self.direction, self._next_direction = self._next_direction, self.direction


class RankAlarm(NamedTuple):
    """A matrix whose effective rank fell too far."""

    matrix: str
    #: Its effective rank.
    value: float
    #: What that was held against: the control's at the same step, or its own at the start.
    reference: float
    #: The share it may lose.
    threshold: float
    message: str


class RankWatch:
    """Watches the effective ranks of one lane against a reference, each matrix with its own threshold.

    What is watched is the ratio to the reference, smoothed. Against the control the ratio is held against one; against
    the run's own start, the reference of each matrix is its rank at the first check.
    """

    def __init__(self, config: RankConfig, aliases: Mapping[str, tuple[str, ...]] | None = None) -> None:
        """``aliases``: further names of matrices, so that a tied head is watched as a head."""
        self._config = config
        self._aliases = dict(aliases or {})
        self._thresholds = RankHealthMonitor(
            warn_threshold=config.warn_threshold,
            critical_layers=list(config.critical_layers),
            critical_threshold_multiplier=config.critical_multiplier,
        )
        self._detectors: dict[str, RankTrendDetector] = {}
        self._initial: dict[str, float] = {}

    def threshold(self, matrix: str) -> float:
        """The share of its reference that a matrix may lose."""
        return min(map(self._thresholds.get_threshold_for_layer, self._aliases.get(matrix, (matrix,))))

    def check(
        self, step: int, ranks: Mapping[str, float], control: Mapping[str, float] | None = None
    ) -> list[RankAlarm]:
        """The warnings of one check.

        Args:
            step: when the ranks were measured; before the warm-up nothing is decided.
            ranks: effective rank by matrix.
            control: the control's at the same step; None holds the run against its own start.
        """
        if step < self._config.warmup_steps:
            return []
        alarms = []
        for matrix, rank in ranks.items():
            reference = self._initial.setdefault(matrix, rank) if control is None else control.get(matrix, math.nan)
            ratio = rank / reference if reference > 0 else math.nan
            if not math.isfinite(ratio):
                continue
            threshold = self.threshold(matrix)
            if self._detector(matrix).update(ratio) is not None:
                against = "its start" if control is None else "the control"
                message = (
                    f"{matrix}: effective rank {rank:.3g} at step {step}, {against} has {reference:.3g}; "
                    f"{threshold:.0%} may be lost"
                )
                alarms.append(RankAlarm(matrix, rank, reference, threshold, message))
        return alarms

    def state(self) -> dict[str, dict[str, float]]:
        """What must survive a restart."""
        emas = {name: detector.ema for name, detector in self._detectors.items() if detector.ema is not None}
        return {"ema": emas, "initial": dict(self._initial)}

    def restore(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Take back what `state` gave."""
        self._initial = dict(state["initial"])
        for matrix, ema in state["ema"].items():
            self._detector(matrix).ema = ema

    def _detector(self, matrix: str) -> RankTrendDetector:
        if matrix not in self._detectors:
            threshold = self.threshold(matrix)
            self._detectors[matrix] = RankTrendDetector(self._config.alpha, threshold, baseline=1.0)
        return self._detectors[matrix]
