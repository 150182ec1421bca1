"""CLIP similarity: equal to open_clip's own, and differentiable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("open_clip")

from hyperbagel.rewards.clip import CLIPReward


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> CLIPReward:
    import json

    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    path = tmp_path_factory.mktemp("clip") / "tiny-clip.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    torch.manual_seed(0)
    return CLIPReward("tiny-clip")


def test_is_the_cosine_of_both_towers(reward: CLIPReward) -> None:
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    score = reward.score([picture, picture], ["a red circle", "a dog"])
    import open_clip

    tokens = open_clip.get_tokenizer("tiny-clip")(["a red circle", "a dog"])
    pixels = (picture * 0.5 + 0.5 - reward.mean) / reward.std
    with torch.no_grad():
        seen = reward.network.encode_image(pixels[None], normalize=True)
        said = reward.network.encode_text(tokens, normalize=True)
    torch.testing.assert_close(score, 100 * (seen @ said.T)[0], atol=1e-4, rtol=1e-4)


def test_gradient_reaches_pictures_of_any_size(reward: CLIPReward) -> None:
    pictures = [torch.rand(3, 16, 48).requires_grad_(), torch.rand(3, 40, 40).requires_grad_()]
    reward.score(pictures, ["a", "b"]).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pictures)
    assert not any(p.requires_grad for p in reward.parameters())


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="CLIP weights for ViT-L-14"):
        CLIPReward("ViT-L-14", str(tmp_path / "no.safetensors"))
