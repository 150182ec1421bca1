"""The pixel critic over BAGEL's own tower and over transformers' encoders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hyperbagel.bagel.segments import ViTSegment
from hyperbagel.critics.latent import CriticSettings
from hyperbagel.critics.pixel import BagelViTFeatures, PixelCritic, TransformersFeatures
from tests.nano import nano_bagel

HEADS = CriticSettings(layers=2, channels=8)


def test_features_are_those_of_the_tower() -> None:
    """The last layer's features, after the final norm, are what understanding sees of the same picture."""
    model = nano_bagel()
    encoder = BagelViTFeatures()
    encoder.attach(model)
    picture = torch.rand(3, 16, 32) * 2 - 1
    maps = encoder.features([picture], (1, 2))
    layout = model.layout([[ViTSegment(picture)]])
    assert layout.vit is not None and maps.sizes == [(2, 4)]
    tower = model.understanding.vision
    expected = tower(layout.vit.patches, layout.vit.position_ids)
    torch.testing.assert_close(tower.post_layernorm(maps.layers[-1]), expected)
    assert list(encoder.parameters()) == []  # the model is not registered again


def test_pictures_of_different_sizes_are_judged_as_if_alone() -> None:
    torch.manual_seed(0)
    encoder = BagelViTFeatures()
    encoder.attach(nano_bagel())
    critic = PixelCritic(encoder, HEADS)
    pictures = [torch.rand(3, 16, 16) * 2 - 1, torch.rand(3, 32, 24) * 2 - 1]
    alone = torch.cat([critic([p]) for p in pictures])
    torch.testing.assert_close(critic(pictures), alone, atol=1e-5, rtol=1e-4)


def test_gradient_reaches_the_pixels() -> None:
    encoder = BagelViTFeatures()
    encoder.attach(nano_bagel().requires_grad_(False))
    critic = PixelCritic(encoder, HEADS)
    picture = (torch.rand(3, 20, 20) - 0.5).requires_grad_()  # needs resizing
    critic([picture]).sum().backward()
    assert picture.grad is not None and picture.grad.abs().min() >= 0 and picture.grad.abs().sum() > 0
    assert all(p.grad is not None for p in critic.heads.parameters())


def dinov2(folder: Path) -> str:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    Dinov2Model(config).save_pretrained(folder)
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.4, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return str(folder)


def test_transformers_encoder_from_a_folder(tmp_path: Path) -> None:
    encoder = TransformersFeatures(dinov2(tmp_path), size=42)
    assert (encoder.channels, encoder.depth) == (16, 3)
    picture = (torch.rand(3, 42, 42) * 2 - 1).requires_grad_()
    maps = encoder.features([picture, picture], (1, 3))
    assert [x.shape for x in maps.layers] == [(2, 9, 16)] * 2 and maps.sizes == [(3, 3)] * 2
    mean, std = torch.tensor([0.1, 0.2, 0.3])[:, None, None], torch.tensor([0.5, 0.4, 0.3])[:, None, None]
    hidden = encoder.encoder(((picture * 0.5 + 0.5 - mean) / std)[None], output_hidden_states=True).hidden_states
    torch.testing.assert_close(maps.layers[1][:1], hidden[3][:, 1:])
    critic = PixelCritic(encoder, HEADS)
    critic.train()
    assert not encoder.training
    critic([picture]).sum().backward()
    assert picture.grad is not None and picture.grad.abs().sum() > 0
    assert all(p.grad is None for p in encoder.parameters())


def test_sam_maps(tmp_path: Path) -> None:
    from transformers import SamConfig, SamModel, SamVisionConfig

    vision = SamVisionConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, output_channels=8,
        mlp_dim=32, window_size=2, global_attn_indexes=[1], num_pos_feats=8,
    )  # fmt: skip
    SamModel(SamConfig(vision_config=vision.to_dict())).save_pretrained(tmp_path)
    encoder = TransformersFeatures(str(tmp_path))
    maps = encoder.features([torch.rand(3, 40, 24)], (2,))
    assert maps.layers[0].shape == (1, 16, 16) and maps.sizes == [(4, 4)]


def test_wrong_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        TransformersFeatures(str(tmp_path))
