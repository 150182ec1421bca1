"""Pictures of held-out captions: drawn once each, at their sizes, and measured against the documents' own."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.callbacks import HeldOut, Report
from hyperbagel.callbacks.evaluation import Row, Run
from hyperbagel.callbacks.held_out import PICTURES, HeldOutSettings
from hyperbagel.cli.trainer import read_config
from hyperbagel.datamodules.interleaved import InterleavedDataModule
from hyperbagel.datamodules.loader import ReaderSettings
from hyperbagel.datamodules.sources import Source
from hyperbagel.datamodules.writer import ShardWriter
from hyperbagel.evaluation.reports import read_report
from hyperbagel.flow.sampler import Sampler
from hyperbagel.modules.pretraining import Pretraining
from hyperbagel.rewards.base import Reward
from hyperbagel.scenes.vocabulary import tokenizer_folder
from hyperbagel.training.stage import Samplers, StageSettings
from tests.runs import trainer

SIZES = ((16, 16), (24, 16), (32, 32))


class Brightness(Reward):
    """Mean of a picture; the prompt's length is part of it, so that a wrong pairing shows."""

    def score(self, images: list[Tensor], prompts: list[str]) -> Tensor:
        return torch.stack([image.mean() + len(prompt) for image, prompt in zip(images, prompts, strict=True)])


def document(number: int, kind: str = "generation") -> tuple[str, dict, dict[str, bytes]]:
    file = io.BytesIO()
    Image.new("RGB", SIZES[number % 3], (40 * number % 256, 90, 200)).save(file, "PNG")
    image = {"type": "image", "file": "0.png", "loss": kind == "generation"}
    text = {"type": "text", "text": "a red circle" + " red" * number, "loss": kind != "generation"}
    return f"{kind}-{number}", {"segments": [text, image]}, {"0.png": file.getvalue()}


def shards(folder: Path, number: int = 6, kind: str = "generation") -> str:
    with ShardWriter(folder / "a-{:02d}.tar") as writer:
        for i in range(number):
            writer.write(*document(i, kind))
    return str(folder)


def data(*sources: Source) -> InterleavedDataModule:
    return InterleavedDataModule(
        val=list(sources), test=list(sources), reader=ReaderSettings(num_workers=0), train=list(sources)
    )


@pytest.fixture
def stage(nano_folder: str) -> Pretraining:
    return Pretraining(model=nano_folder, settings=StageSettings(samplers=Samplers(Sampler(2, 3.0, None))))


def test_captions_are_drawn_and_measured(stage: Pretraining, tmp_path: Path) -> None:
    rows = {"two": None, "one": Row(1)}
    callback = HeldOut({"bright": Brightness()}, rows, HeldOutSettings(images_per_caption=2, batch_size=4, shown=3))
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, name="", version="run")
    runner = trainer(tmp_path, logger=logger, callbacks=[callback, Report()])
    source = Source("mine", shards=shards(tmp_path / "shards"))
    (metrics,) = runner.test(stage, data(source), verbose=False)
    assert {"fidelity/real", "diversity", "reward/bright", "one/fidelity/real"} <= metrics.keys()
    assert (metrics["nfe"], metrics["one/nfe"]) == (2, 1)
    found = read_report(tmp_path / "run")["results"]["heldout"]
    assert list(found["rows"]) == ["two", "one", PICTURES] and len(found["captions"]) == 3
    lengths = sum(len("a red circle" + " red" * i) for i in range(6)) / 6
    own = sum((((40 * i % 256) + 90 + 200) / 3 / 127.5 - 1) for i in range(6)) / 6
    assert found["rows"][PICTURES]["reward/bright"] == pytest.approx(own + lengths, abs=0.02)
    assert callback.findings.pictures["heldout/two"].shape == callback.findings.pictures[f"heldout/{PICTURES}"].shape
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload()
    assert {"heldout/two", f"heldout/{PICTURES}"} <= set(events.Tags()["images"])


def test_results_do_not_depend_on_the_number_of_processes(
    stage: Pretraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every picture is drawn by one process, at the size of the document's own."""
    module = data(Source("mine", shards=shards(tmp_path / "shards")))
    callback = HeldOut(settings=HeldOutSettings(images_per_caption=2, batch_size=4))
    runner = trainer(tmp_path, callbacks=[callback])
    runner.validate(stage, module, verbose=False)
    stage.eval()
    tokenizer = Tokenizer.from_pretrained(tokenizer_folder())

    def drawn(rank: int, world: int) -> dict[tuple[int, int], Tensor]:
        run = Run(stage, tokenizer, rank, world)
        return callback._drawn(run, run.painter(stage.sampler), "")

    whole, parts = drawn(0, 1), [drawn(rank, 3) for rank in range(3)]
    assert sorted(whole) == [(index, image) for index in range(6) for image in range(2)]
    assert sorted(key for part in parts for key in part) == sorted(whole)
    for key, picture in ((key, picture) for part in parts for key, picture in part.items()):
        assert torch.equal(picture, whole[key])
    assert [tuple(whole[i, 0].shape[1:]) for i in range(6)] == [
        tuple(held.picture.shape[1:]) for held in callback._held
    ]
    assert len({tuple(picture.shape) for picture in whole.values()}) > 1
    assert not torch.equal(whole[0, 0], whole[0, 1])


@pytest.mark.parametrize(
    ("number", "kind", "options", "told"),
    [
        (1, "generation", {}, "needs two documents, `data.test` has 1; widen its `part`"),
        (3, "understanding", {}, "a-00.tar at byte 0: HeldOut draws a caption's picture, and this document is of"),
        (3, "generation", {"sources": ["yours"]}, "HeldOut draws yours of `data.test`, which has mine; set"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_anything_is(
    number: int, kind: str, options: dict, told: str, stage: Pretraining, tmp_path: Path
) -> None:
    runner = trainer(tmp_path, callbacks=[HeldOut(**options)])
    with pytest.raises(ValueError, match=told):
        runner.test(stage, data(Source("mine", shards=shards(tmp_path / "shards", number, kind))), verbose=False)


def test_in_fit_it_reads_nothing_unless_it_runs(stage: Pretraining, tmp_path: Path) -> None:
    callback = HeldOut()
    runner = trainer(tmp_path, callbacks=[callback], max_steps=0)
    runner.fit(stage, InterleavedDataModule(train=[Source("mine", shards=shards(tmp_path / "shards"))]))
    assert callback._held == []
    with pytest.raises(ValueError, match=r"`data\.val`, which has no sources"):
        trainer(tmp_path, callbacks=[HeldOut(every_n_updates=1)], max_steps=1).fit(
            stage, InterleavedDataModule(train=[Source("mine", shards=str(tmp_path / "shards"))])
        )
    with pytest.raises(ValueError, match="sizes of at least 1"):
        HeldOutSettings(batch_size=0)


def test_yaml_gives_it_a_clip_score(tmp_path: Path) -> None:
    (tmp_path / "clip.yaml").write_text("""
callbacks:
  held_out:
    rewards:
      clip: {class_path: hyperbagel.rewards.clip.CLIPReward, init_args: {name: ViT-B-32, weights: clip.safetensors}}
""")
    reward = read_config(["own-data-test", tmp_path / "clip.yaml"], "test").callbacks.held_out.init_args.rewards["clip"]
    assert (reward.class_path, reward.init_args.weights) == ("hyperbagel.rewards.clip.CLIPReward", "clip.safetensors")
