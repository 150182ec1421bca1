"""The scenes source and its shards."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from hyperbagel.datamodules.scenes import SceneSource, write_scenes
from hyperbagel.scenes import KINDS


def test_shards_hold_the_samples_of_the_source(tmp_path: Path) -> None:
    shards = write_scenes(tmp_path, "test", size=25, seed=3, shard_size=10)
    assert [path.name for path in shards] == ["test-000000.tar", "test-000001.tar", "test-000002.tar"]
    assert sorted(tmp_path.iterdir()) == shards
    read = list(wds.WebDataset([str(path) for path in shards], shardshuffle=False))
    source = SceneSource("test", 25, seed=3)
    assert len(read) == len(source)
    for written, drawn in zip(read, source, strict=True):
        assert written["__key__"] == drawn["__key__"]
        assert json.loads(written["json"]) == drawn["json"]
        names = {s["file"] for s in drawn["json"]["segments"] if s["type"] == "image"}
        assert names == {name for name in written if name.endswith(".png")}
        for name in names:
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(written[name]))), drawn[name])


def test_shards_are_reproducible_and_never_overwritten(tmp_path: Path) -> None:
    first = write_scenes(tmp_path / "a", size=5)[0]
    second = write_scenes(tmp_path / "b", size=5)[0]
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(FileExistsError, match="already exists"):
        write_scenes(tmp_path / "a", size=5)


def test_the_mix_follows_the_weights() -> None:
    source = SceneSource(size=4000, weights={"generation": 3, "caption": 1, "yes_no": 0})
    counts = Counter(source.kind(i) for i in range(len(source)))
    assert set(counts) == {"generation", "caption"}
    assert counts["generation"] / 4000 == pytest.approx(0.75, abs=0.03)
    assert source[7]["json"]["meta"]["kind"] == source.kind(7)
    everything = {SceneSource(size=500).kind(i) for i in range(500)}
    assert everything == set(KINDS) - {"counting", "chinese_editing", "referring"}  # which are parts of others


def test_samples_do_not_depend_on_the_order_of_access() -> None:
    source = SceneSource(size=50)
    late = source[40]
    assert source[0]["__key__"] != late["__key__"]
    again = SceneSource(size=50)[40]
    assert again["json"] == late["json"] and np.array_equal(again["0.png"], late["0.png"])
    assert SceneSource(size=50, seed=1)[40]["json"] != late["json"]
    assert SceneSource("test", size=50)[40]["json"] != late["json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "unknown split 'valid'"),
        ({"size": 0}, "size must be at least 1"),
        ({"weights": {"poem": 1}}, r"unknown kinds of documents \['poem'\]"),
        ({"weights": {"caption": 0}}, "at least one above 0"),
        ({"weights": {}}, "at least one above 0"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SceneSource(**arguments)  # type: ignore[arg-type]


def test_an_index_outside_is_refused() -> None:
    with pytest.raises(IndexError):
        SceneSource(size=3)[3]
