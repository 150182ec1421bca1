"""What documents are formatted for: the stage's model decides what the settings leave open, and checks the rest."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from hyperbagel.bagel.build.assemble import NANO, SCENES
from hyperbagel.bagel.checkpoint import save_config
from hyperbagel.bagel.images import LATENT_TRANSFORM, VIT_TRANSFORM, ImageTransform
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.datamodules.interleaved import InterleavedDataModule
from hyperbagel.datamodules.latents import autoencoder_of
from hyperbagel.datamodules.loader import ReaderSettings
from hyperbagel.datamodules.pipeline import DocumentBuilder, Formatting
from hyperbagel.datamodules.scenes import SceneSource
from hyperbagel.datamodules.sources import Source
from hyperbagel.modules.pretraining import Pretraining, PretrainingMethod
from tests.runs import nano_folder, trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return nano_folder(tmp_path_factory.mktemp("model") / "nano")


def data(formatting: Formatting | None = None, vit: ImageTransform | None = None) -> InterleavedDataModule:
    source = Source("drawn", samples=SceneSource(size=4, weights={"generation": 1}), vit_transform=vit)
    return InterleavedDataModule(
        formatting or Formatting(), train=[source], val=[source], reader=ReaderSettings(num_workers=0)
    )


def test_a_model_decides_what_is_left_open(folder: str) -> None:
    assert Formatting(answer_prefix="a").for_model(folder) == Formatting(
        folder, NANO.vae_transform, NANO.vit_transform, answer_prefix="a", autoencoder=autoencoder_of(folder)
    )
    assert Formatting().for_model("scenes").latent == SCENES.vae_transform
    smaller = ImageTransform(32, 16, 8)
    assert Formatting(latent=smaller).for_model(folder).latent == smaller


def test_a_stage_reads_data_as_its_model_does(folder: str, tmp_path: Path) -> None:
    """Without a word on sizes or tokens; the same data may be read for another model afterwards."""
    documents = data()
    trainer(tmp_path, max_steps=1).fit(
        Pretraining(model=folder, method=PretrainingMethod(train="generation")), documents
    )
    assert documents.builder is not None
    assert (documents.builder.latent, documents.builder.vit) == (NANO.vae_transform, NANO.vit_transform)
    trainer(tmp_path, limit_val_batches=1).validate(Pretraining(model="scenes"), documents)
    assert documents.builder.latent == SCENES.vae_transform


@pytest.mark.parametrize(
    ("documents", "setting"),
    [
        (data(Formatting(latent=LATENT_TRANSFORM)), "formatting.latent: max_size 1024 and stride 16"),
        (data(Formatting(vit=VIT_TRANSFORM)), "formatting.vit: max_size 980 and stride 14"),
        (data(Formatting(latent=ImageTransform(64, 16, 4))), "formatting.latent: max_size 64 and stride 4"),
        (data(vit=ImageTransform(128, 16, 8)), "vit_transform of source 'drawn': max_size 128 and stride 8"),
    ],
)
def test_what_the_model_cannot_read_is_refused_at_set_up(
    documents: InterleavedDataModule, setting: str, folder: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(setting) + r".* at most 64 pixels a side, in multiples of 8; leave"):
        trainer(tmp_path, max_steps=1).fit(Pretraining(model=folder), documents)


def test_a_tokenizer_of_another_model_is_refused(folder: str, tmp_path: Path) -> None:
    save_config(replace(NANO, tokens=replace(NANO.tokens, bos=7)), tmp_path)
    Tokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"formatting\.tokenizer: .*bos=1,.*the model .*bos=7,"):
        Formatting(tokenizer=folder).for_model(tmp_path)


def test_without_a_model_nothing_may_be_left_open(folder: str) -> None:
    with pytest.raises(ValueError, match=r"leaves latent, vit open, and there is no stage"):
        DocumentBuilder(Formatting(folder))
    with pytest.raises(ValueError, match=r"leaves tokenizer, latent, vit open"):
        data().setup("fit")
