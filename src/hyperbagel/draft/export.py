"""Draft heads for serving engines: the checkpoint layout of EAGLE-3 that vLLM and SGLang load.

An EAGLE-3 head (`kind: eagle3`, one layer) becomes a checkpoint in the layout that these engines read:

    fc.weight                                    (D, 3 D) low, middle, high level -> feature (fc1)
    midlayer.{input_layernorm,hidden_norm}       norms of the token embedding and of the feature
    midlayer.self_attn.{q,k,v}_proj.weight       over [embedding ; feature], no biases; o_proj
    midlayer.post_attention_layernorm, midlayer.mlp.{gate,up,down}_proj
    norm.weight, lm_head.weight                  final norm, head over the draft's vocabulary
    d2t, t2d                                     target id - draft id; whether the draft has a target id
    embed_tokens.weight                          the target's

A Hyper-Bagel head has the same keys where it has the same parts (norm, head, vocabulary, `fc` = fc1, and its layers as
`layers.N` in Qwen2's names), and what EAGLE-3 has not as further keys, which an engine has to learn first:

    intermediate.queries, intermediate.norm, intermediate.{q,k,v,o}_proj   cross-attention per token
    intermediate.decoder.*                       `Dec`, in Qwen2's names
    fuse.norm.weight, fuse.fc2.weight            fc2 over [normed embedding ; feature]
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.tensors import write_tensors
from hyperbagel.draft.head import DraftHead
from hyperbagel.files import write_json

log = logging.getLogger(__name__)

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")


def export_eagle3(head: DraftHead, model: Bagel, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors` into a folder (see the module's text for their content).

    Raises ValueError for an EAGLE-3 head of several layers, of which the further ones are of the target's kind, or of
    other features than three levels, and for a parallel head: the engines do not load them. Warns of levels that they
    do not capture.
    """
    config = head.config
    if config.kind == "parallel":
        raise ValueError("serving engines know no parallel heads of this kind: export one of kind hyper or eagle3")
    if config.kind == "eagle3" and (config.layers != 1 or config.queries != 3):
        raise ValueError(
            f"serving engines load EAGLE-3 heads of 1 layer over 3 levels, not of {config.layers} over {config.queries}"
        )
    _warn_of_levels(config.level_entries(head.llm), head.llm.num_hidden_layers)
    tensors = {_key(name, head): value for name, value in head.state_dict().items() if name != "vocabulary"}
    embedding = model.understanding.embed_tokens.weight
    tensors |= _vocabulary(head) | {"embed_tokens.weight": embedding}
    write_tensors(tensors, Path(folder) / "model.safetensors")
    write_json(Path(folder) / "config.json", _config(head, model), indent=2)


def _key(name: str, head: DraftHead) -> str:
    """Name in the checkpoint of a tensor of the head."""
    if name == "features.fc1.weight":
        return "fc.weight"
    if name.startswith("features.attention."):
        return name.replace("features.attention", "intermediate")
    if name.startswith("fusion."):
        return name.replace("fusion", "fuse")
    if name.startswith("features.decoder."):
        return f"intermediate.decoder.{_layer_key(name.removeprefix('features.decoder.'))}"
    if name.startswith("layers."):
        _, number, rest = name.split(".", 2)
        return f"{'midlayer' if head.config.kind == 'eagle3' else f'layers.{number}'}.{_layer_key(rest)}"
    return name


def _layer_key(name: str) -> str:
    """Of a layer's tensor: our halves are merged into Qwen2's names."""
    _, module, kind = name.split(".")
    if module in _ATTENTION:
        return f"self_attn.{module}.{kind}"
    return f"{module}.{kind}" if module.endswith("norm") else f"mlp.{module}.{kind}"


def feature_layers(levels: Sequence[int]) -> dict[str, Any]:
    """Residual streams, each told as that which enters a layer, in the configuration's terms for either engine."""
    return {
        "eagle_aux_hidden_state_layer_ids": list(levels),
        "eagle_config": {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": [level - 1 for level in levels],
        },
    }


def _warn_of_levels(levels: tuple[int, ...], layers: int) -> None:
    """Engines walk through the layers once and keep each stream that is asked for as it enters one."""
    if list(levels) != sorted(set(levels)) or not 0 < levels[0] <= levels[-1] < layers:
        log.warning(
            "levels %s of a target of %d layers: serving engines capture the streams that enter layers 1 to %d, "
            "ascending and each once, so they will not feed this head what it was trained on",
            levels,
            layers,
            layers - 1,
        )


def _vocabulary(head: DraftHead) -> dict[str, Tensor]:
    size = head.llm.vocab_size
    ids = torch.arange(size) if head.vocabulary is None else head.vocabulary.cpu()
    known = torch.zeros(size, dtype=torch.bool)
    known[ids] = True
    return {"d2t": ids - torch.arange(len(ids)), "t2d": known}


def _config(head: DraftHead, model: Bagel) -> dict[str, Any]:
    llm, levels = head.llm, head.config.level_entries(head.llm)
    content: dict[str, Any] = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "num_hidden_layers": head.config.layers,
        "head_dim": llm.head_dim,
        "draft_vocab_size": head.lm_head.out_features,
        "max_position_embeddings": 32768,
        "bos_token_id": model.config.tokens.bos,
        "eos_token_id": model.config.tokens.eos,
        "torch_dtype": str(head.lm_head.weight.dtype).removeprefix("torch."),
        **feature_layers(levels),
    }
    for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "rms_norm_eps",
        "rope_theta",
    ):  # fmt: skip
        content[name] = getattr(llm, name)
    if head.config.kind == "hyper":
        content["architectures"] = ["HyperBagelDraft"]
        content["attention_bias"] = True  # of queries, keys and values, as in Qwen2
        content["hyper_bagel"] = {
            "queries": head.config.queries,
            "meta_queries": head.config.attends,
            "decoder": head.config.decodes,
            "decoder_size": head.config.decoder_size or llm.intermediate_size,
            "qk_norm": llm.qk_norm,
        }
    return content
