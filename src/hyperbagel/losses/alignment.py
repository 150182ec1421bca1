"""Representation alignment (REPA, arXiv 2410.06940): the branch learns what the vision tower sees."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.bagel.groups import in_groups, padded
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import DocumentBatch, ImageSegment
from hyperbagel.losses.base import LossTerm, Step
from hyperbagel.losses.reduction import mean_per_image


class RepresentationAlignment(LossTerm):
    """1 - cosine similarity of a projected hidden layer of the branch and the frozen ViT's features of the picture.

    A token of the noisy picture is compared with the ViT patch at its place, for which the clean picture is resized to
    as many patches as it has latent tokens.

    Args:
        layer: after which layer of the branch (from 1).
        weight: factor in the sum of losses.
        width: of the projector's two hidden layers.
    """

    def __init__(self, layer: int, weight: float = 0.5, width: int = 512, name: str = "alignment") -> None:
        super().__init__(name, weight)
        self.layer, self.width = layer, width
        self.projector = nn.Sequential()

    def attach(self, model: Bagel, folder: str) -> None:
        """Make the projector. Raises ValueError for a layer that the model does not have."""
        llm, features = model.config.llm, model.config.vit.hidden_size
        if not 1 <= self.layer <= llm.num_hidden_layers:
            raise ValueError(f"loss term {self.name!r}: layer is {self.layer}, choose 1 to {llm.num_hidden_layers}")
        self.projector = nn.Sequential(
            nn.Linear(llm.hidden_size, self.width), nn.SiLU(),
            nn.Linear(self.width, self.width), nn.SiLU(),
            nn.Linear(self.width, features),
        )  # fmt: skip

    def forward(self, step: Step) -> Tensor:
        """Mean over pictures of the mean over tokens. Raises ValueError in stages that do not keep hidden layers."""
        if not step.layers:
            raise ValueError(f"loss term {self.name!r} needs hidden layers, which only pretraining of generation keeps")
        with torch.no_grad():
            features = picture_features(step.model, step.batch, step.grid)
        distance = 1 - F.cosine_similarity(self.projector(step.layers[self.layer - 1]).float(), features, dim=-1)
        return mean_per_image(distance[..., None], step.grid.valid).mean()


def picture_features(model: Bagel, batch: DocumentBatch, grid: LatentGrid) -> Tensor:
    """ViT features (B, n, width), float32, of each document's last picture at the places of its latent tokens."""
    vit = model.config.vit

    def look(members: list[int]) -> Tensor:
        pictures = torch.stack([_last_picture(batch, i) for i in members]).to(model.device, model.dtype)
        height, width = (side * vit.patch_size for side in grid.sizes[members[0]])
        if pictures.shape[-2:] != (height, width):
            pictures = F.interpolate(pictures, (height, width), mode="bilinear", antialias=True)
        return model.understanding.vision.features(pictures).float()

    return padded(in_groups(grid.sizes, look))


def _last_picture(batch: DocumentBatch, index: int) -> Tensor:
    picture = batch.documents[index][-1]
    if not isinstance(picture, ImageSegment):
        raise ValueError(f"document {batch.keys[index]!r} does not end with a picture")
    return picture.pixels
