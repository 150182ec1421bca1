"""Pretrained language models, vision towers and autoencoders as tensors with the names they have in a BAGEL."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbagel.bagel.autoencoder import AutoencoderConfig
from hyperbagel.bagel.config import LLMConfig, ViTConfig
from hyperbagel.bagel.tensors import CheckpointError, read_tensors

LANGUAGE_MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose computation is that of BAGEL's understanding expert (without or with q/k norm)."""

_LANGUAGE_KEY = re.compile(
    r"(lm_head|model\.(embed_tokens|norm)|model\.layers\.\d+\.("
    r"(input|post_attention)_layernorm|self_attn\.(o_proj|[qk]_norm)|mlp\.(gate|up|down)_proj))\.weight"
    r"|model\.layers\.\d+\.self_attn\.[qkv]_proj\.(weight|bias)"
)


def read_language_model(
    source: Path, dtype: torch.dtype, *, qk_norm: bool = False
) -> tuple[LLMConfig, dict[str, Tensor]]:
    """Configuration and official-named understanding tensors of a Qwen2 / Llama-family model.

    source: a transformers folder (safetensors) or a GGUF file. The head is untied from the embedding; a model without
    q/k/v biases gets zeros. qk_norm: give a model without q/k norms fresh ones (all ones), which changes its function.
    Raises CheckpointError when the model cannot be read or computes something that BAGEL's layers do not.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    place = source
    if source.is_file():
        _require_gguf(source)
        place, options = source.parent, options | {"gguf_file": source.name}
    elif not (source / "config.json").is_file():
        raise CheckpointError(f"{source}: neither a GGUF file nor a language model folder (one with config.json)")
    else:
        options["use_safetensors"] = True
        with _reading(source, "language model"):  # refused before gigabytes of weights are read
            settings = AutoConfig.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
        _llm_config(settings, source)
    with _reading(source, "language model"):
        model, report = AutoModelForCausalLM.from_pretrained(
            str(place), dtype=dtype, output_loading_info=True, **options
        )
    _check_complete(source, report)
    config = _llm_config(model.config, source)
    tensors = {key: value.detach() for key, value in model.state_dict().items()}
    if unknown := [key for key in tensors if not _LANGUAGE_KEY.fullmatch(key)]:
        raise CheckpointError(
            f"{source}: BAGEL's layers have no place for {unknown[0]} ({len(unknown)} such tensors); use another model"
        )
    tensors["lm_head.weight"] = tensors["lm_head.weight"].clone()
    return _complete_attention(config, tensors, qk_norm)


def _complete_attention(
    config: LLMConfig, tensors: dict[str, Tensor], qk_norm: bool
) -> tuple[LLMConfig, dict[str, Tensor]]:
    """Zero biases and, where asked for, q/k norms of ones that the model lacks; official names."""
    qk_norm = qk_norm or "model.layers.0.self_attn.q_norm.weight" in tensors
    for layer in range(config.num_hidden_layers):
        attention = f"model.layers.{layer}.self_attn"
        for name in "qkv":
            weight = tensors[f"{attention}.{name}_proj.weight"]
            tensors.setdefault(f"{attention}.{name}_proj.bias", weight.new_zeros(len(weight)))
            if qk_norm and name != "v":
                tensors.setdefault(f"{attention}.{name}_norm.weight", weight.new_ones(config.head_dim))
    config = dataclasses.replace(config, qk_norm=qk_norm)
    return config, {f"language_model.{key}": value for key, value in tensors.items()}


def _llm_config(settings: Any, source: Path) -> LLMConfig:
    """transformers' configuration as ours; what ours cannot express is refused, all of it in one error."""
    if settings.model_type not in LANGUAGE_MODELS:
        raise CheckpointError(
            f"{source}: model type {settings.model_type!r} is not supported; use one of {', '.join(LANGUAGE_MODELS)}"
        )
    rope = settings.rope_parameters
    heads, width = settings.num_attention_heads, settings.hidden_size
    head_dim = getattr(settings, "head_dim", None) or width // heads
    window = getattr(settings, "sliding_window", None) if getattr(settings, "use_sliding_window", True) else None
    checks = (
        (head_dim * heads == width, f"head_dim {head_dim} instead of hidden_size / heads = {width / heads:g}"),
        (rope.get("rope_type", "default") == "default", f"rope type {rope.get('rope_type')!r}"),
        (rope.get("partial_rotary_factor", 1.0) == 1.0, "a partial rotary factor"),
        (window is None, f"a sliding window of {window}"),
        (settings.hidden_act == "silu", f"hidden_act {settings.hidden_act!r}"),
    )
    if problems := [text for fine, text in checks if not fine]:
        raise CheckpointError(
            f"{source}: BAGEL's layers cannot compute this model: {'; '.join(problems)}; use another one"
        )
    return LLMConfig(
        vocab_size=settings.vocab_size,
        hidden_size=width,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=settings.num_key_value_heads,
        rms_norm_eps=settings.rms_norm_eps,
        rope_theta=float(rope["rope_theta"]),
        qk_norm=False,
    )


def read_vision_tower(folder: Path, dtype: torch.dtype) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Configuration and official-named tensors of a SigLIP folder (the vision model alone, or both towers).

    The patch convolution becomes a linear layer, the last layer is dropped as BAGEL's authors did, the position grid
    stays as it is. Raises CheckpointError when the folder is no SigLIP that BAGEL's tower can compute.
    """
    from transformers import AutoConfig, SiglipVisionModel

    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: not a SigLIP folder (no config.json)")
    with _reading(folder, "SigLIP model"):
        settings = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if settings.model_type not in ("siglip", "siglip_vision_model"):
        raise CheckpointError(
            f"{folder}: model type {settings.model_type!r} is not supported; use a SigLIP (version 1)"
        )
    with _reading(folder, "SigLIP model"):
        model, report = SiglipVisionModel.from_pretrained(
            str(folder), dtype=dtype, output_loading_info=True, local_files_only=True, use_safetensors=True
        )
    _check_complete(folder, report)
    settings = model.config
    if settings.hidden_act != "gelu_pytorch_tanh" or settings.num_hidden_layers < 2:
        raise CheckpointError(
            f"{folder}: BAGEL's tower needs hidden_act 'gelu_pytorch_tanh' and at least 2 layers, "
            f"this has {settings.hidden_act!r} and {settings.num_hidden_layers}"
        )
    names = {field.name for field in dataclasses.fields(ViTConfig)}
    values = {name: getattr(settings, name) for name in names}
    config = ViTConfig(**values | {"num_hidden_layers": settings.num_hidden_layers - 1})
    tensors = {}
    for key, value in model.state_dict().items():
        key = key.removeprefix("vision_model.")
        if key.startswith(("head.", f"encoder.layers.{config.num_hidden_layers}.")):
            continue
        if key == "embeddings.patch_embedding.weight":  # (out, channel, row, column): the channel goes fastest in BAGEL
            value = value.permute(0, 2, 3, 1).flatten(1)
        tensors[f"vit_model.vision_model.{key}"] = value.detach()
    return config, tensors


def read_autoencoder(
    file: Path, dtype: torch.dtype, config: AutoencoderConfig
) -> tuple[AutoencoderConfig, dict[str, Tensor]]:
    """Widths and tensors of an official-format `ae.safetensors`.

    config: gives the scale and shift of the latents, which the file does not tell.
    Raises CheckpointError when the file is missing, broken, or holds something else.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; give BAGEL's or FLUX's ae.safetensors, or `fresh`")
    tensors = read_tensors(file, dtype)
    try:
        ch, folded = tensors["encoder.conv_in.weight"].shape[:2]
        first = [k for k in tensors if re.fullmatch(r"encoder\.down\.\d+\.block\.0\.conv1\.weight", k)]
        widths = [tensors[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(len(first))]
        blocks = [k for k in tensors if re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", k)]
        config = dataclasses.replace(
            config,
            ch=ch,
            ch_mult=tuple(width // ch for width in widths),
            num_res_blocks=len(blocks),
            z_channels=tensors["encoder.conv_out.weight"].shape[0] // 2,
            pixel_unshuffle=round((folded / config.in_channels) ** 0.5),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{file}: not an autoencoder in the official layout ({error}); give BAGEL's or FLUX's ae.safetensors"
        ) from error
    return config, tensors


@contextmanager
def _reading(source: Path, what: str) -> Iterator[None]:
    """Turn whatever transformers raises into one error, and keep its load reports (which we check) off the screen."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except Exception as error:  # readers of foreign files raise anything from OSError to AttributeError
        raise CheckpointError(
            f"{source}: cannot be read as a {what} ({type(error).__name__}: {error}); "
            "needed are a whole config.json and safetensors weights, or a whole GGUF file"
        ) from error
    finally:
        logging.set_verbosity(level)


def _require_gguf(file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise CheckpointError(f"{file}: not a GGUF file; give a GGUF file or a language model's folder")
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError as error:
        raise CheckpointError(f"{file}: reading GGUF needs more packages: pip install gguf accelerate") from error


def _check_complete(source: Path, report: Mapping[str, Any]) -> None:
    """Refuse a model of which transformers would have left parts at random values."""
    for kind in ("missing_keys", "mismatched_keys"):
        if keys := sorted(map(str, report[kind])):
            raise CheckpointError(
                f"{source}: weights do not fit the configuration, {len(keys)} {kind.replace('_', ' ')}: "
                f"{', '.join(keys[:5])}; download the model again"
            )
