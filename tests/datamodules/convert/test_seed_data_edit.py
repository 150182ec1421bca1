"""Edits of one and of several rounds become editing documents."""

from dataclasses import replace
from pathlib import Path

import pytest

from hyperbagel.datamodules.convert import FormatError, convert_seed_data_edit
from tests.datamodules.convert.datasets import (
    SERIAL,
    multi_turn_row,
    picture,
    single_row,
    write,
    write_archive,
    write_jsonl,
    write_seed,
)
from tests.datamodules.convert.shards import outline, read_back

ALL = replace(SERIAL, max_skipped=1.0)


@pytest.mark.parametrize("archives", [False, True])
def test_sources_are_given_and_every_target_learnt(tmp_path: Path, archives: bool):
    src = write_seed(tmp_path / "src", archives)
    summary = convert_seed_data_edit(str(src), str(tmp_path / "out"), options=SERIAL)
    assert (summary.rows, summary.written, summary.skipped) == (9, 9, {})
    documents = read_back(tmp_path / "out")
    for number, (document, images) in enumerate(documents[:4]):  # multi_turn_editing comes first
        rounds = [(f"Change {i} of {number}", False) for i in range(1, number + 2)]
        expected = [("image", False)] + [part for text in rounds for part in (text, ("image", True))]
        assert outline(document) == expected
        assert document.meta == {"source_image": f"2024_turns/Data/{number}/0.png", "rounds": number + 1}
        positions = [0] + [2 + 2 * i for i in range(number + 1)]  # of the keys in a row of the test data
        assert list(images) == [f"{i}.png" for i in range(number + 2)]
        assert list(images.values()) == [picture(number * 10 + position, "PNG") for position in positions]
    for number, (document, images) in enumerate(documents[4:]):
        assert outline(document) == [("image", False), (f"Repair {number}", False), ("image", True)]
        assert images == {"0.jpg": picture(number + 50), "1.jpg": picture(number)}
    assert not (tmp_path / "out/.conversion/temporary").exists()


def test_one_part_or_one_file(tmp_path: Path):
    src = write_seed(tmp_path / "src")
    for path, written in (("multi_turn_editing", 4), ("real_editing/annotations/split_0002.jsonl", 2)):
        out = tmp_path / Path(path).name
        assert convert_seed_data_edit(str(src / path), str(out), options=SERIAL).written == written


@pytest.mark.parametrize("wording", ["instruction", "instruction_new", "either"])
def test_rewritten_instructions(tmp_path: Path, wording: str):
    rows = [single_row(0) | {"source_image": "a.jpg", "target_image": "a.jpg"}]
    rows += [rows[0] | {"instruction_new": "Would you repair it?", "response": "Here it is."}]
    write(tmp_path / "src/a.jpg", picture(0))
    write_jsonl(tmp_path / "src/a.jsonl", rows)
    convert_seed_data_edit(str(tmp_path / "src"), str(tmp_path / "out"), wording=wording, options=SERIAL)
    first, second = (document for document, _ in read_back(tmp_path / "out"))
    assert outline(first)[1][0] == "Repair 0"
    texts = {"instruction": "Repair 0", "instruction_new": "Would you repair it?"}
    assert {key: second.meta[key] for key in texts} == texts
    assert outline(second)[1][0] in ([texts[wording]] if wording in texts else texts.values())


def test_bad_rows_are_counted_by_cause(tmp_path: Path):
    src = write_seed(tmp_path / "src") / "multi_turn_editing"
    rows = [
        multi_turn_row(1, 2),
        multi_turn_row(1, 2) | {"instruction_1": ""},
        multi_turn_row(2, 3) | {"edit_image_2": None},
        multi_turn_row(2, 3) | {"instruction_2": "  "},
        multi_turn_row(2, 0),
        multi_turn_row(2, 3) | {"edit_image_3": "2024_turns/Data/2/9.png"},
        multi_turn_row(2, 3) | {"edit_image_3": "../../real_editing/images/s0.jpg"},
        multi_turn_row(2, 3) | {"source_image": None},
        {"instruction": "Repair", "target_image": 5, "source_image": "2024_turns/Data/0/0.png"},
    ]
    write_jsonl(src / "annotations/split_0001.jsonl", rows)
    write(src / "images/2024_turns/Data/3/0.png", picture(0)[:40])
    write_jsonl(src / "annotations/split_0002.jsonl", [multi_turn_row(3, 2), "{"])
    summary = convert_seed_data_edit(str(src), str(tmp_path / "out"), options=ALL)
    assert summary.written == 1 == len(read_back(tmp_path / "out"))
    assert summary.skipped == {
        "bad_json": 1, "bad_schema": 3, "empty_text": 1, "incomplete_round": 2, "missing_image": 1,
        "unreadable_image": 1, "unsafe_name": 1,
    }  # fmt: skip
    assert "split_0001.jsonl, line 3: `edit_image_2` is missing, but round 3" in summary.examples["incomplete_round"][1]


def test_archives_cannot_write_elsewhere(tmp_path: Path):
    src = write_seed(tmp_path / "src") / "real_editing"
    for path in (src / "images").iterdir():
        path.unlink()
    members = {row: picture(n) for n, row in enumerate(("s0.jpg", "t0.jpg", "../../../../s1.jpg", "/s2.jpg"))}
    write_archive(src / "images/images.tar.gz", members)
    summary = convert_seed_data_edit(str(src), str(tmp_path / "deep/down/out"), options=ALL)
    assert summary.written == 1 and summary.skipped == {"missing_image": 4}
    assert not list(tmp_path.glob("**/s1.jpg")) and not Path("/s2.jpg").exists()


def test_missing_and_wrong_things_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no \*\.jsonl in"):
        convert_seed_data_edit(str(tmp_path), str(tmp_path / "out"))
    write_jsonl(tmp_path / "a.jsonl", [{"source_image": "a.jpg", "edited": "b.jpg"}])
    with pytest.raises(
        FormatError, match=r"a\.jsonl, line 1: no key 'target_image'; it has .* or \(source_image, instr"
    ):
        convert_seed_data_edit(str(tmp_path), str(tmp_path / "out"))
    write_seed(tmp_path / "src", archives=True)
    (tmp_path / "src/multi_turn_editing/images/multi_turn.tar.gz.part-ac").unlink()
    with pytest.raises(FormatError, match=r"multi_turn\.tar\.gz\.part-aa: .*cut off.*download it again"):
        convert_seed_data_edit(str(tmp_path / "src"), str(tmp_path / "out"), options=SERIAL)
