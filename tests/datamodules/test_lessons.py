"""Documents in which a stage has nothing to learn are left out of its batches, counted, and never end a training."""

import logging
from collections.abc import Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hyperbagel.bagel.images import ImageTransform
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.datamodules.interleaved import Batching, InterleavedDataModule
from hyperbagel.datamodules.loader import ReaderSettings
from hyperbagel.datamodules.pipeline import Formatting
from hyperbagel.datamodules.skipped import Skip, SkipLog, SkipRecord
from hyperbagel.datamodules.sources import Source
from hyperbagel.modules.adversarial_reward.adp import ADP
from hyperbagel.modules.autoencoder import AutoencoderTraining
from hyperbagel.modules.draft_head import DraftTraining
from hyperbagel.scenes.vocabulary import tokenizer_folder
from tests.datamodules.samples import make_sample

SMALL = ImageTransform(32, 16, 8)
KINDS = ("generation", "editing", "understanding")


class Documents:
    """Documents of the given kinds, one after another."""

    def __init__(self, kinds: Sequence[str], size: int) -> None:
        self.kinds, self.size = kinds, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        kind = self.kinds[index % len(self.kinds)]
        if kind == "text":
            texts = [{"type": "text", "text": "2 + 2?", "loss": False}, {"type": "text", "text": "4", "loss": True}]
            return {"__key__": f"text-{index}", "json": {"segments": texts}}
        key, document, images = make_sample(index, kind)
        return {"__key__": key, "json": document, **images}


def data(
    kinds: Sequence[str], learns_from: Sequence[str] | None, rank: int = 0, world: int = 1, workers: int = 0
) -> InterleavedDataModule:
    module = InterleavedDataModule(
        Formatting(str(tokenizer_folder()), SMALL, SMALL),
        train=[Source("mix", samples=Documents(kinds, 24))],
        batching=Batching(2, window=1),
        reader=ReaderSettings(workers, max_skipped=3),
        rank=rank,
        world_size=world,
    )
    stage = SimpleNamespace(learns_from=learns_from, student_step=0)
    state = SimpleNamespace(fn="fit")
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=stage,
        state=state,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        training=False,
        sanity_checking=False,
        loggers=[],
        global_step=0,
    )
    module.setup("fit")
    return module


def read(module: InterleavedDataModule, number: int | None = None) -> list[DocumentBatch]:
    return list(islice(module.train_dataloader(), number))


def kinds_of(batches: Sequence[DocumentBatch]) -> set[str]:
    return {key.partition("-")[0] for batch in batches for key in batch.keys}


@pytest.mark.parametrize(
    ("learns_from", "there", "left"),
    [
        (("text",), (*KINDS, "text"), {"understanding", "text"}),
        (("image",), (*KINDS, "text"), {"generation", "editing"}),
        (("picture",), (*KINDS, "text"), set(KINDS)),
        (("text", "image"), (*KINDS, "text"), {*KINDS, "text"}),
        (None, (*KINDS, "text"), {*KINDS, "text"}),
        (("text",), ("generation", "generation", "generation", "text"), {"text"}),
        (("image",), ("text",) * 11 + ("generation",), {"generation"}),
    ],
)
def test_what_teaches_is_left_and_the_rest_is_counted(
    learns_from: Sequence[str] | None, there: Sequence[str], left: set[str]
) -> None:
    module = data(there, learns_from)
    batches = read(module)
    assert kinds_of(batches) == left and all(batch.keys for batch in batches)
    assert len(batches) == 12  # as many as without
    assert (module.skips.counts.get(Skip.NOTHING_TO_LEARN, 0) > 0) == (left != set(there))


def test_where_nothing_is_left_training_is_refused() -> None:
    module = data(("generation",), ("text",))
    with pytest.raises(ValueError, match=r"source 'mix' has no usable sample .* the stage learns from texts with loss"):
        read(module)


@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_resumed_run_goes_on_exactly(stop: int) -> None:
    whole = [batch.keys for batch in read(data((*KINDS, "text", "text"), ("image",)))]
    first = data((*KINDS, "text", "text"), ("image",))
    begun = [batch.keys for batch in read(first, stop)]
    second = data((*KINDS, "text", "text"), ("image",), workers=1)
    second.load_state_dict(first.state_dict())
    assert begun + [batch.keys for batch in read(second)] == whole


def test_all_ranks_see_equally_many_batches() -> None:
    batches = [read(data(("text", "text", "text", "generation"), ("image",), rank, 2)) for rank in range(2)]
    assert len(batches[0]) == len(batches[1]) == 6
    assert all(batch.keys for rank in batches for batch in rank)


def test_they_are_told_once_and_are_no_matter_for_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    skips = SkipLog(limit=2)
    with caplog.at_level(logging.WARNING):
        skips.add([SkipRecord(Skip.NOTHING_TO_LEARN, f"s[{i}]", "it has none") for i in range(500)])
    assert skips.counts == {Skip.NOTHING_TO_LEARN: 500} and len(caplog.records) == 1 and skips.state_dict() == {}
    assert "left out s[0] (nothing_to_learn): it has none" in caplog.text


def test_what_stages_learn_from() -> None:
    assert DraftTraining.learns_from == ("text",) and ADP.learns_from == ("image",)
    assert AutoencoderTraining.learns_from == ("picture",)
