"""Parameters stacked by shape, so that everything elementwise is done once a shape and not once a matrix.

Shapes: n tensors of a stack, L lanes. A stack is ``(n, L, *shape)``.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

#: Elements: what keeps every tensor of a stack on cache lines of its own.
_GAP = 64
_HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


class Stack:
    """Parameters of one shape: what is stored, what the model computes with, and the gradient.

    The straight-through estimator needs no autograd here: the leaves of the graph are the working weights, and the
    gradient with respect to them is taken as the gradient of the stored ones.
    """

    def __init__(self, names: Sequence[str], values: Mapping[str, Tensor], device: torch.device) -> None:
        #: Names along the first axis.
        self.names = tuple(names)
        #: The stored weights, ``(n, L, *shape)``.
        self.stored = torch.stack([values[name] for name in names]).to(device)
        #: What the forward pass uses; the stored weights themselves where nothing stands between.
        self.working = self.stored
        #: Gradient of the working weights.
        self.gradient = torch.zeros_like(self.stored)
        self._leaves = self._make_leaves()

    @property
    def is_matrix(self) -> bool:
        """Matrices have weight decay and can be quantized; vectors have neither."""
        return self.stored.dim() == 4

    def use_own_working_weights(self) -> None:
        """Give the working weights memory of their own, because they differ from the stored ones."""
        self.working = self.stored.clone()
        self._leaves = self._make_leaves()

    def zeros(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Zeros of the stack's shape, with a gap after each tensor.

        A compiler that cannot run through several matrices in one go takes them one by one, as the sums over a matrix
        do; so the optimizer, rounding and counting become one loop.
        """
        shape, size = self.stored.shape, self.stored[0, 0].numel()
        apart = torch.zeros(*shape[:2], size + _GAP, dtype=dtype, device=self.stored.device)
        return apart[..., :size].view(shape)

    def leaves(self) -> dict[str, Tensor]:
        """The working weights by name, each ``(L, *shape)``, as leaves of the graph."""
        return self._leaves

    def take_gradient(self) -> None:
        """Move the gradients of the leaves into ``gradient``."""
        torch.stack([_taken(leaf) for leaf in self._leaves.values()], out=self.gradient)

    def _make_leaves(self) -> dict[str, Tensor]:
        return {name: self.working[i].detach().requires_grad_() for i, name in enumerate(self.names)}


def _taken(leaf: Tensor) -> Tensor:
    gradient, leaf.grad = leaf.grad, None
    assert gradient is not None
    return gradient


def per_lane(values: Tensor, like: Tensor) -> Tensor:
    """View ``(L,)`` or ``(n, L)`` so that it broadcasts against a stack ``(n, L, *shape)``."""
    return values.view(*values.shape, *[1] * (like.dim() - 2))


def lane_sum(x: Tensor) -> Tensor:
    """Sum over a stack's own dimensions to float64 ``(n, L)``.

    Axis by axis, so that no lane's order of addition depends on its neighbours.
    """
    x = x.sum(-1)
    return x.sum(-1, dtype=torch.float64) if x.dim() == 3 else x.double()


def copy_whole(target: Tensor, numbers: Tensor) -> None:
    """Set a tensor of narrow integers from int32 ones that fit.

    Compiled code for AVX2 turns floats into bytes by vector instructions, but integers one at a time; AVX512 has one
    instruction for integers.
    """
    target.copy_(numbers.float() if torch.compiler.is_compiling() and not _HAS_AVX512 else numbers)


def count(numbers: Tensor, most: int = 1) -> Tensor:
    """Sum over a matrix of whole numbers up to ``most``, or how many are true: ``(..., in, out)`` to float64."""
    fits = numbers.shape[-1] * numbers.shape[-2] * most < 2**31
    return numbers.sum((-1, -2), dtype=torch.int32 if fits else torch.int64).double()
