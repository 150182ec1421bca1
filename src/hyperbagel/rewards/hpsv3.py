"""HPSv3 (arXiv 2508.03789) through transformers' Qwen2-VL, differentiable.

The PyPI package `hpsv3` pins an old transformers, so only its instruction texts are read, as data: install it with
`pip install --no-deps hpsv3`. The network is built here and loads the published `HPSv3.safetensors`.
"""

from __future__ import annotations

import ast
import importlib.util
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hyperbagel.bagel.differentiable_resize import resized
from hyperbagel.bagel.tokenizer import as_plain
from hyperbagel.rewards.base import Reward

PIXELS = 256 * 28 * 28
"""Pixels to which every picture is resized, as HPSv3 was trained."""
REWARD_TOKEN = "<|Reward|>"
IMAGE_TOKEN = "<|image_pad|>"


class HPSv3Reward(Reward):
    """Human preference score, about 0 to 15, of a vision language model trained on preferences.

    Args:
        weights: the published HPSv3.safetensors.
        base: folder of Qwen2-VL-7B-Instruct: configuration and tokenizer; its weights are not needed.
        pixels: area of the resized picture.
        dtype: of the network.

    Raises FileNotFoundError for missing files, ImportError without the package's texts, ValueError for other weights.

    Examples:
        >>> HPSv3Reward(weights="HPSv3.safetensors", base="Qwen2-VL")
        Traceback (most recent call last):
        ...
        FileNotFoundError: HPSv3.safetensors: no such file or folder; HPSv3Reward needs the published HPSv3.safetensors
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str, base: str, pixels: int = PIXELS, dtype: str = "bfloat16") -> None:
        super().__init__()
        for path, what in ((Path(weights), "the published HPSv3.safetensors"), (Path(base), "a folder of Qwen2-VL")):
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such file or folder; HPSv3Reward needs {what}")
        from transformers import AutoConfig, AutoTokenizer

        self.texts = instruction_texts()
        self.pixels = pixels
        self._tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
        self._tokenizer.add_special_tokens({"additional_special_tokens": [REWARD_TOKEN]})
        self._tokenizer.padding_side = "right"
        self.config = AutoConfig.from_pretrained(base, local_files_only=True)
        self.network, self.head = _load(weights, self.config, getattr(torch, dtype))
        self.requires_grad_(False).eval()
        # CLIP's, with which Qwen2-VL was trained.
        self.register_buffer("mean", torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None], persistent=False)

    def score(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """The mean of the predicted score distribution, (B,)."""
        vision = self.config.vision_config
        merged = vision.patch_size * vision.spatial_merge_size
        patches, grids = [], []
        for image in images:
            size = fitted_size(image.shape[-2], image.shape[-1], merged, self.pixels)
            pixels = (resized(image.clamp(-1, 1), size) * 0.5 + 0.5 - self.mean) / self.std
            patches.append(
                qwen_patches(pixels, vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
            )
            grids.append((1, size[0] // vision.patch_size, size[1] // vision.patch_size))
        tokens = [h * w // vision.spatial_merge_size**2 for _, h, w in grids]
        batch = self._tokenizer(
            [self._dialogue(prompt, count) for prompt, count in zip(prompts, tokens, strict=True)],
            padding=True,
            return_tensors="pt",
        ).to(images[0].device)
        hidden = self.network(
            **batch,
            pixel_values=torch.cat(patches).to(next(self.network.parameters()).dtype),
            image_grid_thw=torch.tensor(grids, device=images[0].device),
            mm_token_type_ids=(batch["input_ids"] == self.config.image_token_id).int(),
        ).last_hidden_state
        asked = batch["input_ids"] == self._tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        score: Tensor = self.head(hidden[asked].float())[:, 0]
        return score

    def _dialogue(self, prompt: str, image_tokens: int) -> str:
        """The chat in which HPSv3 was trained to judge, with the picture's tokens in place."""
        prompt = as_plain(prompt, self._tokenizer.all_special_tokens)
        question = self.texts.instruction.format(text_prompt=prompt) + self.texts.rating
        image = f"<|vision_start|>{IMAGE_TOKEN * image_tokens}<|vision_end|>"
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        return f"{system}<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n"


class InstructionTexts(NamedTuple):
    """What HPSv3 is asked: the instruction with `{text_prompt}`, and the line with the reward token."""

    instruction: str
    rating: str


def instruction_texts() -> InstructionTexts:
    """The texts of the installed package `hpsv3`, read without importing it. Raises ImportError when it is missing."""
    found = importlib.util.find_spec("hpsv3")
    folder = Path(next(iter(found.submodule_search_locations or []), "")) if found else Path()
    source = folder / "dataset" / "data_collator_qwen.py"
    if found is None or not source.is_file():
        raise ImportError("HPSv3Reward needs the texts of the package hpsv3: pip install --no-deps hpsv3")
    values = {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    try:
        return InstructionTexts(values["INSTRUCTION"], values["prompt_with_special_token"])
    except KeyError as error:
        raise ImportError(f"{source}: has no {error}; install hpsv3 1.0") from error


def fitted_size(height: int, width: int, multiple: int, pixels: int) -> tuple[int, int]:
    """Qwen2-VL's size for a picture whose area is to be `pixels`: sides are multiples, the aspect nearly stays."""
    high, wide = (max(multiple, round(side / multiple) * multiple) for side in (height, width))
    scale = math.sqrt(height * width / pixels)
    if high * wide > pixels:
        return tuple(max(multiple, math.floor(s / scale / multiple) * multiple) for s in (height, width))  # type: ignore[return-value]
    if high * wide < pixels:
        return tuple(math.ceil(s / scale / multiple) * multiple for s in (height, width))  # type: ignore[return-value]
    return high, wide


def qwen_patches(pixels: Tensor, patch: int, frames: int, merge: int) -> Tensor:
    """A picture (3, H, W) as Qwen2-VL's patches (n, 3 * frames * patch^2), those of a merged square in a row."""
    high, wide = pixels.shape[1] // patch, pixels.shape[2] // patch
    x = pixels[None].expand(frames, -1, -1, -1)
    x = x.reshape(frames, 3, high // merge, merge, patch, wide // merge, merge, patch)
    return x.permute(2, 5, 3, 6, 1, 0, 4, 7).reshape(high * wide, -1)


def _load(weights: str, config: Any, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Network and head from the published file, which has the names of older versions of transformers."""
    from transformers import Qwen2VLModel
    from transformers.initialization import no_init_weights

    state = {k: v.to(dtype) for k, v in load_file(weights).items() if not k.startswith("lm_head.")}
    head_state = {k.removeprefix("rm_head."): v.float() for k, v in state.items() if k.startswith("rm_head.")}
    body = {
        k if k.startswith("visual.") else f"language_model.{k.removeprefix('model.')}": v
        for k, v in state.items()
        if not k.startswith("rm_head.")
    }
    text = config.get_text_config()
    widths = (text.hidden_size, 1024, 16, 2)
    linear = [nn.Linear(a, b) for a, b in pairwise(widths)]
    head = nn.Sequential(linear[0], nn.ReLU(), nn.Dropout(0.05), linear[1], nn.ReLU(), linear[2])
    try:
        text.vocab_size = len(body["language_model.embed_tokens.weight"])  # it grew by the reward token
        with no_init_weights():
            network = Qwen2VLModel(config)
        network.load_state_dict(body, assign=True)
        head.load_state_dict(head_state)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{weights}: not the weights of HPSv3 for this Qwen2-VL: {error}") from error
    return network, head
