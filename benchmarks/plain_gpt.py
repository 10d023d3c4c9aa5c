"""A plain float32 GPT as an `nn.Module`: nanoGPT's architecture, without lanes, formats or trackers.

The reference that the lane model is tested and timed against. Linear weights are ``(out, in)``, as PyTorch has them.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from altgrad.training.config import ModelConfig


class Norm(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


class Attention(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.heads = model.n_head
        self.c_attn = nn.Linear(model.n_embd, 3 * model.n_embd, bias=model.bias)
        self.c_proj = nn.Linear(model.n_embd, model.n_embd, bias=model.bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        q, k, v = (y.view(batch, time, self.heads, -1).transpose(1, 2) for y in self.c_attn(x).split(width, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(batch, time, width))


class MLP(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(model.n_embd, 4 * model.n_embd, bias=model.bias)
        self.c_proj = nn.Linear(4 * model.n_embd, model.n_embd, bias=model.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.ln_1, self.attn = Norm(model.n_embd, model.bias), Attention(model)
        self.ln_2, self.mlp = Norm(model.n_embd, model.bias), MLP(model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class PlainGPT(nn.Module):
    """Tokens ``(batch, time)`` and targets to the mean loss in nats a token."""

    def __init__(self, model: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, model.n_embd)
        self.wpe = nn.Embedding(model.block_size, model.n_embd)
        self.h = nn.ModuleList(Block(model) for _ in range(model.n_layer))
        self.ln_f = Norm(model.n_embd, model.bias)
        self.lm_head = nn.Linear(model.n_embd, vocabulary, bias=False)
        if model.tied_head:
            self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    @torch.no_grad()
    def take(self, lane: Mapping[str, Tensor]) -> None:
        """Copy the parameters of one lane, whose linear weights are ``(in, out)``."""
        for name, parameter in self.named_parameters():
            own = name.removesuffix(".weight")
            is_linear = parameter.dim() == 2 and own not in ("wte", "wpe")
            parameter.copy_(lane[own].t() if is_linear else lane[own])

    def optimizer(self, lr: float, beta2: float, weight_decay: float) -> torch.optim.AdamW:
        """nanoGPT's: decay on matrices only."""
        matrices = [p for p in self.parameters() if p.dim() == 2]
        vectors = [p for p in self.parameters() if p.dim() != 2]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, beta2))
