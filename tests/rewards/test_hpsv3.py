"""HPSv3 on a tiny Qwen2-VL in the published layout."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hyperbagel.rewards.hpsv3 import HPSv3Reward, fitted_size, instruction_texts, qwen_patches
from hyperbagel.scenes.vocabulary import tokenizer_folder

TEXTS = """
INSTRUCTION = "rate red circle {text_prompt} "
prompt_with_special_token = " Please <|Reward|> "
other = ["not a text"]
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the installed package, which must not be imported."""
    folder = tmp_path / "site" / "hpsv3"
    (folder / "dataset").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "dataset" / "data_collator_qwen.py").write_text(TEXTS)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


@pytest.fixture
def published(tmp_path: Path) -> tuple[str, str]:
    """Weights with the names of older versions of transformers, and the base folder."""
    from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLModel

    base = tmp_path / "base"
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder())
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                "<|image_pad|>",
                "<|vision_start|>",
                "<|vision_end|>",
                "<|im_start|>",
                "<|im_end|>",
            ]
        }
    )
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.save_pretrained(base)
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    config = Qwen2VLConfig(
        text_config={
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": len(tokenizer) + 1,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
        },
        vision_config={
            "depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        image_token_id=image,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )  # fmt: skip
    torch.manual_seed(0)
    network = Qwen2VLModel(config)
    config.save_pretrained(base)
    head = nn.Sequential(nn.Linear(32, 1024), nn.ReLU(), nn.Dropout(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2))
    state = {k.replace("language_model.", "model."): v for k, v in network.state_dict().items()}
    state |= {f"rm_head.{k}": v for k, v in head.state_dict().items()}
    state["lm_head.weight"] = torch.zeros(3, 3)
    weights = tmp_path / "HPSv3.safetensors"
    save_file({k: v.clone().contiguous() for k, v in state.items()}, weights)
    return str(weights), str(base)


@pytest.mark.usefixtures("package")
def test_scores_each_picture_by_itself_and_differentiably(published: tuple[str, str]) -> None:
    reward = HPSv3Reward(*published, pixels=256, dtype="float32")
    g = torch.Generator().manual_seed(0)
    pictures = [(torch.rand(3, 16, 16, generator=g) - 0.5).requires_grad_(), torch.rand(3, 8, 32, generator=g) - 0.5]
    prompts = ["a red circle", "two blue squares and a green star"]
    scores = reward.score(pictures, prompts)
    alone = torch.cat([reward.score([p], [t]) for p, t in zip(pictures, prompts, strict=True)])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=1e-4)
    assert scores[0] != reward.score(pictures[:1], ["a green star"])[0]
    scores[0].backward()
    assert pictures[0].grad is not None and pictures[0].grad.abs().sum() > 0
    assert not any(p.requires_grad for p in reward.parameters()) and not reward.train().training


@pytest.mark.usefixtures("package")
def test_texts_are_read_without_importing_the_package() -> None:
    texts = instruction_texts()
    assert texts.instruction == "rate red circle {text_prompt} " and "<|Reward|>" in texts.rating
    assert "hpsv3" not in sys.modules


@pytest.mark.usefixtures("package")
def test_other_weights_are_refused(published: tuple[str, str], tmp_path: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.zeros(9, 32)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors: not the weights of HPSv3"):
        HPSv3Reward(str(tmp_path / "x.safetensors"), published[1])


def test_absence_is_told_early(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"HPSv3\.safetensors"):
        HPSv3Reward(str(tmp_path / "no.safetensors"), str(tmp_path))
    if "hpsv3" not in sys.modules:
        with pytest.raises(ImportError, match="pip install --no-deps hpsv3"):
            instruction_texts()


def test_patches_and_sizes_are_those_of_transformers() -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor, smart_resize

    image = torch.randint(0, 256, (3, 56, 84), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    processor = Qwen2VLImageProcessor(do_resize=False)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(x)[:, None, None] for x in (processor.image_mean, processor.image_std))
    patches = qwen_patches((image / 255 - mean) / std, 14, 2, 2)
    torch.testing.assert_close(patches, expected, atol=1e-5, rtol=1e-5)
    for size in ((1024, 1024), (64, 64), (1024, 512), (300, 900), (448, 448)):
        assert fitted_size(*size, 28, 200704) == smart_resize(*size, 28, 200704, 200704)
