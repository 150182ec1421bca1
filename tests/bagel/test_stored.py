"""Fine-tunes that differ from the official folder in known ways load as it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor

from hyperbagel.bagel.branch_checkpoint import Fingerprints
from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.bagel.model import Bagel

from .tiny import CONFIG, tiny_model

WEIGHTS, RAW = "ema.safetensors", "model.safetensors"
PATCHES = "vit_model.vision_model.embeddings.patch_embedding.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], name: str = WEIGHTS) -> None:
    tensors = load((folder / WEIGHTS).read_bytes())
    written = folder.parent / name  # replaces the file as a whole: a model that was loaded may still be mapped to it
    save_file({key: value.contiguous() for key, value in change(tensors).items()}, written)
    written.replace(folder / name)


def without(*keys: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: value for key, value in tensors.items() if key not in keys}


def convolution(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The patch embedding as the kernel (out, channel, row, column) that it was."""
    side = CONFIG.vit.patch_size
    kernel = tensors[PATCHES].unflatten(1, (side, side, 3)).permute(0, 3, 1, 2)
    return tensors | {PATCHES: kernel}


def wrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    def name(key: str) -> str:
        first, _, rest = key.partition(".")
        return f"_fsdp_wrapped_module.{first}._orig_mod.{rest}"

    return {name(key): value for key, value in tensors.items()}


def surplus(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    extra = {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq", "vit_model.vision_model.head.probe"}
    return tensors | {key: torch.zeros(2) for key in extra}


@pytest.mark.parametrize(
    "change",
    [
        without("latent_pos_embed.pos_embed"),
        without("latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"),
        convolution,
        wrapped,
        surplus,
    ],
    ids=["latent table", "both tables", "convolution", "wrapped", "surplus"],
)
def test_variants_are_the_same_model(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """To its branches too, whatever it is loaded without."""
    tables = {"generation.latent_pos_embed.pos_embed", "understanding.vit_pos_embed.pos_embed"}
    expected, stored = Bagel.from_pretrained(folder), Fingerprints.of_folder(folder)
    rewrite(folder, change)
    loaded, light = Bagel.from_pretrained(folder), Bagel.from_pretrained(folder, without=["generation"])
    for key, value in expected.state_dict().items():
        if key not in tables:
            assert torch.equal(loaded.state_dict()[key], value), key
        torch.testing.assert_close(loaded.state_dict()[key], value)
    own = Fingerprints.of(loaded)
    assert own == Fingerprints.of(light) == Fingerprints.of_folder(folder)
    assert (own.base, own.context) == (stored.base, stored.context)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_floating_type_is_read(folder: Path, dtype: torch.dtype) -> None:
    rewrite(folder, lambda tensors: {key: value.to(dtype) for key, value in tensors.items()})
    loaded = Bagel.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    expected = tiny_model().understanding.lm_head.weight
    assert torch.equal(loaded.understanding.lm_head.weight, expected.to(dtype).float())
    assert Fingerprints.of(loaded) == Fingerprints.of_folder(folder)


def test_another_latent_grid_is_found_in_its_table(folder: Path) -> None:
    """Without `hyperbagel.json`, which official folders do not have."""
    extras = json.loads((folder / "hyperbagel.json").read_text())
    del extras["max_latent_size"]
    (folder / "hyperbagel.json").write_text(json.dumps(extras))
    table = "latent_pos_embed.pos_embed"
    rewrite(folder, lambda tensors: tensors | {table: torch.randn(100, CONFIG.llm.hidden_size)})
    assert Bagel.from_pretrained(folder).config.max_latent_size == 10


def test_averaged_weights_go_before_raw_ones(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewrite(folder, lambda tensors: {key: value + 1 for key, value in tensors.items()}, RAW)
    assert torch.equal(Bagel.from_pretrained(folder).generation.llm2vae.bias, tiny_model().generation.llm2vae.bias)
    assert f"{RAW} beside the weights" in caplog.text
    (folder / WEIGHTS).unlink()
    assert torch.equal(Bagel.from_pretrained(folder).generation.llm2vae.bias, tiny_model().generation.llm2vae.bias + 1)


def test_strays_are_told_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "branches").mkdir()
    save_file({"a": torch.zeros(1)}, folder / "branches" / "nfe6.safetensors")
    Bagel.from_pretrained(folder)
    assert not caplog.records
    moved = folder.rename(folder.with_name("other"))
    save_file({"a": torch.zeros(1)}, moved / "nfe6.safetensors")
    for _ in range(2):
        Bagel.from_pretrained(moved)
    (record,) = caplog.records
    assert "nfe6.safetensors beside the weights" in record.getMessage()


def test_unknown_keys_stay_errors(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors | {"other_head.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"1 unknown keys: other_head\.weight"):
        Bagel.from_pretrained(folder)
