"""Ranks of weight matrices, and when a falling rank is a warning.

*Stable rank* is ``||W||_F^2 / ||W||_2^2`` (arXiv 1906.04659). *Effective rank* is ``exp(-sum p log p)`` with
``p = s / sum(s)`` over the singular values ``s`` (Roy and Vetterli, EUSIPCO 2007).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class SpectralStats(NamedTuple):
    """What the spectrum says of each matrix; float tensors of the batch's shape."""

    stable_rank: Tensor
    effective_rank: Tensor
    #: The largest singular value.
    spectral_norm: Tensor


def spectrum(matrices: Tensor) -> Tensor:
    """Singular values of a batch of matrices, from the eigenvalues of their Gram matrices.

    Several times faster than a singular value decomposition. Values below about 3e-4 of the largest are noise in
    float32 (2e-8 in float64): a matrix of rank 1 keeps its stable rank, while its effective rank reads too high.
    Matrices are normalised first, so neither tiny nor huge ones lose anything, and never touch one another; on a CPU
    the bits do not depend on the batch either where ``m * n`` is a multiple of 16 (which keeps each matrix aligned).

    Args:
        matrices: float32 or float64, ``(..., m, n)``.

    Returns:
        ``(..., min(m, n))``, descending; NaN for a matrix that is not finite throughout.

    >>> spectrum(torch.diag(torch.tensor([1.0, 3.0, 2.0])))
    tensor([3., 2., 1.])
    """
    largest = matrices.abs().amax((-2, -1), keepdim=True)
    finite = largest.isfinite()
    unit = torch.where(finite, matrices / torch.where(largest > 0, largest, 1.0), 0.0)
    gram = unit @ unit.mT if unit.shape[-2] <= unit.shape[-1] else unit.mT @ unit
    values = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt().flip(-1)
    return torch.where(finite.squeeze(-1), values * largest.squeeze(-1), torch.nan)


def spectral_stats(matrices: Tensor, eps: float = 0.0) -> SpectralStats:
    """Stable rank, effective rank and spectral norm of a batch of matrices.

    A zero matrix has stable rank ``min(m, n)``, effective rank 1 and norm 0; one that is not finite has NaN throughout.

    Args:
        matrices: float32 or float64, ``(..., m, n)``.
        eps: singular values below this share of the largest count as zero in the effective rank.

    >>> spectral_stats(torch.eye(4)).stable_rank
    tensor(4.)
    """
    values = spectrum(matrices)
    norm = values[..., 0]
    is_zero = norm == 0
    relative = values / torch.where(is_zero, 1.0, norm).unsqueeze(-1)
    stable = relative.square().sum(-1).masked_fill(is_zero, float(values.shape[-1]))
    kept = torch.where(relative < eps, 0.0, relative)
    p = kept / kept.sum(-1, keepdim=True).masked_fill(is_zero.unsqueeze(-1), 1.0)
    return SpectralStats(stable, torch.special.entr(p).sum(-1).exp(), norm)


def compute_stable_rank(weight: Tensor) -> float:
    """Stable rank of a weight, from 1 to ``min(m, n)``.

    More than two dimensions are viewed as ``(out, -1)``. With fewer than two it is the number of elements; for a zero
    matrix ``min(m, n)``; NaN where the weight is not finite or has no elements.

    >>> round(compute_stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0]))), 6)
    1.5
    """
    return float(weight.numel()) if weight.dim() < 2 else _weight_stats(weight).stable_rank.item()


def compute_effective_rank(weight: Tensor, eps: float = 1e-10) -> float:
    """Effective rank of a weight, from 1 to ``min(m, n)``.

    More than two dimensions are viewed as ``(out, -1)``. With fewer than two, and for a zero matrix, it is 1; NaN where
    the weight is not finite or has no elements.

    Args:
        weight: any shape and floating-point dtype.
        eps: singular values below this share of the largest count as zero.

    >>> round(compute_effective_rank(torch.eye(4)), 6)
    4.0
    """
    return 1.0 if weight.dim() < 2 else _weight_stats(weight, eps).effective_rank.item()


def _weight_stats(weight: Tensor, eps: float = 1e-10) -> SpectralStats:
    """The statistics of one weight of two dimensions or more, in float64."""
    if weight.numel() == 0:
        undefined = torch.tensor(math.nan)
        return SpectralStats(undefined, undefined, undefined)
    return spectral_stats(weight.detach().to(torch.float64).flatten(1), eps)


class RankTrendDetector:
    """Warns when a smoothed value has fallen too far below its baseline.

    The baseline is the smoothed value at observation ``window``, or given: for a ratio to a healthy control it is 1.

    >>> detector = RankTrendDetector(alpha=1.0, window=1)
    >>> [detector.update(value) for value in (10.0, 9.0)]
    [None, None]
    >>> detector.update(7.0)
    'smoothed value 7 is 30.0% below its baseline 10 (threshold 20.0%)'
    """

    def __init__(
        self, alpha: float = 0.1, threshold_pct: float = 0.2, window: int = 100, baseline: float | None = None
    ) -> None:
        """A detector that has seen nothing.

        Args:
            alpha: weight of the newest value in the exponential moving average, in (0, 1]; 1 smooths nothing.
            threshold_pct: share of the baseline that may be lost, in [0, 1].
            window: the observation, counted from 1, whose smoothed value becomes the baseline.
            baseline: a baseline fixed beforehand; warnings may then come from the first observation on.

        Raises:
            ValueError: an argument is out of its range.
        """
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], got {alpha}")
        if not 0 <= threshold_pct <= 1:
            raise ValueError(f"threshold_pct must lie in [0, 1], got {threshold_pct}")
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        if baseline is not None and not (baseline > 0 and math.isfinite(baseline)):
            raise ValueError(f"baseline must be positive and finite, got {baseline}")
        self.alpha = alpha
        self.threshold_pct = threshold_pct
        self.window = window
        self.baseline = baseline
        self.reset()

    def reset(self) -> None:
        """Forget all observations; a baseline that was given stays."""
        #: The smoothed value; None before the first.
        self.ema: float | None = None
        #: The baseline; None before observation ``window``.
        self.initial_ema: float | None = self.baseline
        #: Observations so far.
        self.step_count: int = 0

    def update(self, value: float) -> str | None:
        """Take in the next value; a warning where the smoothed value is too low, else None.

        A value that is not finite is itself worth a warning; it is not smoothed in and not counted.
        """
        if not math.isfinite(value):
            return f"value is {value}"
        self.ema = value if self.ema is None else self.alpha * value + (1 - self.alpha) * self.ema
        self.step_count += 1
        if self.initial_ema is None and self.step_count >= self.window:
            self.initial_ema = self.ema
        if self.initial_ema is None or self.ema >= (1 - self.threshold_pct) * self.initial_ema:
            return None
        lost = 1 - self.ema / self.initial_ema
        return (
            f"smoothed value {self.ema:.4g} is {lost:.1%} below its baseline {self.initial_ema:.4g} "
            f"(threshold {self.threshold_pct:.1%})"
        )


class RankHealthMonitor:
    """Watches the effective rank of a model's matrices, each against its own start.

    This rule raises false alarms: in healthy float32 GPT training effective rank falls by 3 to 25 % between steps 200
    and 800, most in ``c_proj``, so critical layers warn in good runs too. (Stable rank falls by 60 to 90 %, which is
    why it is reported and not watched.) Where a healthy control run exists, give its ratio to a
    `RankTrendDetector` with ``baseline=1.0`` instead.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    >>> monitor = RankHealthMonitor(window=1)
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.eye(4))
    >>> monitor.check_warnings(monitor.compute_layer_ranks(model))
    []
    """

    def __init__(
        self,
        log_interval: int = 100,
        warn_threshold: float = 0.3,
        critical_layers: Sequence[str] = ("lm_head", "c_proj"),
        critical_threshold_multiplier: float = 0.5,
        window: int | None = None,
    ) -> None:
        """A monitor that has seen nothing.

        Args:
            log_interval: steps between checks, for the caller to keep.
            warn_threshold: share of a layer's baseline that may be lost.
            critical_layers: parts of names of layers that warn earlier.
            critical_threshold_multiplier: the threshold of critical layers, as a share of ``warn_threshold``.
            window: the observation (not step) that becomes the baseline; ``min(10, log_interval)`` by default.

        Raises:
            ValueError: an argument is out of its range.
        """
        if log_interval < 1:
            raise ValueError(f"log_interval must be at least 1, got {log_interval}")
        self.log_interval = log_interval
        self.warn_threshold = warn_threshold
        self.critical_layers = list(critical_layers)
        self.critical_threshold_multiplier = critical_threshold_multiplier
        self.window = min(10, log_interval) if window is None else window
        RankTrendDetector(threshold_pct=warn_threshold, window=self.window)
        self._detectors: dict[str, RankTrendDetector] = {}

    def compute_layer_ranks(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """``stable_rank, effective_rank, spectral_norm`` of every parameter with two dimensions or more.

        Named as in the model, without a trailing ``.weight``; a tied parameter appears under each of its names.
        """
        known: dict[int, dict[str, float]] = {}
        ranks = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if parameter.dim() < 2:
                continue
            if id(parameter) not in known:
                stats = _weight_stats(parameter)
                known[id(parameter)] = {key: value.item() for key, value in stats._asdict().items()}
            ranks[name.removesuffix(".weight")] = dict(known[id(parameter)])
        return ranks

    def get_threshold_for_layer(self, name: str) -> float:
        """The share of its baseline that a layer may lose."""
        is_critical = any(part in name for part in self.critical_layers)
        return self.warn_threshold * (self.critical_threshold_multiplier if is_critical else 1.0)

    def check_warnings(self, ranks: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Take in one observation of each layer, as `compute_layer_ranks` returns them.

        Returns:
            Warnings, each naming its layer.
        """
        warnings = []
        for name, values in ranks.items():
            if name not in self._detectors:
                threshold = self.get_threshold_for_layer(name)
                self._detectors[name] = RankTrendDetector(threshold_pct=threshold, window=self.window)
            if message := self._detectors[name].update(values["effective_rank"]):
                warnings.append(f"{name}: effective rank: {message}")
        return warnings
