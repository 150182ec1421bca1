"""The least that a computation takes: operations of products and convolutions, and bytes that have to be read."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hyperbagel.bagel.autoencoder import Autoencoder, AutoencoderConfig
from hyperbagel.bagel.config import BagelConfig, LLMConfig
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.quantized import Quantization, bytes_of

MARKERS = 2
"""Tokens around a picture, which the understanding experts compute in every pass."""


def linear_numbers(*modules: nn.Module) -> int:
    """Weights of the linear layers."""
    linear = (layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear))
    return sum(layer.weight.numel() for layer in linear)


def attention_operations(llm: LLMConfig, queries: int, keys: int) -> int:
    """Of all layers: scores and mixed values."""
    return 4 * llm.num_hidden_layers * llm.hidden_size * queries * keys


def pass_operations(model: Bagel, latents: int, context: int) -> int:
    """Of one evaluation of the generation network for one picture of so many latent tokens after a context."""
    branch, experts = model.generation, model.understanding.layers
    linear = 2 * (linear_numbers(branch.layers, branch.vae2llm, branch.llm2vae) * latents)
    linear += 2 * linear_numbers(experts) * MARKERS
    return linear + attention_operations(model.config.llm, latents + MARKERS, context + latents + MARKERS)


def reading_operations(model: Bagel, text: int, vit: int = 0, latents: int = 0) -> int:
    """Of reading a document: text tokens and markers, ViT tokens, clean latent tokens."""
    understanding, vision = model.understanding, model.config.vit
    linear = linear_numbers(understanding.layers) * (text + vit)
    linear += linear_numbers(understanding.vision, understanding.connector) * vit
    linear += linear_numbers(model.generation.layers, model.generation.vae2llm) * latents
    seen = 4 * vision.num_hidden_layers * vision.hidden_size * vit**2
    tokens = text + vit + latents
    return 2 * linear + seen + attention_operations(model.config.llm, tokens, tokens)


@cache
def coding_operations(config: AutoencoderConfig, height: int, width: int, *, encode: bool) -> int:
    """Of the autoencoder for one picture, counted by running it without values."""
    with torch.device("meta"):
        coder = Autoencoder(config)
        side = config.downsample
        picture = torch.empty(1, config.in_channels, height, width)
        latent = torch.empty(1, config.z_channels, height // side, width // side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        coder.encode(picture) if encode else coder.decode(latent)
    return counter.get_total_flops()


def cache_bytes(config: BagelConfig, tokens: int, itemsize: int) -> int:
    """Keys and values of so many tokens."""
    llm = config.llm
    return 2 * llm.num_hidden_layers * llm.num_key_value_heads * llm.head_dim * tokens * itemsize


def token_bytes(model: Bagel, context: int, batch: int, quantize: Quantization | None = None) -> int:
    """What decoding one token of each answer has to read: the understanding experts, the LM head, the caches."""
    itemsize = model.dtype.itemsize
    weights = linear_numbers(model.understanding.lm_head) * itemsize
    experts = (layer for layer in model.understanding.layers.modules() if isinstance(layer, nn.Linear))
    weights += sum(bytes_of(quantize, layer, itemsize) for layer in experts)
    return weights + batch * cache_bytes(model.config, context, itemsize)
