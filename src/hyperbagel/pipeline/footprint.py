"""Which memory drawing and answering take on a GPU, from shapes alone: weights exactly, all else as an estimate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.quantized import KINDS, Quantization, bytes_of
from hyperbagel.bagel.tensors import NotFilled

GIB = 2**30
CARDS: Final = (12, 16, 24, 48, 80)
"""Memory of GPUs, in GiB."""
CONTEXT: Final = GIB // 2
"""What a process needs of a GPU before it computes anything, about."""
_NF4_BACK = 14
"""Bytes that a weight in nf4 takes while torchao brings it back: its index as a long integer, and a few copies."""


@dataclass(frozen=True)
class Request:
    """What is asked of a model. side: of the pictures, in pixels; text: tokens; batch: how many at once."""

    side: int = 1024
    text: int = 128
    batch: int = 1

    def latents(self, config: BagelConfig) -> int:
        """Latent tokens of a picture."""
        return (self.side // config.latent_stride) ** 2

    def vit(self, config: BagelConfig) -> int:
        """ViT tokens of a picture."""
        return (min(self.side, config.vit_transform.max_size) // config.vit.patch_size) ** 2


@dataclass(frozen=True)
class Footprint:
    """Bytes that tasks take. quantize, offload: as of `Runtime`; itemsize: bytes of a number that is not rounded."""

    config: BagelConfig
    quantize: Quantization | None = None
    offload: bool = False
    itemsize: int = 2

    def weights(self) -> dict[str, int]:
        """Of the understanding stack, of the model's own branch, of a distilled one and of the autoencoder."""
        with torch.device("meta"), NotFilled():
            model = Bagel(self.config)
            own = self._bytes(model.generation)
            model.generation.add_condition(TEXT_SCALE, IMAGE_SCALE)
        return {
            "understanding": self._bytes(model.understanding),
            "generation": own,
            "branch": self._bytes(model.generation),
            "autoencoder": self._bytes(model.autoencoder),
        }

    def _bytes(self, module: nn.Module) -> int:
        values = (*module.parameters(), *module.buffers())
        size = sum(value.numel() for value in values) * self.itemsize
        experts = getattr(module, "layers", nn.ModuleList())
        for layer in (part for part in experts.modules() if isinstance(part, nn.Linear)):
            size += bytes_of(self.quantize, layer, self.itemsize) - bytes_of(None, layer, self.itemsize)
        return size

    def tasks(self, request: Request) -> dict[str, int]:
        """The most at any time for answers about a picture, for pictures by a distilled branch, and for edits by it,
        whose source the model's own branch reads."""
        parts = self.weights()
        understanding, own, branch, coder = (
            parts[name] for name in ("understanding", "generation", "branch", "autoencoder")
        )
        config = self.config
        latents, vit, text = request.latents(config), request.vit(config), request.text
        source = text + latents + vit + 4
        reading, denoising = (self._layer(tokens) * request.batch for tokens in (source, latents + 2))
        decoding = self._decoder(request) * request.batch
        cache = {tokens: self._cache(tokens) * request.batch for tokens in (text, vit + text, source)}
        kept = 0 if self.offload else coder
        return {
            "answers": understanding + cache[vit + text] + self._layer(vit + text) * request.batch,
            "pictures": understanding
            + cache[text]
            + max(branch + kept + denoising, coder + decoding + (0 if self.offload else branch)),
            "edits": understanding
            + cache[source]
            + (
                max(own + coder + reading, branch + denoising, coder + decoding)
                if self.offload
                else own + branch + coder + max(reading, denoising, decoding)
            ),
        }

    def _cache(self, tokens: int) -> int:
        llm = self.config.llm
        return 2 * llm.num_hidden_layers * llm.num_key_value_heads * llm.head_dim * tokens * self.itemsize

    def _layer(self, tokens: int) -> int:
        """Of a layer over so many tokens: residual stream before and after, normed, queries, attended; gate, up and
        their product. Of a rounded layer also its largest weight, brought back for its product."""
        llm = self.config.llm
        back = {None: 0, "int8": self.itemsize, "fp8": self.itemsize, "nf4": _NF4_BACK}[self.quantize]
        weight = llm.hidden_size * llm.intermediate_size
        return (5 * llm.hidden_size + 3 * llm.intermediate_size) * tokens * self.itemsize + back * weight

    def _decoder(self, request: Request) -> int:
        """Of the autoencoder at its highest resolution: four pictures as wide as its second level."""
        coder = self.config.autoencoder
        width = coder.ch * coder.ch_mult[:2][-1]
        return 4 * (request.side // coder.pixel_unshuffle) ** 2 * width * self.itemsize


def ways(config: BagelConfig) -> Iterator[tuple[str, Footprint]]:
    """All ways of holding weights, by the options that ask for them."""
    kinds: tuple[Quantization | None, ...] = (None, *KINDS)
    for kind in kinds:
        for offload in (False, True):
            words = [f"--quantize {kind}" if kind else "bfloat16", *["--offload"] * offload]
            yield " ".join(words), Footprint(config, kind, offload)


def smallest_card(size: int) -> str:
    """The smallest of `CARDS` that has so much, in words."""
    fitting = [card for card in CARDS if size + CONTEXT <= card * GIB]
    return f"{fitting[0]} GiB" if fitting else "none"


def inference_rows(config: BagelConfig, request: Request) -> Mapping[str, Mapping[str, str]]:
    """Way -> for each task the GiB that it takes, and the smallest card for it."""
    rows: dict[str, dict[str, str]] = {}
    for name, footprint in ways(config):
        row = rows[name] = {}
        for task, size in footprint.tasks(request).items():
            row[task] = f"{(size + CONTEXT) / GIB:.1f}"
            row[f"{task} on"] = smallest_card(size)
    return rows
