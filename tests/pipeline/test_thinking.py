"""Think mode, and conversations of texts and pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from hyperbagel import Pipeline, load
from hyperbagel.bagel.context import Context
from hyperbagel.bagel.segments import ImageSegment, TextSegment, ViTSegment
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.draft.checkpoint import save_draft
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.head import DraftHead
from hyperbagel.flow.guidance import PAPER_EDITING
from hyperbagel.flow.sampler import Sampler
from hyperbagel.pipeline.painter import Painter
from hyperbagel.pipeline.thinking import BEFORE_ANSWER, BEFORE_PICTURE, split_thought

SHORT = DecodingSettings(6)


@pytest.fixture(scope="module")
def pipeline(nano_folder: str) -> Pipeline:
    return load(nano_folder, device="cpu")


@pytest.fixture
def picture() -> Image.Image:
    return Image.new("RGB", (16, 16), "red")


def test_a_thought_is_what_stands_between_the_tags() -> None:
    assert split_thought("<think> a plan </think> a cat") == ("a plan", "a cat")
    assert split_thought("\n<think>a</think>") == ("a", "")
    for text in ("a cat", "<think> cut", "a <think> b </think>", "</think> <think>"):
        assert split_thought(text) == ("", text)


def test_the_picture_reads_the_thought_and_the_variants_of_guidance_do_not(
    pipeline: Pipeline, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without text: the state before the instruction, without picture: all texts but the thought."""
    seen = {}

    def sample(self: Sampler, model: object, contexts: object, *others: object, **named: object) -> object:
        seen["contexts"] = contexts
        raise StopIteration

    monkeypatch.setattr(Sampler, "sample", sample)
    model, tokenizer = pipeline.model, pipeline.tokenizer
    painter = Painter(model, tokenizer, Sampler(1, guidance=PAPER_EDITING))
    documents, sizes = painter.edits([picture], ["Make it blue."], BEFORE_PICTURE)
    with torch.inference_mode(), pytest.raises(StopIteration):
        painter.draw(documents, sizes, [0], thoughts=["<think> blue </think>"])
    system, instruction, thought = (
        TextSegment(tokenizer.encode(text)) for text in (BEFORE_PICTURE, "Make it blue.", "<think> blue </think>")
    )
    images = [segment for segment in documents[0] if isinstance(segment, ImageSegment | ViTSegment)]
    assert len(images) == 2
    contexts = seen["contexts"]
    with torch.inference_mode():
        assert same(contexts.full, model.prefill([[system, *images, instruction, thought]]))
        assert same(contexts.no_text, model.prefill([[system, *images]]))
        assert same(contexts.no_image, model.prefill([[system, instruction]]))


def same(one: Context, other: Context) -> bool:
    """Of the same tokens in any order: the sums of what they hold."""
    masks = [context.valid_mask()[:, None, :, None] for context in (one, other)]
    assert torch.equal(one.next_position, other.next_position) and masks[0].sum() == masks[1].sum()
    pairs = zip(one.past, other.past, strict=True)
    return all(torch.allclose((a * masks[0]).sum(3), (b * masks[1]).sum(3), atol=1e-3) for a, b in pairs)


def test_thoughts_are_written_first_and_handed_out(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("answering", "pipeline"):
        monkeypatch.setattr(f"hyperbagel.pipeline.{module}.LONGEST", SHORT)
    drawn = pipeline.generate(["a red circle", "a star"], steps=1, size=(16, 16), think=True)
    for prompt, each in zip(("a red circle", "a star"), drawn, strict=True):
        document = [TextSegment(pipeline.tokenizer.encode(text)) for text in (BEFORE_PICTURE, prompt)]
        (ids,) = decode_text(pipeline.model, pipeline.model.prefill([document]), SHORT)
        assert each.thought == pipeline.tokenizer.decode(ids)
    plain = pipeline.generate("a red circle", steps=1, size=(16, 16))
    assert plain.thought == "" and plain.image.tobytes() != drawn[0].image.tobytes()


def test_a_draft_head_proposes_thoughts_too(
    pipeline: Pipeline, nano_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those before pictures and those before answers; what comes of them is the same."""
    for module in ("answering", "pipeline"):
        monkeypatch.setattr(f"hyperbagel.pipeline.{module}.LONGEST", DecodingSettings(24))
    save_draft(
        DraftHead.from_target(DraftConfig(layers=1), pipeline.model), pipeline.model, tmp_path / "draft.safetensors"
    )
    drafted = load(nano_folder, device="cpu", draft=tmp_path / "draft.safetensors")
    drawn = [p.generate("a red circle", steps=1, size=(16, 16), think=True) for p in (pipeline, drafted)]
    assert drawn[0].thought == drawn[1].thought and drawn[0].image.tobytes() == drawn[1].image.tobytes()
    assert sum(drafted.speculator.statistics.proposed) > 0
    answers = [p.ask("What is it?", think=True) for p in (pipeline, drafted)]
    assert (answers[0].thought, answers[0].text) == (answers[1].thought, answers[1].text)


def test_answers_come_apart_from_their_thought(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    written = pipeline.tokenizer.encode("<think> round </think> a circle").tolist()
    eos, read = pipeline.model.config.tokens.eos, []

    def decode(context: Context, settings: object, generator: object, add: object, prefix: object) -> None:
        for token in [*written, eos]:
            add(torch.tensor([token]))  # type: ignore[operator]

    monkeypatch.setattr(pipeline.speculator, "decode", decode)
    monkeypatch.setattr(pipeline.speculator, "prefill", lambda documents: read.extend(documents))
    answer = pipeline.ask("What is it?", think=True)
    assert (answer.thought, answer.text) == ("round", "a circle") and answer.tokens == len(written) + 1
    assert pipeline.tokenizer.decode(read[0][0].ids) == BEFORE_ANSWER


def test_what_was_drawn_can_be_asked_about_and_edited(pipeline: Pipeline, tmp_path: Path) -> None:
    chat = pipeline.chat()
    first = chat.draw("a red circle", steps=1)
    assert first.image.tobytes() == pipeline.generate("a red circle", steps=1).image.tobytes()
    alone = pipeline.edit(first.image, "Make the circle blue.", steps=1)
    second = chat.draw("Make the circle blue.", steps=1)
    assert second.image.size == first.image.size
    assert second.image.tobytes() != alone.image.tobytes()  # the first prompt counts, too
    answer = chat.ask("What is it?", settings=SHORT)
    assert chat.turns == [
        "a red circle",
        first.image,
        "Make the circle blue.",
        second.image,
        "What is it?",
        answer.text,
    ]
    del chat.turns[:]
    first.save(tmp_path / "first.png")
    chat.show(tmp_path / "first.png")
    assert chat.ask("What is it?", settings=SHORT).text == pipeline.ask("What is it?", first.image, settings=SHORT).text
    with pytest.raises(ValueError, match="the text is empty"):
        chat.ask(" ")
    assert len(chat.turns) == 3
