"""The draft head, which proposes tokens from the target's hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hyperbagel.bagel.config import LLMConfig
from hyperbagel.bagel.embeddings import Rotation, rotation
from hyperbagel.bagel.joinable import Joinable
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.mot import AttentionOutput, ExpertLayer, KeyValues, attend
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.intermediate import IntermediateLayer


class PairInput(Joinable):
    """First half of EAGLE-3's first layer: attention reads [token embedding ; feature], each normed on its own.

    As in EAGLE-3 (and in what serving engines load) without biases and without q/k norm.
    """

    together = ("q_proj", "k_proj", "v_proj")

    def __init__(self, llm: LLMConfig) -> None:
        super().__init__()
        self.head_dim = llm.head_dim
        width, kv_width = llm.hidden_size, llm.num_key_value_heads * llm.head_dim
        self.input_layernorm = nn.RMSNorm(width, llm.rms_norm_eps)
        self.hidden_norm = nn.RMSNorm(width, llm.rms_norm_eps)
        self.q_proj = nn.Linear(2 * width, width, bias=False)
        self.k_proj = nn.Linear(2 * width, kv_width, bias=False)
        self.v_proj = nn.Linear(2 * width, kv_width, bias=False)

    def forward(self, pair: Tensor, rope: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """pair: (B, N, 2 D) -> q (B, heads, N, head_dim), k and v (B, kv_heads, N, head_dim)."""
        embedded, feature = pair.chunk(2, dim=-1)
        x = torch.cat([self.input_layernorm(embedded), self.hidden_norm(feature)], dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in self.project(x))
        return rope.apply(q), rope.apply(k), v


class PairLayer(nn.Module):
    """EAGLE-3's first layer; the second half is the target's own kind."""

    def __init__(self, llm: LLMConfig) -> None:
        super().__init__()
        self.input = PairInput(llm)
        self.output = AttentionOutput(llm)


class Fusion(nn.Module):
    """fc2: [normed token embedding ; feature] -> what enters the first draft layer, at every draft step."""

    def __init__(self, llm: LLMConfig, zero: bool) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(llm.hidden_size, llm.rms_norm_eps)
        self.fc2 = nn.Linear(2 * llm.hidden_size, llm.hidden_size, bias=False)
        if zero:
            nn.init.zeros_(self.fc2.weight)

    def forward(self, embedded: Tensor, feature: Tensor) -> Tensor:
        """Both (B, N, D) -> (B, N, D)."""
        output: Tensor = self.fc2(torch.cat([self.norm(embedded), feature], dim=-1))
        return output


class DraftHead(nn.Module):
    """Proposes the token after next.

    Row t has the feature of token t and the embedding of token t + 1, and predicts token t + 2. Token embeddings are
    the target's, frozen, and not part of the head. Only understanding tokens have rows: clean latents reach the draft
    through the hidden states of the tokens after them.

    A parallel head predicts token t + 2 + i from the same pair of feature and embedding, and the i-th embedding of the
    places ahead; these places see the rows up to t and those before them.

    vocabulary: ids of the target that the draft can propose; default all.

    Examples:
        >>> from hyperbagel.draft.config import DraftConfig
        >>> head = DraftHead.from_target(DraftConfig(layers=1), model)
        >>> head.config.layers
        1
    """

    def __init__(self, config: DraftConfig, llm: LLMConfig, vocabulary: Sequence[int] | None = None) -> None:
        super().__init__()
        if vocabulary is not None and (
            not vocabulary
            or len(set(vocabulary)) < len(vocabulary)
            or not 0 <= min(vocabulary) <= max(vocabulary) < llm.vocab_size
        ):
            raise ValueError(f"a draft vocabulary must name distinct token ids below {llm.vocab_size}")
        self.config, self.llm = config, llm
        self.features = IntermediateLayer(config, llm)
        self.fusion: Fusion | None = None
        layers: list[nn.Module] = []
        if config.kind == "eagle3":
            layers.append(PairLayer(llm))
        else:
            self.fusion = Fusion(llm, config.zero_init)
        layers += [ExpertLayer(llm) for _ in range(config.layers - len(layers))]
        self.layers = nn.ModuleList(layers)
        self.ahead_embedding: nn.Parameter | None = None
        if config.kind == "parallel":
            self.ahead_embedding = nn.Parameter(0.02 * torch.randn(config.ahead - 1, llm.hidden_size))
        self.norm = nn.RMSNorm(llm.hidden_size, llm.rms_norm_eps)
        self.lm_head = nn.Linear(llm.hidden_size, len(vocabulary or range(llm.vocab_size)), bias=False)
        self.vocabulary: Tensor | None
        self.register_buffer("vocabulary", None if vocabulary is None else torch.tensor(sorted(vocabulary)))

    @classmethod
    def from_target(
        cls, config: DraftConfig, model: Bagel, vocabulary: Sequence[int] | None = None, seed: int = 0
    ) -> DraftHead:
        """A fresh head for `model`, on its device and in its dtype.

        Layers of the target's kind, final norm and LM head start as the target's last ones; the rest is random by seed.
        Raises ValueError when more layers are asked for than the target has, or for an impossible vocabulary.
        """
        und, llm = model.understanding, model.config.llm
        if config.layers > llm.num_hidden_layers:
            raise ValueError(f"a draft of {config.layers} layers cannot start from a target of {llm.num_hidden_layers}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = cls(config, llm, vocabulary)
        head.to(model.device, model.dtype)
        first = llm.num_hidden_layers - config.layers
        for own, theirs in zip(head.layers, und.layers[first:], strict=True):
            if isinstance(own, ExpertLayer):
                own.load_state_dict(theirs.state_dict())
        head.norm.load_state_dict(und.norm.state_dict())
        rows = und.lm_head.weight if head.vocabulary is None else und.lm_head.weight[head.vocabulary]
        with torch.no_grad():
            head.lm_head.weight.copy_(rows)
        return head

    @property
    def decoder_layers(self) -> list[ExpertLayer | PairLayer]:
        """The layers of a draft step, in order."""
        return list(self.layers)  # type: ignore[arg-type]

    def rope(self, positions: Tensor) -> Rotation:
        """Rotations for rope positions (B, N)."""
        return rotation(positions, self.llm.head_dim, self.llm.rope_theta, self.lm_head.weight.dtype)

    def fuse(self, embedded: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding of the next token and feature, both (B, N, D) -> the residual stream that enters the first layer,
        and what its attention reads."""
        if self.fusion is None:
            return feature, torch.cat([embedded, feature], dim=-1)
        x = self.fusion(embedded, feature)
        return x, x

    def later(self, number: int, fused: Tensor, embedded: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """As `fuse`, of draft step `number` (from 1 on).

        fused: what entered the first layer at step 0, which a parallel head goes on from; embedded, hidden: of the
        token before and the features of the last step, which the others do. All (B, N, D).
        """
        if self.ahead_embedding is None:
            return self.fuse(embedded, hidden)
        x = fused + self.ahead_embedding[number - 1]
        return x, x

    def forward(
        self, embedded: Tensor, feature: Tensor, rope: Rotation, mask: Tensor | None, cache: KeyValues | None = None
    ) -> Tensor:
        """One draft step for rows (B, N, D): the feature that the next step is fed, before the final norm."""
        x, read = self.fuse(embedded, feature)
        for i, layer in enumerate(self.decoder_layers):
            q, k, v = layer.input(read if i == 0 else x, rope)
            if cache is not None:
                k, v = cache.extend(i, k, v)
            x = layer.output(x, attend(q, k, v, mask))
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits over the draft's own vocabulary: (..., D) -> (..., V'). The norm is only here, never fed back."""
        output: Tensor = self.lm_head(self.norm(hidden))
        return output

    def target_ids(self, ids: Tensor) -> Tensor:
        """Ids of the draft's vocabulary to ids of the target."""
        return ids if self.vocabulary is None else self.vocabulary[ids]
