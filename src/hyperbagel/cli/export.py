"""`hyperbagel export ...`: trained parts in the formats of other programs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from hyperbagel.files import check_folder
from hyperbagel.pipeline.device import Device, DType
from hyperbagel.pipeline.loading import check_files, load_model, model_folder, refuse_model_folder

log = logging.getLogger(__name__)


def draft(
    draft: Path, out: Path, model: str = "scenes", format: Literal["eagle3"] = "eagle3", dtype: DType = "float32"
) -> None:
    """Write a draft head as config.json and model.safetensors.

    Args:
        draft: file of a draft head.
        out: folder to write.
        model: checkpoint folder of its target, or the name of a model that comes with the package.
        format: eagle3 is the layout that vLLM and SGLang read; they load heads of kind eagle3 as they are, while those
            of kind hyper have further keys, which an engine has to learn first.
        dtype: type of the written weights.
    """
    from hyperbagel.draft.checkpoint import load_draft
    from hyperbagel.draft.export import export_eagle3

    refuse_model_folder(out)
    check_folder(out)
    check_files(draft=draft)
    bagel, _ = load_model(model, Device("cpu", dtype), without=("generation", "autoencoder"))
    head = load_draft(draft, bagel)
    export_eagle3(head, bagel, out)
    print(f"{out}: {sum(p.numel() for p in head.parameters()) / 1e6:.1f} M parameters, {format}, {dtype}")


def whole_model(
    out: Path,
    branch: str | None = None,
    model: str = "scenes",
    text_scale: float | None = None,
    image_scale: float | None = None,
    dtype: Literal["stored", "float32", "bfloat16"] = "stored",
    base_model: str | None = None,
    license: str | None = None,
) -> None:
    """Write a model with a distilled branch in the place of its own, for programs that know BAGEL alone.

    Args:
        out: folder to write, in the official layout with a model card; it must be empty or not exist.
        branch: file of the branch, or the name of one that comes with the package.
        model: checkpoint folder that it was distilled from, or the name of a model that comes with the package.
        text_scale: guidance by the text that the weights get; branches that are guided need it.
        image_scale: guidance by the source picture that the weights get, for edits; default none, for drawing.
        dtype: type of the written weights; stored leaves each as it is in its file.
        base_model: name of the model on the Hub, for the card; default what the README.md in its folder says.
        license: of the weights, for the card; default likewise.
    """
    import torch

    from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE
    from hyperbagel.bagel.branch_checkpoint import branch_file, read_info
    from hyperbagel.files import write_text
    from hyperbagel.pipeline.exports import merge
    from hyperbagel.pipeline.model_card import Origin, model_card

    check_folder(out)
    folder = model_folder(model)
    branch = _given(branch, "model")
    made = read_info(branch_file(branch))
    for problem in made.misfits(made.nfe, text_scale, image_scale):
        log.warning("%s: %s", branch, problem)
    if image_scale and made.reader == "original":
        log.warning(
            "%s: made for source pictures that the original reads; merged, it reads them itself, which may cost much: "
            "measure its edits with `context: student`, or train it so (docs/serving.md)",
            branch,
        )
    scales = {IMAGE_SCALE: image_scale or 0.0} | ({} if text_scale is None else {TEXT_SCALE: text_scale})
    info = merge(folder, branch, scales, out, None if dtype == "stored" else getattr(torch, dtype))
    write_text(out / "README.md", model_card(out.resolve().name, info, Origin.of(folder, base_model, license)))
    steps = f"{info.nfe} step{'s' * (info.nfe > 1)}" if info.nfe else "any number of steps"
    print(f"{out}: {steps}, without guidance, as the scales are inside; README.md says how programs count steps")


def lora(
    out: Path,
    branch: str | None = None,
    model: str = "scenes",
    rank: int = 64,
    dtype: DType = "float32",
) -> None:
    """Write a distilled branch as low-rank adapters over its model's own, in PEFT's format.

    Args:
        out: folder to write; `--branch OUT` loads it.
        branch: file of the branch, or the name of one that comes with the package.
        model: checkpoint folder that it was distilled from, or the name of a model that comes with the package.
        rank: of the adapters; what they leave of the difference of the two is told.
        dtype: type of the written weights.
    """
    import torch

    from hyperbagel.bagel.adapters import FILE
    from hyperbagel.pipeline.exports import export_adapters

    refuse_model_folder(out)
    check_folder(out)
    errors = export_adapters(model_folder(model), _given(branch, "lora"), rank, out, getattr(torch, dtype))
    print(f"{out}: rank {rank}, {(out / FILE).stat().st_size / 1e6:.1f} MB, {dtype}")
    print("left of the difference:", ", ".join(f"rank {r}: {error:.1%}" for r, error in errors.items()))


def _given(branch: str | None, command: str) -> str:
    if branch is None:
        raise ValueError(f"export {command}: which branch? Give --branch FILE, or a name such as scenes/nfe6")
    return branch
