"""Layers for inference in few, large operations: at one token and batch size 1 their number decides the time.

The same mathematics as `bagel.mot`, without gradients and for the understanding stream alone: joined projections, rope
applied to queries and keys at once, residual additions inside the matrix products, query heads of one key-value head
as rows of one attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperbagel.bagel.config import LLMConfig
from hyperbagel.bagel.embeddings import rotation
from hyperbagel.bagel.joined import whole_of
from hyperbagel.bagel.processor import cpu_multiplies_bfloat16
from hyperbagel.bagel.quantized import is_plain
from hyperbagel.decoding.cache import Entries, RowCache
from hyperbagel.draft.head import PairInput

_PACKED = 2**18
"""How many numbers a weight has at least to be packed; products with smaller ones are over before packing pays."""

_ROWS = 8
"""About how many tokens a verification has: what weights are packed for."""

_FEWEST = 4
"""Rows to which fewer are filled up: so many take oneDNN a fifth less time than one."""


class Rope(NamedTuple):
    """Cosines and signed sines of a pass, each (B or 1, n, 1, head_dim)."""

    cos: Tensor
    sin: Tensor


class RopeTable:
    """Rotations of all positions up to a highest one, computed once. like: gives device and dtype."""

    def __init__(self, llm: LLMConfig, positions: int, like: Tensor) -> None:
        self._llm = llm
        self._fill(positions, like)

    def _fill(self, positions: int, like: Tensor) -> None:
        llm, index = self._llm, torch.arange(positions, device=like.device)[None]
        table = rotation(index, llm.head_dim, llm.rope_theta, like.dtype)
        self._cos, self._sin = table.cos[0, 0, :, None], table.sin[0, 0, :, None]

    def reach(self, positions: int) -> RopeTable:
        """The table itself, now of at least so many positions."""
        if positions > len(self._cos):
            self._fill(max(positions, 2 * len(self._cos)), self._cos)
        return self

    def at(self, positions: Tensor) -> Rope:
        """Rotations of positions (B, n)."""
        return Rope(self._cos[positions], self._sin[positions])


class Norm:
    """`nn.RMSNorm` in operations that cost half as much for a few rows in float32.

    weight: (D,), or (heads, D) with one for each head of inputs (..., heads, D).
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.eps = weight, eps
        self._eps = torch.tensor(eps, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (..., D), or (..., heads, D)."""
        width = x.shape[-1:]
        if x.dtype == torch.float32:
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            return x * torch.addcmul(self._eps, norm, norm, value=1 / x.shape[-1]).rsqrt_() * self.weight
        if self.weight.ndim == 1:
            return F.rms_norm(x, width, self.weight.to(x.dtype), self.eps)
        # As the operator does inside: in float32, and rounded once. It takes no weights of several heads.
        return (F.rms_norm(x.float(), width, None, self.eps) * self.weight).to(x.dtype)


class Projection:
    """Linear maps of one input as one product, or, unless they are joined already (`bagel.joined`), one by one without
    copies of their weights.

    fuse: copy the weights, joined, in the layout that few rows in float32 are fastest with: transposed, those beyond a
    processor's caches (`_PACKED` and more numbers) as oneDNN packs them, for which five rows take no longer than one.
    Rounded weights (`bagel.quantized`) are left to their layers.
    half: pack them in bfloat16 where the processor multiplies in it, which takes half the time.
    """

    def __init__(self, maps: Sequence[nn.Linear], fuse: bool, half: bool = False) -> None:
        self.rounded = [] if all(is_plain(m.weight) for m in maps) else list(maps)
        self.packed = False
        self.parts: list[tuple[Tensor, Tensor | None]] = []
        if not self.rounded:
            whole = whole_of(maps)
            pairs = [(m.weight, m.bias) for m in maps] if whole is None else [whole]
            self.parts = [(weight.t(), bias) for weight, bias in pairs]
        if fuse and self.parts:
            weights: list[Tensor] = [m.weight for m in maps]
            biases: list[Tensor] = [m.bias for m in maps if m.bias is not None]
            weight = torch.cat(weights)
            self.packed = weight.numel() >= _PACKED and _can_pack(weight)
            weight = weight.bfloat16() if self.packed and half and cpu_multiplies_bfloat16() else weight
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS) if self.packed else weight.t().contiguous()
            self.parts = [(weight, torch.cat(biases) if biases else None)]

    def __call__(self, x: Tensor) -> Tensor:
        """x: (rows, in) -> (rows, out of all maps)."""
        if self.packed:
            return self._by_onednn(x)
        results: list[Tensor] = [linear(x) for linear in self.rounded]
        results += [
            torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight) for weight, bias in self.parts
        ]
        return results[0] if len(results) == 1 else torch.cat(results, dim=-1)

    def add_to(self, x: Tensor, y: Tensor) -> Tensor:
        """x + this projection of y, of a single map without bias."""
        if self.packed:
            return x + self._by_onednn(y)
        return x + self(y) if self.rounded else torch.addmm(x, y, self.parts[0][0])

    def _by_onednn(self, x: Tensor) -> Tensor:
        weight, bias = self.parts[0]
        rows = len(x)
        if rows < _FEWEST:
            x = F.pad(x, (0, 0, 0, _FEWEST - rows))
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(weight.dtype), weight, bias, "none", [], "")
        return y[:rows].to(x.dtype)


def _can_pack(weight: Tensor) -> bool:
    """Whether oneDNN packs this weight here, by the operators that compiled models use."""
    cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    return cpu and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class LogitsHead:
    """Final norm and LM head."""

    @torch.no_grad()
    def __init__(self, norm: Norm, lm_head: nn.Linear, fuse: bool, half: bool = False) -> None:
        self.norm = norm
        self.projection = Projection([lm_head], fuse, half)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (B, n, D) -> logits (B, n, V)."""
        return self.projection(self.norm(x).flatten(0, 1)).view(*x.shape[:2], -1)


class _Layer:
    """One layer's weights, ready for use. layer: `ExpertLayer` or EAGLE-3's `PairLayer`."""

    def __init__(self, layer: Any, llm: LLMConfig, fuse: bool, half: bool) -> None:
        entry, out = layer.input, layer.output
        eps = llm.rms_norm_eps
        self.norm = Norm(entry.input_layernorm.weight, eps)
        self.second_norm = Norm(entry.hidden_norm.weight, eps) if isinstance(entry, PairInput) else None
        self.qkv = Projection([entry.q_proj, entry.k_proj, entry.v_proj], fuse, half)
        self.qk_norm: Norm | None = None
        if isinstance(getattr(entry, "q_norm", None), nn.RMSNorm):
            heads = ((entry.q_norm, llm.num_attention_heads), (entry.k_norm, llm.num_key_value_heads))
            self.qk_norm = Norm(torch.cat([norm.weight.expand(count, -1) for norm, count in heads]), eps)
        self.out = Projection([out.o_proj], fuse, half)
        self.mlp_norm = Norm(out.post_attention_layernorm.weight, eps)
        self.gate_up = Projection([out.gate_proj, out.up_proj], fuse, half)
        self.down = Projection([out.down_proj], fuse, half)


class FusedStack:
    """Layers for inference. A snapshot: build it anew after the weights have changed.

    layers: `ExpertLayer`s (the first may be EAGLE-3's `PairLayer`); fuse: keep joined copies of the projections, which
    is faster and costs their memory again (small models); without it the layers' own weights are used; half: see
    `Projection`.
    """

    @torch.no_grad()
    def __init__(self, layers: Sequence[nn.Module], llm: LLMConfig, fuse: bool = True, half: bool = False) -> None:
        self.llm = llm
        self.groups = llm.num_attention_heads // llm.num_key_value_heads
        self.layers = [_Layer(layer, llm, fuse, half) for layer in layers]

    def cache(self, batch: int, capacity: int, like: Tensor) -> RowCache:
        """An empty cache for these layers."""
        llm = self.llm
        return RowCache.empty((len(self.layers), batch, llm.num_key_value_heads, capacity, llm.head_dim), like)

    def __call__(
        self,
        x: Tensor,
        rope: Rope,
        mask: Tensor | None,
        cache: Entries,
        read: Tensor | None = None,
        record: list[Tensor] | None = None,
        tail: int | None = None,
    ) -> Tensor:
        """Residual stream (B, n, D) through the layers, keys and values written where `cache.place` said.

        mask: as `place` returned it; read: what the first layer's attention reads instead of x (EAGLE-3); record: gets
        the stream after every layer; tail: give the result of the last so many tokens only, which spares the others
        most of the last layer.
        """
        batch, new, width = x.shape
        place, wanted = (rope, self._for_all_heads(mask), cache), new
        x = x.reshape(-1, width)
        for i, layer in enumerate(self.layers):
            h = self._read(layer, x if read is None or i else read.reshape(batch * new, -1))
            if tail is not None and tail < new and i == len(self.layers) - 1:
                seen = None if mask is None else mask[:, :, -tail:]
                place, wanted = (rope, self._for_all_heads(seen), cache), tail
                x = x.view(batch, new, width)[:, -tail:].reshape(-1, width)
            x = layer.out.add_to(x, self._attention(i, layer, h, place, wanted))
            gate, up = layer.gate_up(layer.mlp_norm(x)).chunk(2, -1)
            x = layer.down.add_to(x, F.silu(gate).mul_(up))
            if record is not None:
                record.append(x.view(batch, wanted, width))
        return x.view(batch, wanted, width)

    def _for_all_heads(self, mask: Tensor | None) -> Tensor | None:
        return mask if mask is None or self.groups == 1 else mask.repeat(1, 1, self.groups, 1)

    def _read(self, layer: _Layer, h: Tensor) -> Tensor:
        if layer.second_norm is None:
            return layer.norm(h)
        embedded, feature = h.chunk(2, dim=-1)
        return torch.cat([layer.norm(embedded), layer.second_norm(feature)], dim=-1)

    def _attention(
        self, index: int, layer: _Layer, h: Tensor, place: tuple[Rope, Tensor | None, Entries], wanted: int
    ) -> Tensor:
        """Normed input (B * n, ·) -> attention result (B * wanted, heads * head_dim) of the last tokens."""
        rope, mask, cache = place
        batch, new = rope.cos.shape[:2]
        heads, kv, dim = self.llm.num_attention_heads, self.llm.num_key_value_heads, self.llm.head_dim
        qkv = layer.qkv(h).view(batch, new, heads + 2 * kv, dim)
        qk = qkv[:, :, : heads + kv]
        if layer.qk_norm is not None:
            qk = layer.qk_norm(qk)
        qk = torch.addcmul(qk * rope.cos, qk.roll(dim // 2, dims=-1), rope.sin)
        keys, values = cache.extend(index, qk[:, :, heads:], qkv[:, :, heads + kv :])
        q = qk[:, -wanted:, :heads]
        if self.groups == 1:
            attended = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask)
            return attended.transpose(1, 2).reshape(batch * wanted, heads * dim)
        q = q.unflatten(2, (kv, -1)).permute(0, 2, 3, 1, 4).reshape(batch, kv, -1, dim)
        attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        attended = attended.unflatten(2, (self.groups, wanted)).permute(0, 3, 1, 2, 4)
        return attended.reshape(batch * wanted, heads * dim)
