"""A GPT in which every tensor carries a leading lane axis: many runs of one shape in one program.

The model is a function of its weights. It holds none, so the loop decides what it computes with: masters, quantized
weights, or a checkpoint. Lanes never mix; each product is a batched product over lanes.

Shapes: L lanes, B batch, T time, C channels (``n_embd``), H heads, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from altgrad.training.config import ModelConfig
from altgrad.training.shapes import parameter_shapes

#: What stands between a matrix and its input (``enter``) or output (``leave``): (name, tensor) -> tensor.
Hook = Callable[[str, Tensor], Tensor]
#: How a matrix multiplies: (name, input ``(L, N, in)``, weight ``(L, in, out)``) -> ``(L, N, out)``.
Multiply = Callable[[str, Tensor, Tensor], Tensor]


def initial_parameters(model: ModelConfig, vocabulary: int, seeds: Sequence[int]) -> dict[str, Tensor]:
    """nanoGPT's initialisation, each lane from its own seed: tensors of shape ``(L, *shape)`` on the CPU."""
    shapes = parameter_shapes(model, vocabulary)
    lanes = [torch.Generator().manual_seed(seed) for seed in seeds]

    def values(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if len(shape) == 1:
            return torch.zeros(shape) if name.endswith(".bias") else torch.ones(shape)
        residual = name.endswith("c_proj")
        std = 0.02 / (2 * model.n_layer) ** 0.5 if residual else 0.02
        return torch.randn(shape, generator=generator) * std

    return {name: torch.stack([values(name, shape, lane) for lane in lanes]) for name, shape in shapes.items()}


def unchanged(name: str, x: Tensor) -> Tensor:
    """The hook that does nothing: the model in full precision."""
    return x


def in_float32(name: str, x: Tensor, w: Tensor) -> Tensor:
    """The ordinary product."""
    return torch.bmm(x, w)


def forward(
    weights: Mapping[str, Tensor],
    tokens: Tensor,
    model: ModelConfig,
    enter: Hook = unchanged,
    leave: Hook = unchanged,
    multiply: Multiply = in_float32,
) -> Tensor:
    """Logits of the next token.

    Args:
        weights: every parameter, ``(L, *shape)``.
        tokens: int64 of shape ``(L, B, T)``.
        model: the shape.
        enter: applied to the input of every linear layer.
        leave: applied to its output.
        multiply: the product of every linear layer.

    Returns:
        float32 of shape ``(L, B * T, V)``.
    """
    lanes, batch, time = tokens.shape

    def linear(name: str, x: Tensor) -> Tensor:
        y = multiply(name, enter(name, x), weights[name])
        bias = weights.get(f"{name}.bias")
        return leave(name, y if bias is None else y + bias.unsqueeze(1))

    def norm(name: str, x: Tensor) -> Tensor:
        y = F.layer_norm(x, x.shape[-1:]) * weights[name].unsqueeze(1)
        bias = weights.get(f"{name}.bias")
        return y if bias is None else y + bias.unsqueeze(1)

    def attention(name: str, x: Tensor) -> Tensor:
        qkv = linear(f"{name}.c_attn", x).view(lanes * batch, time, 3, model.n_head, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (L * B, H, T, C / H)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return linear(f"{name}.c_proj", y.transpose(1, 2).reshape(lanes, batch * time, -1))

    x = _embed(weights, tokens)
    for i in range(model.n_layer):
        x = x + attention(f"h.{i}.attn", norm(f"h.{i}.ln_1", x))
        hidden = F.gelu(linear(f"h.{i}.mlp.c_fc", norm(f"h.{i}.ln_2", x)))
        x = x + linear(f"h.{i}.mlp.c_proj", hidden)
    x = norm("ln_f", x)
    if not model.tied_head:
        return linear("lm_head", x)
    return leave("wte", multiply("wte", enter("wte", x), weights["wte"].mT))


def _embed(weights: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """Token plus position embeddings, ``(L, B * T, C)``; one table of L * V rows serves all lanes."""
    lanes, batch, time = tokens.shape
    wte = weights["wte"]
    rows = tokens + torch.arange(lanes, device=tokens.device).view(-1, 1, 1) * wte.shape[1]
    embedded = F.embedding(rows, wte.reshape(-1, wte.shape[-1]))
    return (embedded + weights["wpe"][:, None, :time]).view(lanes, batch * time, -1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean loss of each lane in nats a token: ``(L, N, V)`` and ``(L, B, T)`` with ``N = B * T`` to ``(L,)``."""
    lanes = logits.shape[0]
    losses = F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1), reduction="none")
    return losses.view(lanes, -1).mean(-1)
