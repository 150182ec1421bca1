"""Build a BAGEL from pretrained parts, as its authors did, or from random weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from hyperbagel.bagel.autoencoder import Autoencoder, AutoencoderConfig
from hyperbagel.bagel.build.initial import fresh, leaves
from hyperbagel.bagel.build.pretrained import read_autoencoder, read_language_model, read_vision_tower
from hyperbagel.bagel.checkpoint import CheckpointError, load_official, official_key, save_bagel
from hyperbagel.bagel.config import BagelConfig, LLMConfig, SpecialTokens, ViTConfig
from hyperbagel.bagel.images import ImageTransform
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.files import whole_folder
from hyperbagel.scenes.vocabulary import tokenizer_folder

FRESH: Final = "fresh"

NANO: Final = BagelConfig(
    llm=LLMConfig(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    vit=ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=64
    ),
    autoencoder=AutoencoderConfig(ch=32, ch_mult=(1,), num_res_blocks=1, z_channels=4, pixel_unshuffle=4),
    tokens=SpecialTokens(bos=1, eos=2, start_of_image=3, end_of_image=4),
    max_latent_size=8,
    vae_transform=ImageTransform(max_size=64, min_size=16, stride=8),
    vit_transform=ImageTransform(max_size=64, min_size=16, stride=8),
)
"""The smallest BAGEL with every part, for tests; fits the tokenizer of `hyperbagel.scenes`."""

SCENES: Final = BagelConfig(
    llm=LLMConfig(
        vocab_size=648,
        hidden_size=160,
        intermediate_size=384,
        num_hidden_layers=12,
        num_attention_heads=5,
        num_key_value_heads=5,
        rope_theta=1e4,
    ),
    vit=ViTConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, patch_size=8, image_size=64
    ),
    autoencoder=AutoencoderConfig(
        resolution=64, ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, z_channels=16, pixel_unshuffle=2
    ),
    tokens=SpecialTokens(bos=1, eos=2, start_of_image=3, end_of_image=4),
    latent_patch_size=1,
    max_latent_size=8,
    vae_transform=ImageTransform(max_size=64, min_size=64, stride=8),
    vit_transform=ImageTransform(max_size=64, min_size=64, stride=8),
)
"""The embedded model of 64x64 drawn scenes: deep and narrow, with small latent patches, which learn fastest."""

SMALL: Final = BagelConfig(
    llm=LLMConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
    ),
    vit=ViTConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=6,
        patch_size=14,
        image_size=224,
    ),
    autoencoder=AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=8, pixel_unshuffle=4),
)
"""Sizes of fresh parts unless others are asked for; latent grid and picture limits are the official ones."""


PRESETS: Final = {"nano": NANO, "small": SMALL, "scenes": SCENES}
"""Name -> sizes, as `hyperbagel init --preset` takes it."""


@dataclass(frozen=True)
class Parts:
    """What to build a BAGEL from.

    Args:
        llm: folder of a Qwen2 / Llama-family language model, a GGUF file, or "fresh".
        vit: folder of a SigLIP model, or "fresh".
        autoencoder: an autoencoder's ae.safetensors, or "fresh".
        tokenizer: folder of a tokenizer; default the language model's, or for a fresh one that of the scenes world.
        sizes: sizes of the fresh parts, and all other settings. Limits that exceed what the parts can take are lowered.
        add_qk_norm: give a language model without q/k norms fresh ones, as BAGEL's authors did. This changes what the
            model computes until it is trained.
        seed: seed of all fresh weights.
        dtype: type of the stored weights.
    """

    llm: str = FRESH
    vit: str = FRESH
    autoencoder: str = FRESH
    tokenizer: str | None = None
    sizes: BagelConfig = SMALL
    add_qk_norm: bool = False
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"


def assemble(parts: Parts, out: str | Path) -> Bagel:
    """Build a BAGEL and write it with its tokenizer as a checkpoint folder.

    The language model becomes the understanding experts, the generation experts are copies of them, and the velocity
    head is zero. Raises CheckpointError, TokenizerError or FileNotFoundError for unusable parts, and FileExistsError
    when `out` holds files.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: already exists and is not an empty folder; give another one")
    model, tokenizer = build(parts)
    with whole_folder(out) as partial:
        save_bagel(model, partial)
        tokenizer.save_pretrained(partial)
    return model


def build(parts: Parts) -> tuple[Bagel, Tokenizer]:
    """The model and tokenizer that `assemble` writes."""
    dtype: torch.dtype = getattr(torch, parts.dtype)
    tokenizer = _tokenizer(parts)
    llm, vit, autoencoder = parts.sizes.llm, parts.sizes.vit, parts.sizes.autoencoder
    tensors: dict[str, Tensor] = {}
    codec: dict[str, Tensor] | None = None
    if parts.autoencoder != FRESH:
        autoencoder, codec = read_autoencoder(Path(parts.autoencoder), dtype, autoencoder)
    if parts.vit != FRESH:
        vit, read = read_vision_tower(Path(parts.vit), dtype)
        tensors |= read
    if parts.llm != FRESH:
        llm, read = read_language_model(Path(parts.llm), dtype, qk_norm=parts.add_qk_norm)
        tensors |= read
    rows = max(llm.vocab_size, tokenizer.size)
    for key in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        if key in tensors:
            tensors[key] = _extend_vocabulary(tensors[key], rows)
    config = dataclasses.replace(
        parts.sizes,
        llm=dataclasses.replace(llm, vocab_size=rows),
        vit=vit,
        autoencoder=autoencoder,
        tokens=tokenizer.tokens,
    )
    model = compose(_with_fitting_limits(config), tensors, parts.seed, dtype)
    if codec is not None:
        try:
            model.autoencoder.load_official_state_dict(codec, assign=True)
        except ValueError as error:
            raise CheckpointError(f"{parts.autoencoder}: {error}") from error
    return model, tokenizer


def compose(
    config: BagelConfig,
    tensors: dict[str, Tensor] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Bagel:
    """A BAGEL of given understanding tensors (official names); what is missing is fresh, and drawn on `device`.

    Generation experts are copies of the understanding ones, the velocity head is zero. Raises CheckpointError for
    tensors that do not fit `config`.
    """
    with torch.device("meta"):
        model = Bagel(config)
    generator = torch.Generator(device).manual_seed(seed)
    complete = dict(tensors or {})
    for name, module, empty in leaves(model.understanding, "understanding"):
        key = official_key(name)
        if key not in complete:
            complete[key] = fresh(module, name, empty, generator).to(device, dtype)
    for name, module, empty in leaves(model.generation, "generation"):
        twin = complete.get(official_key(name.replace("generation", "understanding", 1)))
        value = fresh(module, name, empty, generator) if twin is None else twin.clone()
        complete[official_key(name)] = value.to(device, dtype)
    load_official(model, complete, "these parts")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.autoencoder = Autoencoder(config.autoencoder).to(device, dtype)
    return model.eval()


def _extend_vocabulary(weight: Tensor, rows: int) -> Tensor:
    """(V, D) -> (rows, D): new tokens start as the mean of the old ones."""
    mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)])


def _tokenizer(parts: Parts) -> Tokenizer:
    if parts.tokenizer is not None:
        source: str | Path = parts.tokenizer
    else:
        source = tokenizer_folder() if parts.llm == FRESH else parts.llm
    return Tokenizer.from_pretrained(source, add_special_tokens=True)


def _with_fitting_limits(config: BagelConfig) -> BagelConfig:
    """Picture limits lowered to what the position grids hold, strides raised to whole tokens."""

    def fit(transform: ImageTransform, stride: int, limit: int) -> ImageTransform:
        largest = min(transform.max_size, limit)
        smallest = min(transform.min_size, largest)
        return dataclasses.replace(
            transform,
            max_size=largest,
            min_size=smallest,
            stride=transform.stride if transform.stride % stride == 0 else stride,
        )

    vit, stride = config.vit, config.latent_stride
    return dataclasses.replace(
        config,
        vae_transform=fit(config.vae_transform, stride, config.max_latent_size * stride),
        vit_transform=fit(config.vit_transform, vit.patch_size, vit.patches_per_side * vit.patch_size),
    )
