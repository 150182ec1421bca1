"""A head that is fitted by least squares before it trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from hyperbagel.bagel.build.assemble import NANO
from hyperbagel.bagel.segments import DocumentBatch, TextSegment
from hyperbagel.draft.batch import FeatureBatch, extract_features
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.head import DraftHead
from hyperbagel.draft.warm_start import WarmStart
from hyperbagel.modules.draft_head import DraftHeadMethod, DraftTraining
from tests.nano import nano_bagel
from tests.runs import trainer

CONFIG = dataclasses.replace(NANO, llm=dataclasses.replace(NANO.llm, num_hidden_layers=4, vocab_size=64))
MODEL = nano_bagel(CONFIG)


def documents(seed: int) -> list[list[TextSegment]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        [TextSegment(torch.randint(5, 64, (n,), generator=generator)) for n in (30, 20)]
        + [TextSegment(torch.randint(5, 64, (9,), generator=generator), True)]
        for _ in range(8)
    ]


def features(seed: int, head: DraftHead) -> FeatureBatch:
    entries = {*head.config.entries(CONFIG.llm), CONFIG.llm.num_hidden_layers - len(head.layers)}
    return extract_features(MODEL, documents(seed), sorted(entries))


@pytest.mark.parametrize(
    "draft", [DraftConfig(layers=1, queries=1), DraftConfig(layers=2), DraftConfig(meta_queries=False)]
)
def test_what_enters_the_layers_becomes_what_enters_those_of_the_target(draft: DraftConfig) -> None:
    head = DraftHead.from_target(draft, MODEL, seed=0)
    fit = WarmStart(head, 1, lambda sums: sums)
    batch = features(0, head)
    assert fit.take(batch)
    real = batch.position[:, 1:] > 1
    with torch.no_grad():
        feature = head.features(batch.layers, head.rope(batch.position), None)[:, :-1]
        x, _ = head.fuse(batch.embedded[:, 1:], feature)
        inputs = torch.cat([head.fusion.norm(batch.embedded[:, 1:]), feature], -1)[real]
    wanted = batch.layers[CONFIG.llm.num_hidden_layers - len(head.layers)][:, 1:][real]
    scale = wanted.pow(2).mean(-1, keepdim=True).rsqrt()
    best = inputs @ torch.linalg.lstsq(inputs * scale, wanted * scale).solution

    def error(found: torch.Tensor) -> float:
        return float(((found - wanted) * scale).pow(2).mean())

    assert error(best) < 0.9 * error(torch.zeros_like(wanted)), "nothing can be predicted, so little is tested"
    assert error(x[real]) < 1.02 * error(best)
    assert error(feature[real] - batch.final[:, :-1][real] + wanted) < 0.9, "fc1 gives the stream after the last layer"


def test_batches_of_the_warm_start_make_no_updates(tmp_path: Path) -> None:
    folder = tmp_path / "nano"
    MODEL.save_pretrained(folder)
    batches = [DocumentBatch(documents(seed), tuple("abcdefgh"), ({},) * 8) for seed in range(4)]
    head = DraftConfig(layers=1, queries=1, meta_queries=False)
    method = DraftHeadMethod(draft=head, steps=2, warm_start=2)
    stage = DraftTraining(model=str(folder), method=method)
    assert stage.feature_needs()[1] == (2, 3)
    run = trainer(tmp_path, max_steps=2)
    run.fit(stage, torch.utils.data.DataLoader(batches, batch_size=None))
    assert int(stage.student_step) == 2 and run.fit_loop.epoch_loop.total_batch_idx == 3
    assert bool(stage.draft.features.fc1.weight.abs().sum(1).all())


@pytest.mark.parametrize("options", [{"kind": "eagle3", "layers": 1}, {"zero_init": False}])
def test_heads_that_cannot_be_fitted_are_refused(options: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match="warm_start"):
        DraftHeadMethod(draft=DraftConfig(**options), warm_start=1)
