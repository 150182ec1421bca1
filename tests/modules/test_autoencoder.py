"""The autoencoder stage: its loss, what changes, and latents of unit scale at the end."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import DocumentBatch, ImageSegment, TextSegment, ViTSegment
from hyperbagel.callbacks import ExportModel
from hyperbagel.modules.autoencoder import AutoencoderMethod, AutoencoderTraining, RateDistortion, _stacks
from hyperbagel.training.networks import Training
from hyperbagel.training.schedules import WarmupStableDecay
from tests.runs import nano_folder, scenes, trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return nano_folder(tmp_path_factory.mktemp("nano"))


def stage(folder: str, **method: Any) -> AutoencoderTraining:
    optimizer = partial(torch.optim.AdamW, lr=3e-3)
    student = Training(optimizer, partial(WarmupStableDecay, total=200, decay=150))
    return AutoencoderTraining(model=folder, method=AutoencoderMethod(**method), student=student)


def test_rate_is_the_divergence_from_a_standard_normal(folder: str, monkeypatch):
    module = stage(folder)
    mean, logvar = torch.full((2, 4, 8, 8), 1.5), torch.full((2, 4, 8, 8), -1.0)
    monkeypatch.setattr(module.model.autoencoder, "moments", lambda images: (mean, logvar))
    result = module.rate_distortion(torch.zeros(2, 3, 32, 32), torch.Generator().manual_seed(0))
    posterior = torch.distributions.Normal(1.5, torch.tensor(-0.5).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(result.rate, expected)


def test_terms_are_weighted_and_averaged_over_pictures(folder: str, monkeypatch):
    """Two stacks, of three pictures and of one."""
    module = stage(folder, kl_weight=0.01, ssim_weight=0.1)
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: float(value)}))
    monkeypatch.setattr(
        module,
        "rate_distortion",
        lambda images, _: RateDistortion(*(torch.tensor(x) * len(images) for x in (1.0, 2.0, 3.0)), images),
    )
    documents = [[ImageSegment(torch.zeros(3, 16, width))] for width in (16, 16, 32, 16)]
    losses: list[float] = []
    monkeypatch.setattr(module, "update", lambda name, loss: losses.append(float(loss)))
    module.training_step(DocumentBatch(documents, ["a", "b", "c", "d"], [{}] * 4), 0)
    # Weights 3/4 and 1/4 of 3x and 1x the values: 2.5x.
    assert logged.pop("step") == 0
    assert logged == pytest.approx({"loss/reconstruction": 2.5, "loss/dissimilarity": 5.0, "loss/rate": 7.5})
    assert losses == pytest.approx([2.5 + 0.1 * 5 + 0.01 * 7.5])


def test_only_the_autoencoder_learns_and_its_latents_get_unit_scale(folder: str, tmp_path: Path):
    module = stage(folder, kl_weight=1e-3)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    errors: list[float] = []
    original = module.rate_distortion

    def watched(images, generator):
        result = original(images, generator)
        errors.append(float(result.error.detach()))
        return result

    module.rate_distortion = watched
    out = tmp_path / "out"
    runner = trainer(tmp_path, max_steps=200, callbacks=[ExportModel(str(out))])
    data = scenes({"generation": 1.0, "caption": 1.0}, batch_size=8)
    runner.fit(module, data)
    assert sum(errors[-10:]) < 0.5 * sum(errors[:10])
    changed = {n.split(".")[0] for n, value in module.model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"autoencoder"}
    exported = Bagel.from_pretrained(out)
    data.setup("test")
    pictures = [
        s.pixels for batch in data.test_dataloader() for d in batch.documents for s in d if hasattr(s, "pixels")
    ]
    latents = torch.stack(exported.encode(pictures))
    assert abs(float(latents.mean())) < 0.2
    assert float(latents.std()) == pytest.approx(1, abs=0.2)


def test_only_the_decoder_learns_from_means(folder: str, tmp_path: Path, monkeypatch):
    module = stage(folder, decoder_only=True)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    scaled = module.model.config.autoencoder
    trainer(tmp_path, max_steps=3).fit(module, scenes({"generation": 1.0}))
    changed = {n for n, value in module.model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed
    assert all(name.startswith("autoencoder.network.decoder.") for name in changed)
    assert module.model.config.autoencoder == scaled
    mean, wide = torch.randn(2, 4, 8, 8), torch.full((2, 4, 8, 8), 5.0)
    monkeypatch.setattr(module.model.autoencoder, "moments", lambda images: (mean, wide))
    errors = [module.rate_distortion(torch.zeros(2, 3, 32, 32), torch.Generator().manual_seed(n)).error for n in (0, 1)]
    assert errors[0] == errors[1]


@pytest.mark.parametrize("decoder_only", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(folder: str, tmp_path: Path, decoder_only: bool):
    kinds = {"generation": 1.0}
    straight = stage(folder, decoder_only=decoder_only)
    trainer(tmp_path, max_steps=4).fit(straight, scenes(kinds))
    first = trainer(tmp_path, max_steps=2)
    first.fit(stage(folder, decoder_only=decoder_only), scenes(kinds))
    first.save_checkpoint(tmp_path / "two.ckpt")
    saved = torch.load(tmp_path / "two.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[1] for name in saved if "." in name} == {"autoencoder"}
    resumed = stage(folder, decoder_only=decoder_only)
    trainer(tmp_path, max_steps=4).fit(resumed, scenes(kinds), ckpt_path=tmp_path / "two.ckpt")
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert resumed.model.config.autoencoder == straight.model.config.autoencoder


def test_every_picture_of_a_document_counts_once():
    pixels, small, text = torch.rand(3, 32, 32), torch.rand(3, 16, 16), TextSegment(torch.tensor([7]))
    edit = [ImageSegment(pixels), ViTSegment(small), text, ImageSegment(small, loss=True), ImageSegment(small)]
    understanding = [ViTSegment(pixels.clone()), text]
    stacks = list(_stacks(DocumentBatch((edit, understanding), ("a", "b"), ({}, {})), torch.device("cpu")))
    assert [tuple(stack.shape) for stack in stacks] == [(2, 3, 32, 32), (1, 3, 16, 16)]


def test_a_batch_without_pictures_is_refused(folder: str):
    batch = DocumentBatch(([TextSegment(torch.tensor([7]))],), ("a",), ({},), "texts")
    with pytest.raises(ValueError, match=r"source 'texts' .* has no pictures"):
        stage(folder).training_step(batch, 0)
