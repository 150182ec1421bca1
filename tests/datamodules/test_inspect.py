"""Inspecting shards tells what is in them."""

from PIL import Image

from hyperbagel.datamodules.inspect import inspect_shards
from tests.datamodules.samples import sample_members, write_tar


def test_summary_and_sheet(shards, tmp_path):
    bad = write_tar(tmp_path / "bad.tar", [("bad.json", b"{"), *sample_members(90)])
    paths = [str(path) for kind in shards.values() for path in kind]
    summary = inspect_shards([*paths, str(bad)], tmp_path / "out" / "sheet.png")
    assert (summary.shards, summary.samples) == (10, 75)
    assert summary.kinds == {"generation": 44, "editing": 21, "understanding": 10}
    assert summary.images == {1: 54, 2: 21}
    assert set(summary.image_sizes) == {(24, 16), (40, 16)} and summary.image_sizes.total() == 96
    assert summary.skipped == {"bad_json": 1}
    assert "generation: 44" in str(summary) and "bad_json: 1" in str(summary)
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width >= 640 and len(sheet.getcolors(2**24) or []) > 100


def test_shards_without_samples(tmp_path):
    summary = inspect_shards(str(write_tar(tmp_path / "none.tar", [])), tmp_path / "sheet.png")
    assert summary.samples == 0 and "none" in str(summary)
