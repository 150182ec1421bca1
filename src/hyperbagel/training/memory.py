"""What one document of a training batch takes, in bytes: estimates by formula, from shapes alone.

Fused attention, bfloat16 activations, no allocator overhead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from hyperbagel.bagel.autoencoder import Autoencoder
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.model import Bagel

ACTIVATION_BYTES = 2


@dataclass(frozen=True)
class Workload:
    """One document of a batch. side: of the picture to be drawn, in pixels; text: tokens before it; editing: whether a
    picture of the same size is given as well."""

    side: int = 1024
    text: int = 128
    editing: bool = True

    def image_tokens(self, config: BagelConfig) -> int:
        """Latent tokens of the picture to be drawn."""
        return (self.side // config.latent_stride) ** 2

    def context_tokens(self, config: BagelConfig) -> int:
        """Tokens before it: text, and with a source picture its clean latents and ViT tokens, each between two
        markers."""
        if not self.editing:
            return self.text
        return self.text + self.image_tokens(config) + self.vit_tokens(config) + 4

    def vit_tokens(self, config: BagelConfig) -> int:
        """Tokens of a picture that is looked at."""
        return (min(self.side, config.vit_transform.max_size) // config.vit.patch_size) ** 2


@dataclass(frozen=True)
class DocumentCost:
    """The parts that the memory of a document is made of, in a model that was built on the meta device."""

    model: Bagel
    workload: Workload

    @property
    def graph(self) -> int:
        """Activations of a branch over the picture to be drawn, with a gradient."""
        config, image = self.model.config, self.workload.image_tokens(self.model.config)
        context = self.workload.context_tokens(config)
        return expert_activations(config, image, context, config.llm.num_hidden_layers, self.model.checkpointing)

    @property
    def whole_forward(self) -> int:
        """Activations of both sides over the whole document, with a gradient."""
        config = self.model.config
        tokens = self.workload.context_tokens(config) + self.workload.image_tokens(config)
        return expert_activations(config, tokens, 0, config.llm.num_hidden_layers, self.model.checkpointing)

    @property
    def reading(self) -> int:
        """Activations of both sides over what is before the picture, with a gradient; none where no picture is."""
        if not self.workload.editing:
            return 0
        config, tokens = self.model.config, self.workload.context_tokens(self.model.config)
        return expert_activations(config, tokens, 0, config.llm.num_hidden_layers, self.model.checkpointing)

    def question(self, layers: int) -> int:
        """Activations of so many layers over a question on a picture."""
        config = self.model.config
        tokens = self.workload.vit_tokens(config) + self.workload.text
        return expert_activations(config, tokens, 0, layers, checkpointing=False)

    @property
    def decoder(self) -> int:
        """Activations of a gradient through the decoded picture."""
        return decoder_activations(self.model.autoencoder, self.workload.side)

    @property
    def cache(self) -> int:
        """One key-value cache of what is before the picture."""
        llm = self.model.config.llm
        numbers = 2 * llm.num_hidden_layers * llm.num_key_value_heads * llm.head_dim
        return numbers * self.workload.context_tokens(self.model.config) * ACTIVATION_BYTES


def expert_activations(config: BagelConfig, tokens: int, context: int, layers: int, checkpointing: bool) -> int:
    """What the layers keep for the backward pass of `tokens` tokens that attend to `context` earlier ones.

    A layer keeps of each token both residual streams, both normed ones, q before and after its norm and rope, the
    attended values (8 widths), gate, up and their products (4 MLP widths), and k and v of all tokens. With
    checkpointing the layers keep their input alone, and one at a time the rest.
    """
    llm = config.llm
    kv = llm.num_key_value_heads * llm.head_dim
    layer = tokens * (8 * llm.hidden_size + 4 * llm.intermediate_size + 2 * kv) + 2 * (tokens + context) * kv
    kept = layers * tokens * llm.hidden_size + layer if checkpointing else layers * layer
    return kept * ACTIVATION_BYTES


def decoder_activations(autoencoder: Autoencoder, side: int) -> int:
    """What the autoencoder keeps to take a gradient through one decoded picture, found by decoding without values."""
    config = autoencoder.config
    with torch.device("meta"):
        shapes = Autoencoder(config).to(torch.bfloat16)
        latent = torch.empty(1, config.z_channels, side // config.downsample, side // config.downsample)
    weights = {p.untyped_storage()._cdata for p in shapes.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        kept.setdefault(value.untyped_storage()._cdata, value)
        return value

    with saved_tensors_hooks(keep, lambda value: value):
        shapes.requires_grad_(False).decode(latent.bfloat16().requires_grad_())
    return sum(value.untyped_storage().nbytes() for key, value in kept.items() if key not in weights)


def together(*parts: dict[str, int]) -> dict[str, int]:
    """Memory of several, by part."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0) for part in parts) for name in names}
