"""Documents keep to the schema and are reproducible; the tokenizer covers their texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hyperbagel.scenes import KINDS, SPECIAL_TOKENS, Scene, draw, load_tokenizer, sample, tokenizer_folder
from hyperbagel.scenes.captions import caption
from hyperbagel.scenes.claims import whole_claim
from hyperbagel.scenes.edits import Edit
from hyperbagel.scenes.heldout import HELD_OUT_PAIRS
from scripts.scenes_tokenizer import build_tokenizer, save_tokenizer, world_texts


@pytest.mark.parametrize("kind", KINDS)
def test_documents_keep_to_the_schema(kind: str) -> None:
    for i in range(40):
        drawn = sample("train", 0, i, kind)
        assert "." not in drawn.key and "/" not in drawn.key
        document = json.loads(json.dumps(drawn.document))
        assert document == drawn.document
        files = []
        for segment in document["segments"]:
            assert isinstance(segment["loss"], bool)
            if segment["type"] == "text":
                assert segment["text"] and set(segment) == {"type", "text", "loss"}
            else:
                assert segment["type"] == "image" and set(segment) == {"type", "file", "loss"}
                files.append(segment["file"])
        assert files == list(drawn.images) == [f"{n}.png" for n in range(len(files))]
        assert any(segment["loss"] for segment in document["segments"])
        meta = document["meta"]
        assert meta["kind"] == kind and meta["split"] == "train" and meta["language"] in ("en", "cn")
        for scene, image in zip(meta["scenes"], drawn.images.values(), strict=True):
            assert image.shape == (64, 64, 3) and np.array_equal(draw(Scene.from_dict(scene)), image)
        assert ("geneval" in meta) == (kind in ("generation", "counting"))
        assert ("edits" in meta) == (kind in ("editing", "chinese_editing", "referring", "multi_turn"))
        assert meta["language"] == "cn" or kind != "chinese_editing"


def test_generation_prompts_stand_in_the_metadata() -> None:
    for i in range(40):
        document = sample("test", 0, i, "generation").document
        assert document["segments"][0]["text"] == document["meta"]["geneval"]["prompt"]
        assert document["meta"]["geneval"]["prompt"].startswith("a photo of ")


def test_counting_shows_two_to_four_of_one_shape() -> None:
    documents = [sample("train", 0, i, "counting").document for i in range(40)]
    numbers = set()
    for document in documents:
        (wanted,) = document["meta"]["geneval"]["include"]
        (scene,) = document["meta"]["scenes"]
        assert [item["shape"] for item in scene["objects"]] == [wanted["class"]] * wanted["count"]
        numbers.add(wanted["count"])
    assert numbers == {2, 3, 4}


def test_questions_on_a_text_are_answered_in_it() -> None:
    for i in range(40):
        document = sample("train", 0, i, "reading").document
        text, *turns = (segment["text"] for segment in document["segments"])
        assert not document["meta"]["scenes"] and len(turns) % 2 == 0
        for topic, answer in zip(document["meta"]["topics"], turns[1::2], strict=True):
            assert topic == "count" or answer in text


def test_an_instruction_is_answered_by_its_translation() -> None:
    for i in range(40):
        chinese, english = sample("train", 0, i, "translation").document["segments"]
        assert not chinese["text"].isascii() and not chinese["loss"]
        assert english["text"].isascii() and english["loss"]


def test_detailed_prompts_say_everything() -> None:
    for i in range(40):
        document = sample("train", 0, i, "detailed").document
        (scene,) = (Scene.from_dict(one) for one in document["meta"]["scenes"])
        prompt = document["segments"][0]["text"]
        assert prompt.endswith(f" {scene.background} background")
        for item in scene.objects:
            assert f"{item.size} {item.color} {item.shape} in the {scene.place(item)}" in prompt


def test_edits_say_what_their_last_picture_shows() -> None:
    """True of the target, and of the picture before only where an object was removed."""
    for kind in ("editing", "multi_turn"):
        for i in range(60):
            meta = sample("train", 0, i, kind).document["meta"]
            last = Edit.from_dict(meta["edits"][-1])
            claim = whole_claim(last.target)
            assert meta["reward_prompt"] == claim.text()
            assert meta["caption"] == caption(last.target)
            assert claim.is_true(last.target)
            assert claim.is_true(last.source) == (last.kind == "remove")


def test_samples_are_pure_functions_of_their_arguments() -> None:
    for kind in KINDS:
        first, again = sample("test", 1, 5, kind), sample("test", 1, 5, kind)
        assert first.document == again.document and first.key == again.key
        others = [sample("train", 1, 5, kind), sample("test", 2, 5, kind), sample("test", 1, 6, kind)]
        assert all(other.document != first.document and other.key != first.key for other in others)


@pytest.mark.parametrize(("split", "kind"), [("valid", "caption"), ("train", "poem")])
def test_unknown_arguments_are_refused(split: str, kind: str) -> None:
    with pytest.raises(ValueError, match=r"unknown (split|kind of document)"):
        sample(split, 0, 0, kind)


def test_no_training_text_names_a_held_out_pair() -> None:
    names = {f"{color} {shape}" for held in HELD_OUT_PAIRS.values() for color, shape in held}
    for kind in KINDS:
        for i in range(200):
            segments = sample("train", 9, i, kind).document["segments"]
            texts = " ".join(segment.get("text", "") for segment in segments)
            assert not any(name in texts for name in names), texts


def test_every_word_of_the_world_is_one_token() -> None:
    tokenizer = load_tokenizer()
    assert tokenizer.get_vocab_size() < 2000
    for text in world_texts(60):
        words = tokenizer.pre_tokenizer.pre_tokenize_str(text)
        assert len(tokenizer.encode(text).ids) == len(words)


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = load_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_transformers_reads_the_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder()))
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>", "<|im_end|>", "<|endoftext|>",
    )  # fmt: skip
    text = "把红色圆形移到左上方。 Make the red circle blue."
    assert tokenizer(text)["input_ids"] == load_tokenizer().encode(text).ids
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_tokenizer_depends_on_words_not_on_counts(tmp_path: Path) -> None:
    texts = ["Make the ring red.", "把背景改成灰色。", "a photo of a ring"]
    tokenizer = build_tokenizer(texts)
    assert tokenizer.to_str() == build_tokenizer([*reversed(texts), *texts]).to_str()
    save_tokenizer(tokenizer, tmp_path)
    assert len(AutoTokenizer.from_pretrained(str(tmp_path))) == tokenizer.get_vocab_size()


@pytest.mark.slow
def test_the_shipped_tokenizer_is_the_built_one() -> None:
    assert build_tokenizer().to_str() == load_tokenizer().to_str()
