"""`hyperbagel init`: builds a BAGEL from pretrained or fresh parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hyperbagel.files import check_folder

Preset = Literal["nano", "small", "scenes"]


@dataclass(frozen=True)
class Init:
    """Build a BAGEL from pretrained or fresh parts, as its authors did, and write it as a checkpoint folder.

    The language model becomes the understanding experts, and the generation experts are copies of them.

    Args:
        out: folder to write; it must be empty or not exist.
        llm: folder of a Qwen2 or Llama-family language model, a GGUF file, or "fresh".
        vit: folder of a SigLIP model, or "fresh".
        autoencoder: an autoencoder's ae.safetensors, or "fresh".
        tokenizer: folder of a tokenizer; default the language model's, or that of the scenes world for a fresh one.
        preset: sizes of the fresh parts.
        add_qk_norm: give a language model without q/k norms fresh ones; changes what it computes until it is trained.
        seed: of all fresh weights.
        dtype: type of the stored weights.
    """

    out: Path
    llm: str = "fresh"
    vit: str = "fresh"
    autoencoder: str = "fresh"
    tokenizer: str | None = None
    preset: Preset = "small"
    add_qk_norm: bool = False
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"


def init(options: Init) -> None:
    """Build a BAGEL from pretrained or fresh parts."""
    from hyperbagel.bagel.build import assemble

    check_folder(options.out)
    parts = assemble.Parts(
        llm=options.llm,
        vit=options.vit,
        autoencoder=options.autoencoder,
        tokenizer=options.tokenizer,
        sizes=assemble.PRESETS[options.preset],
        add_qk_norm=options.add_qk_norm,
        seed=options.seed,
        dtype=options.dtype,
    )
    model = assemble.assemble(parts, options.out)
    count = sum(p.numel() for p in model.parameters())
    print(f"{options.out}: {count / 1e6:.1f} M parameters, {options.dtype}")
