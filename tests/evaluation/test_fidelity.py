"""Fréchet distance against its closed form, and diversity against numbers worked out by hand."""

from __future__ import annotations

import logging

import pytest
import torch
from scipy import linalg
from torch import Tensor, nn

from hyperbagel.evaluation.fidelity import (
    extract_features,
    frechet_distance,
    mean_pairwise_distance,
    within_prompt_diversity,
)


def sample(number: int, width: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(number, width, generator=torch.Generator().manual_seed(seed))


def test_distance_is_the_closed_form() -> None:
    real, generated = sample(200, 6, 0) @ sample(6, 6, 1), 1 + sample(150, 6, 2) @ sample(6, 6, 3)
    a, b = (features.double().T.cov() for features in (real, generated))
    root = torch.from_numpy(linalg.sqrtm((a @ b).numpy()).real)
    expected = (real.double().mean(0) - generated.double().mean(0)).square().sum() + (a + b - 2 * root).trace()
    assert frechet_distance(real, generated) == pytest.approx(float(expected), rel=1e-6)


def test_distance_of_equal_features_is_zero_and_of_a_shift_its_square() -> None:
    features = sample(100, 8, 0)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features, features + 0.5) == pytest.approx(8 * 0.25, rel=1e-5)
    assert frechet_distance(features, features.flip(0)) == pytest.approx(0, abs=1e-6)


def test_distance_grows_with_mode_collapse() -> None:
    real = sample(500, 4, 0)
    values = [frechet_distance(real, sample(500, 4, 1, scale)) for scale in (1.0, 0.5, 0.1)]
    assert values[0] < 0.1 < values[1] < values[2]


def test_too_few_images_are_warned_of_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert frechet_distance(sample(5, 8, 0), sample(5, 8, 1)) > 0
    assert "singular" in caplog.text
    with pytest.raises(ValueError, match="got 1 real and 5 generated"):
        frechet_distance(sample(1, 8, 0), sample(5, 8, 1))
    with pytest.raises(ValueError, match=r"got \(5, 8\) and \(5, 7\)"):
        frechet_distance(sample(5, 8, 0), sample(5, 7, 1))


def test_diversity_is_the_mean_over_pairs_and_prompts() -> None:
    black, white = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.full((3, 4, 4), 255, dtype=torch.uint8)
    assert mean_pairwise_distance(torch.stack([black, black, white])) == pytest.approx(2 / 3)
    same, other, single = torch.stack([black, black]), torch.stack([black, white]), black[None]
    assert within_prompt_diversity([same, other, single]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="two images"):
        within_prompt_diversity([single])


def test_diversity_does_not_grow_with_the_width() -> None:
    narrow, wide = within_prompt_diversity([sample(50, 20, 0)]), within_prompt_diversity([sample(50, 2000, 1)])
    assert narrow == pytest.approx(2**0.5, rel=0.1)
    assert wide == pytest.approx(2**0.5, rel=0.05)


def test_features_do_not_depend_on_the_batch() -> None:
    class Extractor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 5)

        def forward(self, images: Tensor) -> Tensor:
            assert images.dtype == torch.uint8
            output: Tensor = self.layer(images.float().mean((2, 3)) / 255)
            return output

    images = list(torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8))
    extractor = Extractor()
    features = extract_features(images, extractor, batch_size=3)
    assert features.shape == (7, 5)
    assert not features.requires_grad
    assert torch.allclose(features, extract_features(images, extractor), atol=1e-6)
