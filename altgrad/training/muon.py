"""Muon: momentum whose singular values are all brought close to one (Jordan et al. 2024).

https://kellerjordan.github.io/posts/muon/; the size of a step is matched to AdamW's as in arXiv 2502.16982, so that
one learning rate and one weight decay serve both.
"""

import math
from typing import NamedTuple

from torch import Tensor

#: Coefficients of the quintic Newton-Schulz iteration, from the first reference.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5
#: A matrix smaller than this has no direction, as one of zeros has none.
_SMALLEST_NORM = 1e-18
#: The root mean square of AdamW's usual step, which an orthogonal matrix is scaled to.
_ADAM_RMS = 0.2


class MuonNumbers(NamedTuple):
    """What one step of Muon needs; floats, or tensors that broadcast against the parameters."""

    lr: float | Tensor
    #: 1 - lr * weight_decay
    keep: float | Tensor
    #: Decay of the momentum.
    momentum: float | Tensor


def orthogonalize(matrices: Tensor) -> Tensor:
    """Matrices with the singular vectors of the given ones, and singular values near one (0.7 to 1.2, mostly).

    Each matrix of a batch is treated by itself. A zero matrix stays zero, one that holds NaN becomes NaN.

    Args:
        matrices: float32, ``(..., m, n)``.

    >>> import torch
    >>> x = torch.diag(torch.tensor([1.0, 0.5]))
    >>> bool((torch.linalg.svdvals(orthogonalize(x)) - 1).abs().max() < 0.4)
    True
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    # Axis by axis, so that no matrix's order of addition depends on its neighbours.
    norm = x.square().sum(-1).sum(-1).sqrt().clamp_min(_SMALLEST_NORM)
    x = x / norm[..., None, None]
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * (gram @ gram)) @ x
    return x.mT if tall else x


def muon_(param: Tensor, grad: Tensor, buffer: Tensor, n: MuonNumbers) -> None:
    """One step of Muon with Nesterov momentum, in place, on matrices ``(..., m, n)``."""
    fresh = grad * (1 - n.momentum)
    buffer.mul_(n.momentum).add_(fresh)
    update = orthogonalize(fresh + buffer * n.momentum)
    size = _ADAM_RMS * math.sqrt(max(param.shape[-2:]))
    param.mul_(n.keep).sub_(update * (n.lr * size))
