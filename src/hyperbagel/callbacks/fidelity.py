"""Fréchet distances of generated pictures to real ones and to the teacher's, and the diversity within a prompt."""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from hyperbagel.bagel.images import to_uint8
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.tensors import CheckpointError, open_tensors, write_tensors
from hyperbagel.bagel.vision import PooledFeatures
from hyperbagel.callbacks.evaluation import Run
from hyperbagel.datamodules.documents import parse_document
from hyperbagel.datamodules.pipeline import member_picture
from hyperbagel.evaluation.fidelity import extract_features, frechet_distance, within_prompt_diversity

ImageKey: TypeAlias = tuple[int, int]
"""Number of the prompt and of the picture."""


class Fidelity:
    """Fréchet distances of a GenEval run's pictures, `fidelity/real` and `fidelity/teacher`, and `diversity`.

    The teacher's pictures come from the same noise. `fidelity/other_run` compares across noise: the first half of each
    prompt's pictures with the second half of the teacher's, or of the row's own where no teacher is given; so the
    teacher's own figure says by how much two of its runs differ.

    Args:
        real: samples of real pictures, an object as data sources take; the pictures that its documents generate count.
        teacher: features of the teacher's pictures of the same prompts, a file that `save` wrote.
        save: folder in which to leave the features of each row as `<row>.safetensors`.
        extractor: (B, 3, H, W) uint8 -> (B, d) features; None for BAGEL's own vision tower.

    Examples:
        >>> features = {(prompt, image): torch.randn(8) for prompt in range(4) for image in range(2)}
        >>> sorted(Fidelity().compare("teacher", features, run))
        ['diversity', 'fidelity/other_run']
    """

    def __init__(
        self,
        real: Any = None,
        teacher: str | None = None,
        save: str | None = None,
        extractor: nn.Module | None = None,
    ) -> None:
        if real is not None and not (hasattr(real, "__len__") and hasattr(real, "__getitem__")):
            raise ValueError(f"fidelity: `real` needs __len__ and __getitem__, got {real!r}")
        self.real, self.teacher, self.save = real, teacher, save
        self.extractor = extractor
        self._real_features: Tensor | None = None

    def check(self) -> None:
        """Raises FileNotFoundError or CheckpointError when the teacher's features cannot be had."""
        if self.teacher is None:
            return
        if not Path(self.teacher).is_file():
            raise FileNotFoundError(errno.ENOENT, "no features of the teacher", self.teacher)
        with open_tensors(Path(self.teacher)) as file:
            lacking = {"features", "keys"} - set(file.keys())
        if lacking:
            raise CheckpointError(f"{self.teacher}: no features of a teacher; a run with `save` writes them")

    def features(self, images: Sequence[Tensor], model: Bagel) -> Tensor:
        """(n, d) float32 on the CPU of pictures (3, H, W) uint8."""
        extractor = self.extractor or PooledFeatures(model.understanding.vision)
        return extract_features(images, extractor.to(model.device))

    def compare(self, row: str, features: Mapping[ImageKey, Tensor], run: Run) -> dict[str, float]:
        """The figures of one row's pictures."""
        keys = sorted(features)
        stacked = torch.stack([features[key] for key in keys])
        if self.save is not None and run.rank == 0:
            folder = Path(self.save)
            folder.mkdir(parents=True, exist_ok=True)
            write_tensors({"features": stacked, "keys": torch.tensor(keys)}, folder / f"{row}.safetensors")
        metrics = {}
        if self.real is not None:
            metrics["fidelity/real"] = frechet_distance(self._real(len(stacked), run), stacked)
        others = features
        if self.teacher is not None:
            taught = load_file(self.teacher)
            metrics["fidelity/teacher"] = frechet_distance(taught["features"], stacked)
            others = {(int(p), int(i)): row for (p, i), row in zip(taught["keys"], taught["features"], strict=True)}
        metrics |= _across_noise(features, others)
        by_prompt: dict[int, list[Tensor]] = defaultdict(list)
        for key in keys:
            by_prompt[key[0]].append(features[key])
        if any(len(group) > 1 for group in by_prompt.values()):
            metrics["diversity"] = within_prompt_diversity(torch.stack(group) for group in by_prompt.values())
        return metrics

    def _real(self, number: int, run: Run) -> Tensor:
        """Features of the first `number` real pictures, computed once."""
        if self._real_features is None:
            model = run.stage.model
            pictures = [to_uint8(model.config.vae_transform(p)) for p in _generated_pictures(self.real, number)]
            self._real_features = self.features(pictures, model)
        return self._real_features


def _across_noise(features: Mapping[ImageKey, Tensor], others: Mapping[ImageKey, Tensor]) -> dict[str, float]:
    """Distance of the first half of each prompt's pictures to the second half of the others'; none of too few."""
    half = (max(image for _, image in others) + 1) // 2
    first = [row for (_, image), row in sorted(features.items(), key=lambda item: item[0]) if image < half]
    second = [row for (_, image), row in sorted(others.items(), key=lambda item: item[0]) if image >= half]
    if min(len(first), len(second)) < 2:
        return {}
    return {"fidelity/other_run": frechet_distance(torch.stack(second), torch.stack(first))}


def _generated_pictures(samples: Any, number: int) -> list[Image.Image]:
    """The pictures to be generated of the first documents. ValueError when there are fewer than two."""
    pictures: list[Image.Image] = []
    for index in range(len(samples)):
        sample = samples[index]
        members = {name: value for name, value in sample.items() if not name.startswith("__")}
        document = parse_document(members["json"], members)
        pictures += [member_picture(part.file, members[part.file]) for part in document.images if part.loss]
        if len(pictures) >= number:
            return pictures[:number]
    if len(pictures) < 2:
        raise ValueError("fidelity: `real` has no documents that generate pictures")
    return pictures
