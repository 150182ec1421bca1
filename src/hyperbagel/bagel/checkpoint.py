"""Reads and writes checkpoint folders in the official layout.

A folder holds `llm_config.json`, `vit_config.json`, `ema.safetensors` (or shards with an index), `ae.safetensors`, the
tokenizer's files and, where other settings differ from those of BAGEL-7B-MoT, `hyperbagel.json`. Weights are read from
safetensors only.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from hyperbagel.bagel.absent import Absent, NotLoadedError, Part
from hyperbagel.bagel.autoencoder import AutoencoderConfig, border_shapes
from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.branch_info import MERGED, BranchInfo, info_in
from hyperbagel.bagel.config import BagelConfig, LLMConfig, SpecialTokens, ViTConfig
from hyperbagel.bagel.fingerprint import digest
from hyperbagel.bagel.finite import NotFiniteError
from hyperbagel.bagel.images import ImageTransform
from hyperbagel.bagel.quantized import is_plain
from hyperbagel.bagel.shipped import resolve
from hyperbagel.bagel.stored import (
    AUTOENCODER,
    WEIGHTS,
    latent_side,
    read_json,
    stored_weights,
    warn_of_strays,
    weight_files,
)
from hyperbagel.bagel.tensors import CheckpointError as CheckpointError
from hyperbagel.bagel.tensors import NotFilled, metadata_of, named_tensors, read_tensors, write_tensors
from hyperbagel.files import write_json

if TYPE_CHECKING:
    from hyperbagel.bagel.model import Bagel

EXTRAS = "hyperbagel.json"

_Model = TypeVar("_Model", bound="Bagel")


# Names


def official_key(name: str) -> str:
    """The official name of a parameter or buffer of `Bagel` (the autoencoder converts its own names)."""
    side, _, rest = name.partition(".")
    gen = "_moe_gen" if side == "generation" else ""
    if match := re.fullmatch(r"layers\.(\d+)\.(?:input|output)\.(\w+)\.(weight|bias)", rest):
        layer, module, kind = match.groups()
        if module in ("gate_proj", "up_proj", "down_proj"):
            path = f"mlp{gen}.{module}"
        elif module.endswith("layernorm"):
            path = f"{module}{gen}"
        else:
            path = f"self_attn.{module}{gen}"
        return f"language_model.model.layers.{layer}.{path}.{kind}"
    if rest == "norm.weight":
        return f"language_model.model.norm{gen}.weight"
    if rest == "lm_head.weight":
        return f"language_model.{rest}"
    if rest == "embed_tokens.weight":
        return f"language_model.model.{rest}"
    if rest.startswith("vision."):
        inner = rest.removeprefix("vision.")
        inner = re.sub(r"^layers\.(\d+)\.(fc[12])\.", r"layers.\1.mlp.\2.", inner)
        inner = re.sub(r"^layers\.", "encoder.layers.", inner)
        inner = re.sub(r"^(patch|position)_embedding\.", r"embeddings.\1_embedding.", inner)
        return f"vit_model.vision_model.{inner}"
    return rest


def official_names(model: Bagel) -> dict[str, str]:
    """Own name -> official name of everything in `ema.safetensors`."""
    return {name: official_key(name) for name in model.state_dict() if not name.startswith("autoencoder.")}


def not_finite(what: str, model: Bagel, branch: GenerationBranch | None = None) -> NotFiniteError:
    """The error for results that are not finite, after a look for the weights that made them so.

    what: the results, such as "latents after step 3 of 6". branch: what denoised, where it was not the model's own.
    """
    for place, prefix, part in (("branch", "generation", branch), ("model", "", model)):
        weights = () if part is None else part.named_parameters(prefix)
        if bad := [
            name
            for name, value in weights
            if not value.is_meta and is_plain(value) and not bool(value.isfinite().all())
        ]:
            first = bad[0] if bad[0].startswith("autoencoder.") else official_key(bad[0])
            return NotFiniteError(
                f"{what} are not finite (NaN or infinite), and so are weights of the {place}: {first}"
                f"{f' and {len(bad) - 1} more' if len(bad) > 1 else ''}; save or download it again"
            )
    return NotFiniteError(
        f"{what} are not finite (NaN or infinite), though all weights are: try float32, or a smaller guidance scale"
    )


def official_shapes(model: Bagel) -> dict[str, torch.Size]:
    """Official name -> shape of everything in `ema.safetensors`."""
    state = model.state_dict()
    return {official: state[own].shape for own, official in official_names(model).items()}


# Reading


def part_digests(folder: Path) -> dict[str, str]:
    """Fingerprints of a folder's understanding stack, generation branch and autoencoder, of which little is read."""
    digests = {"autoencoder": digest(named_tensors([folder / AUTOENCODER]))}
    stored = stored_weights(folder, read_config(folder))
    generation = set(generation_keys(stored.shapes()))
    digests["generation"] = digest((name, value) for name, value in stored.named() if name in generation)
    digests["understanding"] = digest((name, value) for name, value in stored.named() if name not in generation)
    return digests


_Config = TypeVar("_Config")


def _pick(cls: type[_Config], values: Mapping[str, Any]) -> _Config:
    """A config dataclass from the entries it knows."""
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{k: v for k, v in values.items() if k in known})


def read_config(folder: str | Path) -> BagelConfig:
    """Configuration of a checkpoint folder. Raises CheckpointError naming the file that is missing or broken."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give a BAGEL checkpoint folder")
    llm, vit = read_json(folder / "llm_config.json"), read_json(folder / "vit_config.json")
    if not isinstance(vit.get("num_hidden_layers"), int):
        raise CheckpointError(f"{folder / 'vit_config.json'}: num_hidden_layers must be a number")
    vit["num_hidden_layers"] -= 1  # the public code drops SigLIP's last layer
    extras = read_json(folder / EXTRAS) if (folder / EXTRAS).is_file() else {}
    if "max_latent_size" not in extras and (side := latent_side(folder)) is not None:
        extras["max_latent_size"] = side  # fine-tunes on larger pictures have larger grids, and no file that tells so
    nested = {
        "autoencoder": AutoencoderConfig,
        "tokens": SpecialTokens,
        "vae_transform": ImageTransform,
        "vit_transform": ImageTransform,
    }
    try:
        # The official files have settings of other software too; our own may not have any that we do not know.
        values = {k: nested[k](**v) if k in nested else v for k, v in extras.items()}
        return BagelConfig(llm=_pick(LLMConfig, llm), vit=_pick(ViTConfig, vit), **values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: impossible configuration: {error}") from error


def check_keys(what: str, expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size]) -> None:
    """Raises CheckpointError, naming `what` and keys, unless both have the same keys and shapes."""
    missing = [k for k in expected if k not in found]
    extra = [k for k in found if k not in expected]
    wrong = [
        f"{k} is {tuple(found[k])}, expected {tuple(expected[k])}"
        for k in expected
        if k in found and found[k] != expected[k]
    ]
    problems = [
        f"{len(keys)} {kind}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
        for kind, keys in (("missing keys", missing), ("unknown keys", extra), ("wrong shapes", wrong))
        if keys
    ]
    if problems:
        raise CheckpointError(f"{what} does not fit this model: {'; '.join(problems)}")


def merged_info(folder: Path) -> BranchInfo | None:
    """What the weights of a folder say of the branch that was merged into them; None for any other folder."""
    first = weight_files(folder)[0]
    return info_in(metadata_of(first), first, MERGED)


def shapes_only() -> bool:
    """Whether models are made without weights, as for planning: the default device is "meta"."""
    return torch.get_default_device().type == "meta"


@dataclass(frozen=True)
class Placement:
    """Where weights go as they are read, in which type, and the parts that are left out (see `Absent`)."""

    dtype: torch.dtype
    device: torch.device
    without: frozenset[Part]


def load_bagel(folder: str | Path, placement: Placement, cls: type[_Model]) -> _Model:
    """Build a model from an official folder, or from one that comes with the package, by its name.

    Weights go straight to their place, tensor by tensor. With the meta device as default only the folder's
    configuration is read, and the model has shapes but no weights. Raises CheckpointError for missing, broken, or
    unfitting files, also of parts that are left out (of an autoencoder by its first and last layers).
    """
    folder = resolve(folder)
    config = read_config(folder)
    dtype, device, without = placement.dtype, placement.device, placement.without
    if shapes_only():
        return _left_out(cls(config, without).to(dtype).eval(), dict.fromkeys(without, ""))
    with torch.device("meta"), NotFilled():
        model = cls(config, without)
    stored = stored_weights(folder, config)
    check_keys(str(folder), official_shapes(model), stored.shapes())  # before gigabytes are read
    if "autoencoder" in without:
        expected = border_shapes(config.autoencoder)
        found = {key: value.shape for key, value in named_tensors([folder / AUTOENCODER]) if key in expected}
        check_keys(str(folder / AUTOENCODER), expected, found)
    else:
        autoencoder = read_tensors(folder / AUTOENCODER, dtype, device)
        try:
            model.autoencoder.load_official_state_dict(autoencoder, assign=True)
        except ValueError as error:
            raise CheckpointError(f"{folder / AUTOENCODER}: {error}") from error
    left_out = set(generation_keys(official_shapes(model))) if "generation" in without else set()
    load_official(model, stored.read(dtype, device, left_out), str(folder))
    model.source, model.merged = str(folder), merged_info(folder)
    warn_of_strays(folder)
    digests = part_digests(folder) if without else {}
    return _left_out(model.eval(), {part: digests[part] for part in without})


def _left_out(model: _Model, digests: Mapping[Part, str]) -> _Model:
    """The model without some parts, of which only the fingerprints stay."""
    for part, value in digests.items():
        setattr(model, part, Absent(part, value))
    return model


def load_official(model: Bagel, tensors: Mapping[str, Tensor], source: str) -> None:
    """Put tensors with official names into the model (not its autoencoder); the tensors become its parameters."""
    check_keys(source, official_shapes(model), {k: v.shape for k, v in tensors.items()})
    named = {own: tensors[official] for own, official in official_names(model).items()}
    model.load_state_dict(named, strict=False, assign=True)


# Writing


def save_config(config: BagelConfig, folder: str | Path) -> None:
    """Write the configuration files of the official layout."""
    folder = Path(folder)
    llm = dataclasses.asdict(config.llm) | {"hidden_act": "silu", "tie_word_embeddings": False}
    vit = dataclasses.asdict(config.vit) | {"num_hidden_layers": config.vit.num_hidden_layers + 1}
    extras = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("llm", "vit")}
    for name, content in (("llm_config.json", llm), ("vit_config.json", vit), (EXTRAS, extras)):
        write_json(folder / name, content, indent=2)


def save_bagel(model: Bagel, folder: str | Path) -> None:
    """Write a model in the official layout (tokenizer files are the caller's). Raises NotLoadedError for half a one."""
    folder = Path(folder)
    if absent := [part.part for part in (model.generation, model.autoencoder) if isinstance(part, Absent)]:
        raise NotLoadedError(f"{folder}: not written, as the model was loaded without its {' and '.join(absent)}")
    save_config(model.config, folder)
    names, state = official_names(model), model.state_dict()
    write_tensors({official: state[own] for own, official in names.items()}, folder / WEIGHTS)
    write_tensors(model.autoencoder.official_state_dict(), folder / AUTOENCODER)


def generation_keys(names: Iterable[str]) -> Iterator[str]:
    """Of official names, those that only generation uses."""
    own = ("time_embedder.", "vae2llm.", "llm2vae.", "latent_pos_embed.")
    return (name for name in names if "moe_gen" in name or name.startswith(own))
