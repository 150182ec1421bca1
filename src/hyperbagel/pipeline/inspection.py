"""What a file or folder is: a model, a branch, adapters, a draft head or phrases; and whether it fits a model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbagel.bagel.adapters import PREFIX, ranks_in
from hyperbagel.bagel.branch import conditions_in
from hyperbagel.bagel.branch_checkpoint import Fingerprints, branch_file, has_adapters, read_info, require_belonging
from hyperbagel.bagel.branch_info import ADAPTERS, BRANCH, BranchInfo
from hyperbagel.bagel.checkpoint import (
    CheckpointError,
    check_keys,
    merged_info,
    official_shapes,
    read_config,
)
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.shipped import resolve
from hyperbagel.bagel.stored import AUTOENCODER, holds_model, read_json, stored_weights, strays, weight_files
from hyperbagel.bagel.tensors import metadata_of, named_tensors
from hyperbagel.draft.checkpoint import DRAFT, read_settings, require_target
from hyperbagel.draft.phrases import PHRASES, load_phrases

Facts = dict[str, str]
"""What is told, by what it is about, in order."""

_EXPORTED = "eagle_aux_hidden_state_layer_ids"


def inspect(place: str | Path, model: Path | None = None) -> Facts:
    """What stands at a path or under a name of the package. model: folder that it is to fit.

    Raises CheckpointError for what is none of the known kinds, is incomplete or broken, or does not fit the model.
    """
    folder, file = resolve(place), branch_file(place)
    if holds_model(folder):
        return _model(folder, model)
    if (folder / "config.json").is_file() and _EXPORTED in (config := read_json(folder / "config.json")):
        return _exported_draft(folder, config)
    if file.suffix != ".safetensors" or not file.is_file():
        raise CheckpointError(
            f"{place}: neither a model's folder (no llm_config.json) nor a branch, adapters or a draft head"
        )
    metadata = metadata_of(file)
    if BRANCH in metadata or ADAPTERS in metadata:
        return _branch(file, model)
    if DRAFT in metadata:
        return _draft(file, model)
    if PHRASES in metadata:
        return _phrases(file, model)
    raise CheckpointError(
        f"{file}: weights of which nothing tells what they are; a model's own are inspected by their folder, and "
        "branches, adapters and draft heads have metadata"
    )


def _model(folder: Path, model: Path | None) -> Facts:
    config = read_config(folder)
    with torch.device("meta"):
        shapes = Bagel(config)
    stored = stored_weights(folder, config)
    check_keys(str(folder), official_shapes(shapes), stored.shapes())
    try:
        shapes.autoencoder.load_official_state_dict(dict(named_tensors([folder / AUTOENCODER])), assign=True)
    except ValueError as error:
        raise CheckpointError(f"{folder / AUTOENCODER}: {error}") from error
    own, llm = Fingerprints.of_folder(folder), config.llm
    info = merged_info(folder)
    facts = {
        "what": "model" if info is None else "model with a distilled branch merged in, for sampling without guidance",
        "sizes": f"{llm.num_hidden_layers} layers of {llm.hidden_size}, {llm.num_attention_heads} heads "
        f"({llm.num_key_value_heads} for keys), {llm.vocab_size} tokens, latent grid of {config.max_latent_size}",
        "weights": f"{_counted(dict(stored.named()))} in {', '.join(path.name for path in weight_files(folder))}",
        "fingerprints": f"understanding {own.base}, all that reads contexts {own.context}",
    }
    if stored.computed:
        facts["computed"] = f"{', '.join(stored.computed)}: not stored, and depends on sizes alone"
    if info is not None:
        facts |= _provenance(info)
    if names := strays(folder):
        facts["beside the weights"] = f"{', '.join(names)}: some programs take them for weights, move them to branches/"
    if model is not None:
        facts["fits"] = _compared(own, Fingerprints.of_folder(model))
    return facts


def _compared(own: Fingerprints, other: Fingerprints) -> str:
    """How two models' folders go together. Raises CheckpointError if they do not."""
    if own.base != other.base:
        raise CheckpointError(
            f"{own.place}: another understanding stack than {other.place} (fingerprints {own.base} and {other.base}); "
            "their branches and draft heads do not go together"
        )
    if own.context != other.context:
        return f"{other.place}: the same understanding stack, so draft heads and `init_from`; branches of their own"
    return f"{other.place}: the same weights"


def _branch(file: Path, model: Path | None) -> Facts:
    info = read_info(file)
    tensors = dict(named_tensors([file]))
    facts = {"what": "generation branch", "weights": _counted(tensors)}
    if has_adapters(file):
        ranks = ranks_in(file)
        facts["what"] = f"adapters of rank {', '.join(map(str, ranks)) or 0}"
    names = [key.removeprefix(PREFIX) for key in tensors]
    facts["inputs"] = ", ".join(("time", *(name.replace("_", " ") for name in conditions_in(names))))
    facts |= _provenance(info)
    if model is not None:
        require_belonging(file, info, Fingerprints.of_folder(model))
        facts["fits"] = str(model)
    return facts


def _provenance(info: BranchInfo) -> Facts:
    """What a branch says of itself."""
    base = ", ".join(filter(None, [info.model, f"understanding {info.base}", info.context and f"all {info.context}"]))
    facts = {"last stage": info.stage, "steps": str(info.nfe) if info.nfe else "any", "shift": f"{info.shift:g}"}
    for name, limits in (("text scale", info.text_scale), ("image scale", info.image_scale)):
        if limits is not None:
            facts[name] = f"{limits[0]:g}" if limits[0] == limits[1] else f"{limits[0]:g} to {limits[1]:g}"
    return facts | {"reads source pictures": info.reader, "made over": base}


def _draft(file: Path, model: Path | None) -> Facts:
    settings, tensors = read_settings(file), dict(named_tensors([file]))
    config = settings["config"]
    ahead = f", {config['ahead']} tokens in a pass" if config["kind"] == "parallel" else ""
    facts = {
        "what": f"draft head of kind {config['kind']}, {config['layers']} layers, {config['queries']} features{ahead}",
        "weights": _counted(tensors),
        "made over": ", ".join(filter(None, [settings.get("model"), f"understanding {settings['base']}"])),
    }
    if model is not None:
        require_target(file, settings, Fingerprints.of_folder(model).base, str(model))
        facts["fits"] = str(model)
    return facts


def _phrases(file: Path, model: Path | None) -> Facts:
    """Nothing tells whose they are; a model with fewer tokens is not theirs."""
    tokens = 2**31 if model is None else read_config(model).llm.vocab_size
    lengths = ", ".join(f"{len(known.keys):,}" for known in load_phrases(file, tokens).sequences)
    return {
        "what": "phrases: what followed sequences of tokens in answers",
        "sequences": f"{lengths} of 1, 2, ... tokens",
    }


def _exported_draft(folder: Path, config: dict[str, Any]) -> Facts:
    tensors = dict(named_tensors([folder / "model.safetensors"]))
    return {
        "what": f"draft head for serving engines ({', '.join(config.get('architectures', []))})",
        "weights": _counted(tensors),
        "features": f"streams that enter layers {config[_EXPORTED]}",
    }


def _counted(tensors: dict[str, Tensor]) -> str:
    """How many numbers of which types."""
    counts: Counter[str] = Counter()
    for value in tensors.values():
        counts[str(value.dtype).removeprefix("torch.")] += value.numel()
    return ", ".join(f"{count / 1e6:,.2f} M {name}" for name, count in counts.most_common())
