"""Latents that are stored beside pictures: the same training without the autoencoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import DocumentBatch, ImageSegment
from hyperbagel.cli.model_data import latents
from hyperbagel.datamodules.interleaved import Batching, InterleavedDataModule
from hyperbagel.datamodules.latent_writer import write_latents
from hyperbagel.datamodules.latents import ENDING
from hyperbagel.datamodules.loader import ReaderSettings
from hyperbagel.datamodules.packing import pack
from hyperbagel.datamodules.pipeline import DocumentBuilder, Formatting
from hyperbagel.datamodules.scenes import write_scenes
from hyperbagel.datamodules.shards import Sample, read_samples
from hyperbagel.datamodules.sources import Source
from hyperbagel.datamodules.writer import ShardWriter
from hyperbagel.modules.consistency.cfg_distillation import CFGDistillation
from hyperbagel.modules.pretraining import Pretraining, PretrainingMethod
from tests.runs import trainer

WEIGHTS = {"generation": 1.0, "editing": 1.0, "caption": 1.0}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, nano_folder: str) -> tuple[Path, Path]:
    """Folders of shards without and with latents."""
    folder = tmp_path_factory.mktemp("latents")
    write_scenes(folder / "plain", size=12, weights=WEIGHTS, shard_size=8)
    summary = latents(str(folder / "plain"), folder / "stored", nano_folder, batch_size=5)
    assert str(summary).startswith("12 documents with latents of")
    return folder / "plain", folder / "stored"


def samples(folder: Path) -> list[Sample]:
    return [found for path in sorted(folder.glob("*.tar")) for found in read_samples(path) if isinstance(found, Sample)]


def documents(folder: Path, formatting: Formatting) -> DocumentBatch:
    builder = DocumentBuilder(formatting)
    return pack([builder.build(sample) for sample in samples(folder)], "scenes", []).unpack()


def pictures(batch: DocumentBatch) -> list[ImageSegment]:
    return [segment for document in batch.documents for segment in document if isinstance(segment, ImageSegment)]


def test_they_are_those_of_the_autoencoder_and_everything_else_is_as_it_was(
    stored: tuple[Path, Path], nano_folder: str
) -> None:
    plain, folder = stored
    formatting = Formatting().for_model(nano_folder)
    before, after = documents(plain, formatting), documents(folder, formatting)
    model = Bagel.from_pretrained(nano_folder)
    assert [sample.key for sample in samples(plain)] == [sample.key for sample in samples(folder)]
    assert pictures(after) and all(picture.latent is None for picture in pictures(before))
    for old, new in zip(pictures(before), pictures(after), strict=True):
        assert torch.equal(old.pixels, new.pixels) and old.loss == new.loss and new.latent is not None
        torch.testing.assert_close(new.latent, model.encode([old.pixels])[0], rtol=1e-3, atol=1e-3)


def test_those_of_another_autoencoder_or_size_are_not_used(stored: tuple[Path, Path], nano_folder: str) -> None:
    formatting = Formatting().for_model(nano_folder)
    assert formatting.latent is not None
    smaller = replace(formatting.latent, max_size=formatting.latent.max_size // 2)
    for other in (replace(formatting, autoencoder="another"), replace(formatting, latent=smaller)):
        assert all(picture.latent is None for picture in pictures(documents(stored[1], other)))


def test_samples_written_anew_keep_their_latents(stored: tuple[Path, Path], tmp_path: Path) -> None:
    before = samples(stored[1])
    with ShardWriter(tmp_path / "{:06d}.tar") as writer:
        for sample in before:
            writer.rewrite(sample, sample.document())
    assert any(name.endswith(ENDING) for sample in before for name in sample.members)
    for old, new in zip(before, samples(tmp_path), strict=True):
        assert (old.key, old.document(), {**old.members, "json": b""}) == (
            new.key,
            new.document(),
            {**new.members, "json": b""},
        )


def test_shards_of_one_name_are_refused(stored: tuple[Path, Path], nano_folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two input shards have the same name"):
        write_latents(
            Bagel.from_pretrained(nano_folder),
            DocumentBuilder(Formatting().for_model(nano_folder)),
            [str(stored[0]), str(stored[1])],
            tmp_path / "out",
        )


def test_finished_shards_are_left_alone_and_the_input_is_never_written_to(
    stored: tuple[Path, Path], nano_folder: str, tmp_path: Path
) -> None:
    times = {path: path.stat().st_mtime_ns for path in stored[1].glob("*.tar")}
    assert len(times) == 2
    assert str(latents(str(stored[0]), stored[1], nano_folder)).startswith("0 documents")
    assert times == {path: path.stat().st_mtime_ns for path in stored[1].iterdir() if path.suffix == ".tar"}
    with pytest.raises(ValueError, match="holds the shards that are to be read"):
        latents(str(stored[0]), stored[0], nano_folder)


def test_stages_train_without_the_autoencoder(
    stored: tuple[Path, Path], nano_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of pretraining are those with it, and distillation runs; unusable weights would tell of its use."""

    def data(folder: Path) -> InterleavedDataModule:
        reader = ReaderSettings(0, cache_dir=str(tmp_path / "cache"))
        source = Source("scenes", str(folder), weight=1.0)
        return InterleavedDataModule(Formatting(), train=[source], batching=Batching(batch_size=4), reader=reader)

    losses = []
    for folder in stored:
        stage = Pretraining(model=nano_folder, method=PretrainingMethod(train="generation"))
        if folder == stored[1]:
            monkeypatch.setattr(type(stage.model.autoencoder), "encode", None)
        run = trainer(tmp_path, max_steps=1)
        run.fit(stage, data(folder))
        losses.append(run.callback_metrics["loss/image"])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-3)
    stage = CFGDistillation(model=nano_folder)
    trainer(tmp_path, max_steps=1).fit(stage, data(stored[1]))
    assert stage.student_step == 1


class Copies(TorchDispatchMode):
    """Counts the copies from one device to another."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


def test_a_batch_moves_in_two_copies(stored: tuple[Path, Path], nano_folder: str) -> None:
    batch = documents(stored[1], Formatting().for_model(nano_folder))
    with Copies() as copies:
        moved = batch.to("meta")
    assert copies.count == 2  # pixels, latents; texts are laid out on the host
    for before, after in zip(batch.documents, moved.documents, strict=True):
        assert [type(segment) for segment in before] == [type(segment) for segment in after]
    shapes = [[picture.pixels.shape for picture in pictures(which)] for which in (batch, moved)]
    assert shapes[0] == shapes[1] and all(picture.latent.is_meta for picture in pictures(moved))  # type: ignore[union-attr]
