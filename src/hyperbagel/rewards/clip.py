"""CLIP similarity as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbagel.bagel.differentiable_resize import resized
from hyperbagel.bagel.tokenizer import as_plain
from hyperbagel.rewards.base import Reward


class CLIPReward(Reward):
    """100 times the cosine similarity of picture and prompt (the CLIP score), through open_clip.

    Args:
        name: architecture that open_clip knows.
        weights: file of its weights; None leaves them random, for tests only.

    Raises ImportError when open_clip is missing, FileNotFoundError when the weights are.

    Examples:
        >>> CLIPReward("ViT-B-32", weights="ViT-B-32.safetensors")
        Traceback (most recent call last):
        ...
        FileNotFoundError: ViT-B-32.safetensors: no such file of CLIP weights for ViT-B-32
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str = "ViT-L-14", weights: str | None = None) -> None:
        super().__init__()
        from pathlib import Path

        import open_clip  # slow to import

        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"{weights}: no such file of CLIP weights for {name}")
        model = open_clip.create_model(name, pretrained=weights)
        self.network: Any = model.requires_grad_(False).eval()
        self._tokenize = open_clip.get_tokenizer(name)
        known = getattr(self._tokenize, "tokenizer", None)  # a Hugging Face one, of some architectures
        self._control = tuple(getattr(known, "all_special_tokens", ("<start_of_text>", "<end_of_text>")))
        side = model.visual.image_size
        self.size: tuple[int, int] = side if isinstance(side, tuple) else (side, side)
        self.register_buffer("mean", torch.tensor(model.visual.image_mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(model.visual.image_std)[:, None, None], persistent=False)

    def score(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """The CLIP score (B,), in [-100, 100]."""
        pixels = torch.stack([resized(image.clamp(-1, 1), self.size) for image in images]) * 0.5 + 0.5
        seen = self.network.encode_image((pixels - self.mean) / self.std)
        ids = self._tokenize([as_plain(prompt, self._control) for prompt in prompts]).to(pixels.device)
        with torch.no_grad():
            said = self.network.encode_text(ids)
        return 100 * F.cosine_similarity(seen.float(), said.float())
