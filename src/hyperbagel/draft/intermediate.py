"""From the target's hidden states to the draft's input features: cross-attention per token, `Dec`, fc1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperbagel.bagel.config import LLMConfig
from hyperbagel.bagel.embeddings import Rotation
from hyperbagel.bagel.mot import ExpertLayer, KeyValues, attend
from hyperbagel.draft.config import DraftConfig

Features = Mapping[int, Tensor]
"""Residual streams of the target by their entry in `MoTOutput.layers`, each (B, N, D)."""


class MetaQueryAttention(nn.Module):
    """Q learned queries attend, for each token on its own, to that token's hidden states of all target layers.

    Nothing is shared between tokens, so there is no cache. Multi-head attention as usual, in an order that suits a few
    fixed queries over many keys: queries are folded into the key projection, and values are projected after mixing.

    Examples:
        >>> attention = MetaQueryAttention(queries=3, llm=model.config.llm)
        >>> width, layers = model.config.llm.hidden_size, model.config.llm.num_hidden_layers
        >>> attention(torch.randn(1, 5, layers, width)).shape == (1, 5, 3, width)
        True
    """

    def __init__(self, queries: int, llm: LLMConfig) -> None:
        super().__init__()
        width = llm.hidden_size
        self.heads = llm.num_attention_heads
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.norm = nn.RMSNorm(width, llm.rms_norm_eps)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def folded_queries(self) -> Tensor:
        """(Q * heads, D): scores of a token's normed hidden states x are x @ this^T."""
        q = self.q_proj(self.queries).unflatten(-1, (self.heads, -1))
        keys = self.k_proj.weight.unflatten(0, (self.heads, -1))
        return torch.einsum("qhd,hdw->qhw", q, keys).flatten(0, 1) * q.shape[-1] ** -0.5

    def forward(self, layers: Tensor, folded: Tensor | None = None) -> Tensor:
        """layers: (B, N, L, D), a token's hidden states -> (B, N, Q, D). folded: `folded_queries()`, if at hand."""
        x = self.norm(layers)
        weights = F.linear(x, self.folded_queries() if folded is None else folded).softmax(-2)
        mixed = (weights.transpose(-1, -2) @ x).unflatten(-2, (-1, self.heads))
        values = self.v_proj.weight.unflatten(0, (self.heads, -1))
        output: Tensor = self.o_proj(torch.einsum("bnqhw,hdw->bnqhd", mixed, values).flatten(-2))
        return output


class IntermediateLayer(nn.Module):
    """The paper's intermediate layer: meta queries, `Dec` and fc1, with low, middle and high level as skips.

    For EAGLE-3 only fc1 over the levels is left (its `fc`). `Dec` has the target's architecture at Q times its width
    and heads, and the target's key-value heads. It runs once a token, never at draft steps.

    Examples:
        >>> from hyperbagel.draft.config import DraftConfig
        >>> layer = IntermediateLayer(DraftConfig(), model.config.llm)
        >>> float(layer.fc1.weight.abs().sum())  # starts at zero
        0.0
    """

    def __init__(self, config: DraftConfig, llm: LLMConfig) -> None:
        super().__init__()
        width, queries = llm.hidden_size, config.queries
        self.levels = config.level_entries(llm)
        self.entries = tuple(range(1, llm.num_hidden_layers + 1))
        self.attention = MetaQueryAttention(queries, llm) if config.attends else None
        self.decoder: ExpertLayer | None = None
        if config.decodes:
            self.decoder_config = replace(
                llm,
                hidden_size=queries * width,
                num_attention_heads=queries * llm.num_attention_heads,
                intermediate_size=config.decoder_size or llm.intermediate_size,
            )
            self.decoder = ExpertLayer(self.decoder_config)
        self.fc1 = nn.Linear(queries * width, width, bias=False)
        if config.kind != "eagle3" and config.zero_init:
            self._start_at_zero()

    def _start_at_zero(self) -> None:
        last = [self.fc1.weight]
        if self.attention is not None:
            last.append(self.attention.o_proj.weight)
        if self.decoder is not None:  # both of its residual additions, so that it starts as the identity
            last += [self.decoder.output.o_proj.weight, self.decoder.output.down_proj.weight]
        for weight in last:
            nn.init.zeros_(weight)

    def combine(self, features: Features, folded: Tensor | None = None) -> Tensor:
        """Each token's own part: skips plus cross-attention, flattened to (B, N, Q * D). folded: see the attention."""
        levels = torch.cat([features[level] for level in self.levels], dim=-1)
        if self.attention is None:
            return levels
        layers = torch.stack([features[entry] for entry in self.entries], dim=2)
        return levels + self.attention(layers, folded).flatten(-2)

    def forward(
        self, features: Features, rope: Rotation, mask: Tensor | None, cache: KeyValues | None = None
    ) -> Tensor:
        """Input features of the draft (B, N, D).

        rope: of the tokens; mask: causal over the sequence, (B, 1, N, T + N) bool; cache: earlier tokens of `Dec`.
        """
        x = self.combine(features)
        if self.decoder is not None:
            q, k, v = self.decoder.input(x, rope)
            if cache is not None:
                k, v = cache.extend(0, k, v)
            x = self.decoder.output(x, attend(q, k, v, mask))
        output: Tensor = self.fc1(x)
        return output
