"""The README.md of a merged folder: a model card with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from hyperbagel.bagel.branch_checkpoint import BranchInfo

GRID_POINTS = ("ByteDance-Seed/Bagel", "vLLM-Omni", "LightX2V", "ComfyUI-BAGEL")
"""Programs whose number of steps counts the points of the grid, one more than there are evaluations."""
UPDATES = ("SGLang", "hyperbagel")
"""Programs whose number of steps is that of the evaluations."""


@dataclass(frozen=True)
class Origin:
    """What the weights come from. base_model: its name on the Hub; license: its licence; None: not told."""

    base_model: str | None = None
    license: str | None = None

    @classmethod
    def of(cls, folder: Path, base_model: str | None, license: str | None) -> Origin:
        """As given, and else as the README.md of the model's folder says."""
        told = front_matter(folder / "README.md")
        return cls(base_model or _text(told.get("base_model")), license or _text(told.get("license")))


def front_matter(readme: Path) -> dict[str, object]:
    """The metadata at the head of a model card; empty where there is none."""
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    head, _, rest = text.partition("---\n")
    if head or not rest:
        return {}
    try:
        told = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    return told if isinstance(told, dict) else {}


def model_card(name: str, info: BranchInfo, origin: Origin) -> str:
    """The text of README.md for a folder called `name`."""
    metadata: dict[str, object] = {"library_name": "bagel-mot", "pipeline_tag": "any-to-any"}
    metadata["tags"] = ["bagel", "text-to-image", "image-editing", "distillation", "few-step"]
    if origin.base_model is not None:
        metadata |= {"base_model": origin.base_model, "base_model_relation": "finetune"}
    if origin.license is not None:
        metadata["license"] = origin.license
    over = origin.base_model or "BAGEL"
    head = yaml.safe_dump(metadata, sort_keys=False)
    return "\n".join(["---", head.rstrip(), "---", f"# {name}", "", *_text_of(info, over), ""])


def _text_of(info: BranchInfo, over: str) -> list[str]:
    steps, evaluations = info.nfe, "an evaluation" if info.nfe == 1 else f"{info.nfe} evaluations"
    many = "as many evaluations as the sampler takes" if not steps else f"{evaluations} of the network"
    lines = [
        f"{over} that draws a picture in {many}, distilled by hyperbagel (last stage: {info.stage}) and merged",
        "into the official layout. What reads and answers is unchanged.",
        "",
        "Guidance is inside of the weights, so **switch it off**: `cfg_text_scale` and `cfg_img_scale` have to be 1.",
        "",
        "| setting | value |",
        "|---|---|",
    ]
    if steps:
        lines += [
            f"| steps of {', '.join(GRID_POINTS)}, which count grid points | **{steps + 1}** |",
            f"| steps of {', '.join(UPDATES)} | **{steps}** |",
        ]
    lines += [
        f"| timestep shift | {info.shift:g} |",
        "| text scale, image scale of the programs | 1, 1 |",
        f"| text scale inside | {_scale(info.text_scale)} |",
        f"| image scale inside | {_scale(info.image_scale)} |",
        "",
    ]
    if info.image_scale is not None and info.image_scale[0]:
        lines += ["For edits: the scale of the source picture is inside, too; drawing from text was not made for it."]
    else:
        lines += ["For drawing from text. Edits have no guidance by the source picture; another folder serves those."]
    return lines


def _scale(limits: tuple[float, float] | None) -> str:
    return "none" if limits is None or not limits[0] else f"{limits[0]:g}"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
