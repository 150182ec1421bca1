"""The measurement of drafting: what it asks, what it logs, and that it notices answers that differ."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperbagel.bagel.segments import DocumentBatch, LatentSegment, TextSegment, ViTSegment
from hyperbagel.callbacks.report import Report
from hyperbagel.callbacks.speculation import Speculation, questions_of
from hyperbagel.decoding.speculative import SpeculationSettings, Speculator
from hyperbagel.decoding.tree import TreeSettings
from hyperbagel.draft.config import DraftConfig
from hyperbagel.evaluation.reports import read_report
from hyperbagel.modules.draft_head import DraftHeadMethod, DraftTraining
from hyperbagel.modules.pretraining import Pretraining
from hyperbagel.training.stage import Compute, StageSettings
from tests.runs import nano_folder, scenes, trainer

WAYS = {"chain": SpeculationSettings(3), "tree": SpeculationSettings(2, tree=TreeSettings(2, 4))}
SMALL = DraftHeadMethod(draft=DraftConfig(layers=1))
CALLBACK = Speculation(WAYS, max_tokens=12, questions=5, warmup=1)


def test_test_runs_report_figures_by_kind(tmp_path: Path) -> None:
    module = DraftTraining(model=nano_folder(tmp_path / "nano"), method=replace(SMALL, steps=2))
    runner = trainer(tmp_path, callbacks=[CALLBACK, Report(str(tmp_path))])
    (logged,) = runner.test(module, scenes({"caption": 1.0, "question": 1.0}, held_out=8), verbose=False)
    names = {"acceptance_length", "n_alpha", "tokens_per_second", "tokens_per_second_plain", "speedup"}
    assert {f"speculation/{name}" for name in names} <= set(logged)
    kinds = {name.split("/")[1] for name in logged if name.startswith("speculation/") and name.count("/") == 2}
    assert (
        kinds and sum(logged[f"speculation/{kind}/questions"] for kind in kinds) == logged["speculation/questions"] == 5
    )
    assert logged["speculation/differing_answers"] == logged["tree/speculation/differing_answers"] == 0
    assert 1 <= logged["speculation/acceptance_length"] <= 4 and "speculation/n_alpha_0" in logged
    rows = read_report(tmp_path)["results"]["speculation"]["rows"]
    assert next(iter(rows)) == "chain" and {"tree", *(f"tree, {kind}" for kind in kinds)} <= set(rows)
    assert rows["tree"]["speculation/questions"] == 5


def test_bfloat16_is_measured_too(tmp_path: Path) -> None:
    settings = StageSettings(compute=Compute(dtype="bfloat16"))
    module = DraftTraining(model=nano_folder(tmp_path / "nano"), method=SMALL, settings=settings)
    data = scenes({"caption": 1.0, "question": 1.0}, held_out=4)
    (logged,) = trainer(tmp_path, callbacks=[CALLBACK]).test(module, data, verbose=False)
    assert 1 <= logged["speculation/acceptance_length"] <= 4 and logged["tree/speculation/questions"] >= 1


def test_every_answer_is_a_question_of_its_kind() -> None:
    text, answer = TextSegment(torch.tensor([5])), TextSegment(torch.tensor([6]), loss=True)
    picture = ViTSegment(torch.zeros(3, 8, 8))
    drawn, clean = LatentSegment(torch.zeros(4, 2, 2), loss=True), LatentSegment(torch.zeros(4, 2, 2))
    prefixed = TextSegment(torch.tensor([8, 9, 6]), loss=True, prefix=2)
    documents = ([picture, text, answer, text, answer], [text, drawn, clean, picture, answer], [text, prefixed], [text])
    metas = ({}, {}, {"kind": "joke"}, {})
    found = questions_of(DocumentBatch(documents, tuple("abcd"), metas))
    assert [q.kind for q in found] == ["picture", "picture", "after_image", "joke"]
    assert [len(q.document) for q in found] == [2, 4, 3, 1]
    assert [q.prefix for q in found] == [(), (), (), (8, 9)]
    assert not any(getattr(s, "loss", False) for s in found[2].document)


def test_differing_answers_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = DraftTraining(model=nano_folder(tmp_path / "nano"), method=SMALL)
    decode = Speculator.decode

    def broken(self: Speculator, *arguments: object, **options: object) -> list[list[int]]:
        answers = decode(self, *arguments, **options)  # type: ignore[arg-type]
        return answers if self.drafter is None else [[*answer[:-1], 0] for answer in answers]

    monkeypatch.setattr(Speculator, "decode", broken)
    data = scenes({"caption": 1.0})
    data.setup("test")
    asked = questions_of(next(iter(data.test_dataloader())))
    results = CALLBACK.measure(module.model, module.draft, asked)
    for way in WAYS:
        assert sum(result.differing for result in results[way].values()) == len(asked)


def test_stages_without_a_draft_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no draft head"):
        CALLBACK.requirements(Pretraining(model=nano_folder(tmp_path / "nano")), "test")


def test_answers_are_timed_without_the_garbage_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = DraftTraining(model=nano_folder(tmp_path / "nano"), method=SMALL)
    decode, collecting = Speculator.decode, []

    def watched(self: Speculator, *arguments: Any, **named: Any) -> list[list[int]]:
        collecting.append(gc.isenabled())
        return decode(self, *arguments, **named)

    monkeypatch.setattr(Speculator, "decode", watched)
    trainer(tmp_path, callbacks=[CALLBACK]).test(module, scenes({"question": 1.0}, held_out=2), verbose=False)
    assert collecting and not any(collecting) and gc.isenabled()
