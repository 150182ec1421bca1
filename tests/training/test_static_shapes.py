"""Batches padded to few shapes: the same losses and gradients, and layers that meet few shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperbagel.bagel import model as bagel_model
from hyperbagel.bagel.mot import mot_forward
from hyperbagel.bagel.segments import DocumentBatch, TextSegment, ViTSegment
from hyperbagel.flow.randomness import step_generator
from hyperbagel.modules.pretraining import Pretraining
from hyperbagel.training.stage import Compute, StageSettings
from tests.distillation import batches, documents, fit, picture, sgd, text
from tests.runs import scenes
from tests.stages import STAGES

MULTIPLE = 8


def answered() -> DocumentBatch:
    """Questions on pictures of two sizes, with answers of several lengths."""
    g = torch.Generator().manual_seed(3)
    rows = []
    for length, size in ((2, (16, 16)), (5, (16, 32)), (3, (32, 16))):
        answer = TextSegment(text(g, length).ids, loss=True)
        rows.append([ViTSegment(picture(g, size)), text(g, 3 + length), answer])
    return DocumentBatch(tuple(rows), ("a", "b", "c"), ({},) * 3, "answers")


def trained(name: str, folder: str, branch: str, out: Path) -> dict[str, Tensor]:
    """What a stage is after updates by plain gradients."""
    torch.manual_seed(0)  # of critics' heads
    stage = STAGES[name].make(folder, branch, sgd(lr=0.1))
    data = [answered()] if name == "draft_head" else batches(2, size=3, mixed_sizes=True)
    fit(stage, data, out)
    return {key: value for key, value in stage.state_dict().items() if value.is_floating_point()}


@pytest.mark.parametrize("name", ["pretraining", "draft_head", "cfg_distillation", "tscd", "reward_tuning"])
def test_padding_to_few_shapes_changes_no_update(
    name: str, nano_folder: str, nano_branch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(name, nano_folder, nano_branch, tmp_path)
    monkeypatch.setattr(Compute, "multiple_on", lambda *_: MULTIPLE)
    padded = trained(name, nano_folder, nano_branch, tmp_path)
    torch.testing.assert_close(padded, plain, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["answers", "generation", "editing"])
def test_losses_and_gradients_of_padded_batches(kind: str, nano_folder: str) -> None:
    """Of the whole objective, pictures of several sizes in one batch included."""
    sizes = [(16, 16), (16, 32), (32, 16)]
    batch = answered() if kind == "answers" else documents(0, kind == "editing", sizes)
    results: list[Any] = []
    for multiple in (1, MULTIPLE):
        stage = Pretraining(model=nano_folder)
        stage.model.multiple = multiple
        terms = stage.objective(batch, step_generator(0, 0, 0))
        means = {name: term.total / term.count for name, term in terms.items() if term.present}
        torch.stack(list(means.values())).sum().backward()
        gradients = {n: p.grad for n, p in stage.model.named_parameters() if p.grad is not None}
        results.append((means, gradients))
    (plain, plain_gradients), (padded, padded_gradients) = results
    assert plain.keys() == padded.keys() == ({"text"} if kind == "answers" else {"image"})
    torch.testing.assert_close(padded, plain)
    torch.testing.assert_close(padded_gradients, plain_gradients, atol=1e-6, rtol=1e-4)


def test_evaluation_is_not_padded(nano_folder: str) -> None:
    model = Pretraining(model=nano_folder).model
    model.multiple = MULTIPLE
    prompts = [[text(torch.Generator(), 3)]]
    assert model.prefill(prompts).length == 8 and model.eval().prefill(prompts).length == 5


def test_layers_meet_few_shapes(nano_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of all lengths, and source pictures that are there or dropped."""
    met: list[set[tuple[Any, ...]]] = []

    def spy(experts: Any, streams: Any, rope: Any, mask: Tensor | None, past: Any, **options: Any) -> Any:
        met[-1].add((streams.und.shape, streams.gen.shape, None if mask is None else mask.shape))
        return mot_forward(experts, streams, rope, mask, past, **options)

    monkeypatch.setattr(bagel_model, "mot_forward", spy)
    for kind in ("generation", "editing"):
        data = scenes({kind: 1}, batch_size=8)
        data.setup("fit")
        loaded = [batch for batch in data.train_dataloader() if len(batch) == 8]
        for multiple in (1, 16):
            met.append(set())
            stage = Pretraining(model=nano_folder)
            stage.model.multiple = multiple
            for batch in loaded:
                with torch.no_grad():
                    stage.objective(batch, step_generator(0, 0, 0))
        assert len(met[-1]) <= 4 < len(met[-2])


def test_numbers_that_pad_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple is 0: give 1"):
        Compute(multiple=0)


def test_graphs_do_not_go_with_accumulated_gradients(nano_folder: str, tmp_path: Path) -> None:
    """Told before anything is compiled."""
    settings = StageSettings(compute=Compute(graphs=True))
    stage = Pretraining(model=nano_folder, student=sgd(accumulate=2), settings=settings)
    with pytest.raises(ValueError, match="graphs needs networks with accumulate: 1; give larger batches instead"):
        fit(stage, batches(1), tmp_path)
    assert stage.student_step == 0
