"""The schema: what is accepted, what is refused and why, and that what is written is read back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbagel.datamodules.documents import (
    DocumentError,
    ImagePart,
    InterleavedDocument,
    TextPart,
    parse_document,
    safe_key,
    safe_name,
)
from hyperbagel.datamodules.index import index_shard
from hyperbagel.datamodules.skipped import Skip
from hyperbagel.datamodules.sources import ShardSamples
from hyperbagel.datamodules.writer import ShardWriter
from tests.datamodules.samples import make_png, make_sample

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
segments = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "sound", None])},
    optional={"text": json_values, "file": st.sampled_from(["0.png", "../0.png", "", 3]), "loss": json_values},
)


def test_a_document_in_memory():
    text = {"type": "text", "text": "a cat"}
    picture = {"type": "image", "file": "0.png", "loss": True}
    document = parse_document(json.dumps({"segments": [text, picture]}).encode(), ["0.png", "unused.pkl"])
    assert document == InterleavedDocument((TextPart("a cat"), ImagePart("0.png", loss=True)), {})
    assert document.generates and not parse_document({"segments": [text]}, []).generates


@pytest.mark.parametrize(
    "data,cause,message",
    [
        (b"{", Skip.BAD_JSON, "JSON"),
        (b"\xff\xfe{}", Skip.BAD_JSON, "JSON"),
        (b"[" * 100_000, Skip.BAD_JSON, "JSON"),
        (b'"' + b"a" * 17_000_000 + b'"', Skip.BAD_JSON, "over the limit"),
        ([], Skip.BAD_SCHEMA, "object"),
        ({}, Skip.BAD_SCHEMA, "segments"),
        ({"segments": []}, Skip.BAD_SCHEMA, "segments"),
        ({"segments": [1]}, Skip.BAD_SCHEMA, r"segments\[0\]"),
        ({"segments": [{"type": "video"}]}, Skip.BAD_SCHEMA, "type"),
        ({"segments": [{"type": "text", "text": "a", "loss": 1}]}, Skip.BAD_SCHEMA, "loss"),
        ({"segments": [{"type": "text", "text": "a"}, {"type": "text"}]}, Skip.BAD_SCHEMA, r"segments\[1\].*`text`"),
        ({"segments": [{"type": "text", "text": " \n"}]}, Skip.EMPTY_TEXT, "empty"),
        ({"segments": [{"type": "text", "text": "\ud800"}]}, Skip.BAD_JSON, "Unicode"),
        ({"segments": [{"type": "image", "file": 0}]}, Skip.BAD_SCHEMA, "file"),
        ({"segments": [{"type": "image", "file": "1.png"}]}, Skip.MISSING_MEMBER, r"1\.png"),
        ({"segments": [{"type": "image", "file": "../0.png"}]}, Skip.UNSAFE_NAME, "plain"),
        ({"segments": [{"type": "text", "text": "a"}], "meta": 1}, Skip.BAD_SCHEMA, "meta"),
    ],
)
def test_what_is_refused(data, cause: Skip, message: str):
    with pytest.raises(DocumentError, match=message) as caught:
        parse_document(data, ["0.png"])
    assert caught.value.cause == cause


def test_writers_refuse_misspelt_fields_and_readers_do_not():
    document = {"segments": [{"type": "text", "text": "a", "los": True}]}
    parse_document(document, [])
    with pytest.raises(DocumentError, match="'los'"):
        parse_document(document, [], strict=True)
    with pytest.raises(DocumentError, match="put it into `meta`"):
        parse_document({"segments": [{"type": "text", "text": "a"}], "prompt": "a"}, [], strict=True)


@given(st.one_of(json_values, st.fixed_dictionaries({"segments": st.lists(segments, max_size=3)})), st.booleans())
def test_anything_is_either_read_or_refused(content, strict: bool):
    try:
        document = parse_document(json.dumps(content), ["0.png"], strict)
    except DocumentError as error:
        assert error.cause in Skip and str(error)
    else:
        assert document.parts and all(part.text.strip() for part in document.parts if isinstance(part, TextPart))


@given(st.binary(max_size=60))
def test_any_bytes_are_either_read_or_refused(data: bytes):
    with pytest.raises(DocumentError):
        parse_document(data, [])


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\\b", "a\nb", "a\0b", "x" * 300, "\udc80"])
def test_unsafe_names(name: str):
    assert not safe_name(name)


def test_safe_names():
    assert all(map(safe_name, ["0.png", "a b.jpg", ".hidden", "图.png"]))
    assert safe_key("train/part-1/000") and safe_key("000")
    assert not any(map(safe_key, ["../000", "/000", "a//b", "a/../b", "./a", ""]))


def test_written_shards_are_read_back_byte_for_byte(tmp_path):
    samples = [make_sample(number, "editing") for number in range(7)]
    with ShardWriter(tmp_path / "out" / "part-{:03d}.tar", samples_per_shard=3) as writer:
        for sample in samples:
            writer.write(*sample)
    assert [path.name for path in writer.shards] == ["part-000.tar", "part-001.tar", "part-002.tar"]
    assert writer.samples == 7 and sorted(tmp_path.joinpath("out").iterdir()) == writer.shards
    reader = ShardSamples(writer.shards, [index_shard(path) for path in writer.shards], with_loss=True)
    assert not reader.skipped
    for index, (key, document, images) in enumerate(samples):
        sample = reader.read(index)
        assert sample.key == key
        assert json.loads(sample.members["json"]) == document
        assert {name: data for name, data in sample.members.items() if name != "json"} == images
    with ShardWriter(tmp_path / "again-{:03d}.tar", samples_per_shard=3) as again:
        for sample in samples:
            again.write(*sample)
    assert [path.read_bytes() for path in again.shards] == [path.read_bytes() for path in writer.shards]


def test_writer_names_what_is_wrong_and_goes_on(tmp_path):
    key, document, images = make_sample(0, "editing")
    with ShardWriter(tmp_path / "{}.tar") as writer:
        with pytest.raises(DocumentError, match=r"'broken'.*'1\.png'.*not a readable picture"):
            writer.write("broken", document, images | {"1.png": b"nothing"})
        with pytest.raises(DocumentError, match=r"'incomplete': segments\[2\].*1\.png"):
            writer.write("incomplete", document, {"0.png": images["0.png"]})
        with pytest.raises(DocumentError, match="without dots"):
            writer.write("a.b", document, images)
        with pytest.raises(DocumentError, match="JSON"):
            writer.write("meta", document | {"meta": {"x": object()}}, images)
        writer.write(key, document, images)
    assert writer.samples == 1 and len(index_shard(writer.shards[0])) == 1
    with pytest.raises(FileExistsError, match="remove it"), ShardWriter(tmp_path / "{}.tar") as writer:
        writer.write(key, document, images)
    with pytest.raises(ValueError, match="place for the number"):
        ShardWriter(tmp_path / "one.tar")


def test_an_interrupted_writer_leaves_no_half_shard(tmp_path):
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "{}.tar", samples_per_shard=2) as writer:
        for number in range(3):
            writer.write(*make_sample(number, "generation"))
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["0.tar"]


def test_long_names_survive(tmp_path):
    key = "/".join(["folder" * 5] * 8) + "/sample"
    document = {"segments": [{"type": "image", "file": "0.png", "loss": True}]}
    with ShardWriter(tmp_path / "{}.tar") as writer:
        writer.write(key, document, {"0.png": make_png(0)})
    assert ShardSamples(writer.shards, [index_shard(writer.shards[0])], with_loss=True).read(0).key == key
