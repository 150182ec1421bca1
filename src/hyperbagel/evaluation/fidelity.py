"""How near generated images are to real ones (Fréchet distance), and how much those of one prompt differ (diversity).

Both work on features, from whatever extractor suits the images; `extract_features` applies one. Distances of different
extractors, or of different numbers of images, can not be compared.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from hyperbagel.bagel.finite import require_finite
from hyperbagel.evaluation.batches import batches_of_equals

log = logging.getLogger(__name__)


@torch.no_grad()
def extract_features(images: Sequence[Tensor], extractor: nn.Module, batch_size: int = 64) -> Tensor:
    """Features (n, d) float32 on the CPU of n images (3, H, W) uint8, those of one size in batches.

    extractor: (B, 3, H, W) uint8 -> (B, d); it does its own scaling and sits on its own device. NotFiniteError for
    features that are no numbers.
    """
    device = next((tensor.device for tensor in extractor.parameters()), torch.device("cpu"))
    rows: dict[int, Tensor] = {}
    for batch in batches_of_equals([(image.shape[-2], image.shape[-1]) for image in images], batch_size):
        found = extractor(torch.stack([images[index] for index in batch]).to(device)).float().cpu()
        rows |= zip(batch, found, strict=True)
    features = torch.stack([rows[index] for index in range(len(images))])
    require_finite(features, f"features of {len(images)} pictures by {type(extractor).__name__}")
    return features


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to features (n, d) and (m, d); 0 for equal means and covariances.

    It is biased upwards for few images, so compare only equal numbers. ValueError for fewer than two images or unequal
    widths, NotFiniteError for features that are no numbers.
    """
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(f"need features (n, d) and (m, d), got {tuple(real.shape)} and {tuple(generated.shape)}")
    if min(len(real), len(generated)) < 2:
        raise ValueError(f"need two images of each kind at least, got {len(real)} real and {len(generated)} generated")
    if min(len(real), len(generated)) <= real.shape[1]:
        log.warning(
            "Fréchet distance of %d and %d images with %d features: covariances are singular, the figure is biased",
            len(real), len(generated), real.shape[1],
        )  # fmt: skip
    require_finite(real, "features of the real pictures")
    require_finite(generated, "features of the generated pictures")
    metric = FrechetInceptionDistance(feature=_Given(real.shape[1]))
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    # Rounding makes the distance of equal features a tiny negative number.
    return max(float(metric.compute()), 0.0)


def within_prompt_diversity(groups: Iterable[Tensor]) -> float:
    """Mean distance between two images of one prompt, averaged over the prompts.

    groups: one tensor (N, ...) a prompt, features or images; uint8 counts as 0 to 1. Distance: root mean square
    difference, so it does not grow with the width or the image size. Prompts with one image are left out; ValueError
    when none has more.
    """
    distances = [mean_pairwise_distance(group) for group in groups if len(group) > 1]
    if not distances:
        raise ValueError("diversity needs a prompt with two images at least")
    return float(torch.stack(distances).mean())


def mean_pairwise_distance(items: Tensor) -> Tensor:
    """Mean root mean square difference over all pairs of `items` (N, ...), N > 1: a scalar."""
    flat = items.flatten(1).float() / (255 if items.dtype == torch.uint8 else 1)
    return torch.pdist(flat).mean() / flat.shape[1] ** 0.5


class _Given(nn.Module):
    """Passes features on, for torchmetrics wants an extractor."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features
