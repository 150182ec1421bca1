"""`predict` draws, edits and answers what documents end with, in any stage, and goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hyperbagel.bagel.segments import DocumentBatch, ImageSegment, TextSegment, ViTSegment
from hyperbagel.flow.sampler import Sampler
from hyperbagel.modules import AutoencoderTraining, CFGDistillation, DraftTraining, Pretraining
from hyperbagel.pipeline.answers import answer
from hyperbagel.pipeline.painter import Painter
from hyperbagel.pipeline.predictions import PredictionSettings, Predictor
from hyperbagel.training.distillation import DistillationSettings
from hyperbagel.training.stage import Samplers, StageSettings
from tests.runs import scenes, trainer

KINDS = {"generation": 1, "editing": 1, "question": 1}
QUICK = Samplers(Sampler(1), Sampler(1))


def settings(kind: type = StageSettings, **options: Any) -> Any:
    return kind(predictions=PredictionSettings(max_tokens=3), **options)


def records(folder: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(file.read_text()) for file in sorted((folder / "predictions" / "scenes").glob("*.json"))]
    return {record["key"]: record for record in found}


@pytest.mark.parametrize(
    "stage",
    [
        lambda folder: Pretraining(model=folder, settings=settings(samplers=QUICK)),
        lambda folder: DraftTraining(model=folder, settings=settings(samplers=QUICK)),
        lambda folder: CFGDistillation(model=folder, settings=settings(DistillationSettings, steps=1)),
    ],
    ids=["pretraining", "draft", "distillation"],
)
def test_every_stage_draws_edits_and_answers(stage: Any, nano_folder: str, tmp_path: Path) -> None:
    data = scenes(KINDS, held_out=8)
    made = stage(nano_folder)
    trainer(tmp_path).predict(made, data)
    found = records(tmp_path)
    assert len(found) == 8 and made.predictor.written == 8
    assert {key.split("-")[2] for key in found} == set(KINDS)
    for key, record in found.items():
        if "question" in key:
            assert record["answer"] is not None and record["expected"] and record["tokens"] <= 3
        else:
            assert Image.open(tmp_path / "predictions" / "scenes" / record["picture"]).size == (32, 32)
            assert record["nfe"] == 1 and len(record["texts"]) == 1


def test_what_is_there_is_kept_and_comes_out_alike(nano_folder: str, tmp_path: Path) -> None:
    for place in ("whole", "stopped"):
        trainer(tmp_path / place).predict(
            Pretraining(model=nano_folder, settings=settings(samplers=QUICK)), scenes(KINDS)
        )
    whole, stopped = (tmp_path / place / "predictions" / "scenes" for place in ("whole", "stopped"))
    lost, *_ = sorted(stopped.glob("*generation*.json"))
    lost.unlink()
    kept = next(file for file in stopped.glob("*.json"))
    kept.write_text(kept.read_text().replace('"key"', '"mine": 1, "key"'))
    again = Pretraining(model=nano_folder, settings=settings(samplers=QUICK))
    trainer(tmp_path / "stopped").predict(again, scenes(KINDS))
    assert (again.predictor.written, again.predictor.kept) == (1, 3) and '"mine"' in kept.read_text()
    assert lost.with_suffix(".png").read_bytes() == (whole / lost.name).with_suffix(".png").read_bytes()


def test_the_autoencoder_gives_pictures_back(nano_folder: str, tmp_path: Path) -> None:
    trainer(tmp_path).predict(AutoencoderTraining(model=nano_folder, settings=settings()), scenes({"editing": 1}))
    found = records(tmp_path)
    assert len(found) == 4
    for record in found.values():
        assert len(record["pictures"]) == 2
        for name in record["pictures"]:
            assert Image.open(tmp_path / "predictions" / "scenes" / name).size == (32, 32)


def test_a_prediction_is_what_pipelines_draw_and_answer(nano_folder: str, tmp_path: Path) -> None:
    stage = Pretraining(model=nano_folder)
    from hyperbagel.bagel.tokenizer import Tokenizer

    tokenizer, model = Tokenizer.from_pretrained(nano_folder), stage.model.eval()
    painter = Painter(model, tokenizer, Sampler(2))
    predictor = Predictor(model, tokenizer, painter, painter, tmp_path, PredictionSettings(max_tokens=5))
    prompt, question = (TextSegment(tokenizer.encode(text)) for text in ("a red circle", "What is it?"))
    target = ImageSegment(torch.zeros(3, 16, 16), loss=True)
    picture = Image.new("RGB", (32, 32), "red")
    seen = ViTSegment(model.config.vit_transform(picture))
    said = TextSegment(tokenizer.encode("a circle"), loss=True)
    batch = DocumentBatch(([prompt, target], [seen, question, said]), ("a/b", "c"), ({}, {}), "mine")
    drawn, answered = (json.loads(Path(file).read_text()) for file in predictor.write(batch))
    (expected,) = Painter(model, tokenizer, Sampler(2)).generate(["a red circle"], [drawn["seed"]], (16, 16))
    shown = Image.open(tmp_path / "mine" / "a_b.png")
    assert torch.equal(expected.permute(1, 2, 0).flatten(), torch.frombuffer(shown.tobytes(), dtype=torch.uint8))
    (text,) = answer(model, tokenizer, [(picture, "What is it?")], 5)
    assert answered["answer"] == text and answered["expected"] == "a circle" and answered["texts"] == ["What is it?"]
    nothing = DocumentBatch(([prompt],), ("d",), ({},), "mine")
    with pytest.raises(ValueError, match="document d of source 'mine' ends with nothing to be made"):
        predictor.write(nothing)
