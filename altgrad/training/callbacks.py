"""Observers of the loop: what flips, how ranks move, and when a falling rank is worth a warning."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.quantization.diagnostics import is_update
from altgrad.quantization.kernels import uniform_bits
from altgrad.quantization.rank_health import RankHealthMonitor, RankTrendDetector, spectral_stats
from altgrad.quantization.subspace import subspace_step
from altgrad.training.config import RankConfig
from altgrad.training.metrics import discrete_metrics
from altgrad.training.precision import Transition, WeightGrid
from altgrad.training.weights import Stack, lane_sum


class FlipObserver:
    """Counts what happens to the codes of one stack."""

    def __init__(self, stack: Stack, grid: WeightGrid) -> None:
        self._numbers = grid.numbers
        undefined = torch.tensor([f.is_identity for f in grid.formats], device=stack.stored.device)
        #: NaN for lanes whose weights have no codes, else 0, ``(L,)``.
        self.undefined = torch.where(undefined, float("nan"), 0.0).double()
        #: Direction of each element's last flip: -1, 0 (never) or 1, ``(n, L, in, out)``.
        self.direction = torch.zeros_like(stack.stored, dtype=torch.int8)
        self._next_direction = torch.zeros_like(self.direction)

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


#: Singular vectors that are followed. With these numbers stable rank is within 1 % at every step of a run of nanoGPT's
#: CPU size; with one vector it is up to 65 % too high while the first directions of learning outgrow the random start.
_VECTORS = 8
#: Steps of `subspace_step` on the initial weights, at each of the early steps of training, in which those directions
#: are born, and at each later one; and how many steps are early. Where a step of training takes an odd number of them,
#: the next begins on the other side of the matrices.
_FIRST, _EARLY, _LATER, EARLY_STEPS = 40, 9, 1, 120


class RankObserver:
    """Follows the ranks of one stack: stable rank at every step, whole spectra at intervals."""

    def __init__(self, stack: Stack) -> None:
        rows, columns = stack.stored.shape[-2:]
        k = min(_VECTORS, rows, columns)
        #: About the leading left singular vectors, ``(n, L, k, in)``: set by odd steps, read by even ones.
        self.left = _orthonormal(k, rows, stack)
        #: About the right ones, ``(n, L, k, out)``: set by even steps, read by odd ones.
        self.right = _orthonormal(k, columns, stack)
        for i in range(1, _FIRST + 1):
            stable_ranks([stack], [self], i % 2 == 1)

    @staticmethod
    def spectra(stack: Stack) -> dict[str, Tensor]:
        """Exact ranks of the stored and of the working weights, float64 ``(n, L)``."""
        stored = spectral_stats(stack.stored)
        same = stack.working is stack.stored
        working = stored if same else spectral_stats(stack.working)
        return {
            "exact_stable_rank": stored.stable_rank.double(),
            "effective_rank": stored.effective_rank.double(),
            "spectral_norm": stored.spectral_norm.double(),
            "quantized_stable_rank": working.stable_rank.double(),
            "quantized_effective_rank": working.effective_rank.double(),
            "quantized_spectral_norm": working.spectral_norm.double(),
        }


def _orthonormal(count: int, length: int, stack: Stack) -> Tensor:
    """Random rows ``(n, L, count, length)``, the same for all matrices."""
    key = torch.zeros(1, dtype=torch.int32, device=stack.stored.device)
    rows = uniform_bits(key, count * length).view(length, count) - 0.5
    return torch.linalg.qr(rows).Q.mT.repeat(*stack.stored.shape[:2], 1, 1)


def rank_steps(step: int) -> int:
    """How often a step of training takes `stable_ranks`."""
    return _EARLY if step <= EARLY_STEPS else _LATER


def stable_ranks(stacks: Sequence[Stack], observers: Sequence[RankObserver], from_right: bool) -> Tensor:
    """Stable ranks (arXiv 1906.04659) by one step of the subspace iteration, float64 ``(S, L)``, stack by stack."""
    matrices = [stack.stored.flatten(0, 1) for stack in stacks]
    left = [of.left.flatten(0, 1) for of in observers]
    right = [of.right.flatten(0, 1) for of in observers]
    if from_right:
        norms, found = subspace_step(matrices, right, left)
    else:
        norms, found = subspace_step([matrix.mT for matrix in matrices], left, right)
    for observer, vectors in zip(observers, found, strict=True):
        target = observer.left if from_right else observer.right
        target.copy_(vectors.view_as(target))
    squares = torch.cat([lane_sum(stack.stored.square()) for stack in stacks])
    return squares / norms.view_as(squares).double().square()


#: The columns of `RankObserver.spectra`, NaN between rank checks.
SPECTRA = (
    *("exact_stable_rank", "effective_rank", "spectral_norm"),
    *("quantized_stable_rank", "quantized_effective_rank", "quantized_spectral_norm"),
)


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
