"""Mixture of Transformers: two experts per layer that meet in one attention.

Tokens are kept in two streams, understanding and generation, instead of one mixed sequence: routing is then slicing,
every shape is static, and the order of a document lives in positions and mask alone (attention does not care for
the order in which keys are stored).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hyperbagel.bagel.config import LLMConfig
from hyperbagel.bagel.embeddings import Rotation
from hyperbagel.bagel.gathering import ahead, are_sharded, backwards
from hyperbagel.bagel.joinable import Joinable

Shapes = Literal["any", "fixed", "all layers"]
"""What layers are compiled for: batches and pictures of any size at once, for training; or each size by itself, with
contexts of any length, which is faster and pays where many pictures of one size are drawn; or all layers at once, each
shape by itself, which a GPU replays as one graph, in training."""


class AttentionInput(Joinable):
    """First half of an expert layer: norm, q/k/v projections, q/k norm over each head, rope."""

    together = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.input_layernorm = nn.RMSNorm(width, config.rms_norm_eps)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, kv_width)
        self.v_proj = nn.Linear(width, kv_width)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, N, D) -> q (B, heads, N, head_dim), k and v (B, kv_heads, N, head_dim)."""
        x = self.input_layernorm(x)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in self.project(x))
        q, k = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2)
        return rope.apply(q), rope.apply(k), v.transpose(1, 2)


class AttentionOutput(Joinable):
    """Second half of an expert layer: output projection and SwiGLU MLP, both residual."""

    together = ("gate_proj", "up_proj")

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.o_proj = nn.Linear(width, width, bias=False)
        self.post_attention_layernorm = nn.RMSNorm(width, config.rms_norm_eps)
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        """x: (B, N, D) residual stream, attended: (B, N, D) attention result of all heads -> (B, N, D)."""
        x = x + self.o_proj(attended)
        gate, up = self.project(self.post_attention_layernorm(x))
        gate = F.silu(gate)
        gate = gate * up if torch.is_grad_enabled() else gate.mul_(up)  # these are the largest tensors of a pass
        x = x + self.down_proj(gate)
        return x


class ExpertLayer(nn.Module):
    """One expert's parameters of one layer, in two halves with the shared attention between them."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.input = AttentionInput(config)
        self.output = AttentionOutput(config)


class Streams(NamedTuple):
    """The residual streams: understanding (B, Nu, D) and generation (B, Ng, D); either may have no tokens."""

    und: Tensor
    gen: Tensor


class KeyValues(Protocol):
    """Keys and values of earlier tokens."""

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values that new tokens of `layer` attend to; k and v: (B, kv_heads, N, head_dim)."""
        ...


class Past(NamedTuple):
    """Keys and values of earlier tokens, each (layers, B, kv_heads, T, head_dim), after q/k norm and rope."""

    keys: Tensor
    values: Tensor

    def per_layer(self) -> list[PastLayer]:
        """Each layer's part, taken out at once: gradients of single slices of the whole are each as large as it."""
        return [PastLayer(k, v) for k, v in zip(self.keys.unbind(0), self.values.unbind(0), strict=True)]


class PastLayer(NamedTuple):
    """One layer's part of `Past`, each (B, kv_heads, T, head_dim)."""

    keys: Tensor
    values: Tensor

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Earlier tokens followed by the new ones, without storing these."""
        return torch.cat([self.keys, k], dim=2), torch.cat([self.values, v], dim=2)


class MoTOutput(NamedTuple):
    """Streams after the last layer (before the final norms); the new tokens' keys and values, one tensor per layer
    (B, kv_heads, Nu + Ng, head_dim), understanding tokens first; and, when asked for, the residual streams: entry i
    enters layer i, the last one leaves the last layer."""

    streams: Streams
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    layers: tuple[Streams, ...]


@dataclass(frozen=True)
class TrainingOutput:
    """Of one training forward: final hidden states of both streams after the norm, und (B, Nu, D) and gen (B, Ng, D),
    and the velocity (B, Ng, C) of every latent token."""

    und: Tensor
    gen: Tensor
    velocity: Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Grouped-query attention. q: (B, H, N, d), k and v: (B, Hkv, T, d), mask: (B, 1, N, T) bool -> (B, N, H * d)."""
    if q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad:
        attended = _plain_attention(q, k, v, mask)
    else:
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return attended.transpose(1, 2).flatten(2)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention as matrix products: the backward pass of the CPU's fused attention takes a third of a training step.

    Queries that may see nothing (padding) get a mean instead of zeros, which nothing reads.
    """
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).to(v.dtype) @ v


def layer_forward(
    experts: tuple[ExpertLayer, ExpertLayer | None],
    streams: Streams,
    ropes: tuple[Rotation, Rotation],
    mask: Tensor | None,
    layer: int,
    past: KeyValues | None,
) -> tuple[Streams, Tensor, Tensor]:
    """One layer over both streams; streams without tokens are not computed. Returns also this layer's new k and v."""
    split = streams.und.shape[1]
    empty = not split and not streams.gen.shape[1]  # then shapes still have to come from somewhere
    parts = [
        expert.input(x, rope)
        for expert, x, rope in zip(experts, streams, ropes, strict=True)
        if expert is not None and (x.shape[1] or empty)
    ]
    q, k, v = (part[0] if len(part) == 1 else torch.cat(part, dim=2) for part in zip(*parts, strict=True))
    keys, values = (k, v) if past is None else past.extend(layer, k, v)
    attended = attend(q, keys, values, mask)
    und, gen = streams
    if split:
        und = experts[0].output(und, _rows(attended[:, :split]))
    if gen.shape[1] and experts[1] is not None:
        gen = experts[1].output(gen, _rows(attended[:, split:]))
    return Streams(und, gen), k, v


def _rows(x: Tensor) -> Tensor:
    """A stream's part (B, N, D) of all tokens, on a GPU as a tensor of its own: of slices of several documents a linear
    layer makes one small product each."""
    return x if x.is_cpu else x.contiguous()


@cache
def compiled_layer_forward(shapes: Shapes = "any") -> Callable[..., Any]:
    """`layer_forward` by torch.compile, made when first asked for."""
    import torch._dynamo  # slow to import

    # Kinds of passes are few, but more than the usual limit: with or without gradients, a context, a mask. The limit is
    # raised for the process: only the newest releases of PyTorch take one with each function.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 32)
    compiled: Callable[..., Any] = torch.compile(layer_forward, dynamic=shapes == "any")
    return compiled


@cache
def compiled_layers() -> Callable[..., MoTOutput]:
    """`mot_forward` by torch.compile as a whole, made when first asked for."""
    import torch._dynamo  # slow to import

    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 64)  # a kind of batch and a length each
    compiled: Callable[..., MoTOutput] = torch.compile(mot_forward, dynamic=False, mode="reduce-overhead")
    return compiled


def _of_any_length(past: PastLayer, mask: Tensor | None) -> None:
    """Let a layer that is compiled for fixed shapes take contexts of all lengths."""
    import torch._dynamo

    for value, dimension in ((past.keys, 2), (past.values, 2), (mask, 3)):
        if value is not None:
            torch._dynamo.maybe_mark_dynamic(value, dimension)


def mot_forward(
    experts: Sequence[tuple[ExpertLayer, ExpertLayer | None]],
    streams: Streams,
    rope: Rotation,
    mask: Tensor | None,
    past: Past | KeyValues | None = None,
    *,
    record_layers: bool = False,
    checkpointing: bool = False,
    compiled: Shapes | None = None,
) -> MoTOutput:
    """All layers. rope: of all new tokens, understanding tokens first; mask: (B, 1, Nu + Ng, T + Nu + Ng) or None.

    checkpointing, compiled: recompute layers in the backward pass, where gradients are taken; run compiled layers,
    unless tokens are stored in a cache.
    """
    if compiled == "all layers":
        together = mot_forward if past is not None and not isinstance(past, Past) else compiled_layers()
        return together(experts, streams, rope, mask, past, record_layers=record_layers, checkpointing=checkpointing)
    ropes = rope.split(streams.und.shape[1])
    stored = past is not None and not isinstance(past, Past)
    pasts: Sequence[KeyValues | None] = past.per_layer() if isinstance(past, Past) else [past] * len(experts)
    training = torch.is_grad_enabled()
    forward = layer_forward if compiled is None or stored else compiled_layer_forward(compiled)
    sharded = are_sharded(experts)
    keys, values, layers = [], [], [streams]
    for i, (pair, own) in enumerate(zip(experts, pasts, strict=True)):
        if compiled == "fixed" and isinstance(own, PastLayer):
            _of_any_length(own, mask)
        if sharded:
            ahead(experts[i : i + 2], streams)
        if checkpointing and training:
            again = backwards(forward, experts[i - 1], streams) if sharded and i else forward
            streams, k, v = checkpoint(again, pair, streams, ropes, mask, i, own, use_reentrant=False)
        else:
            streams, k, v = forward(pair, streams, ropes, mask, i, own)
        keys.append(k)
        values.append(v)
        if record_layers:
            layers.append(streams)
    return MoTOutput(streams, tuple(keys), tuple(values), tuple(layers) if record_layers else ())
