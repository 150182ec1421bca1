import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hyperbagel.evaluation.gedit.dataset import GEditBench


def encoded(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(buffer, format="PNG")
    return buffer.getvalue()


def rows() -> list[dict[str, Any]]:
    texts = [("k1", "subject-add", "en", "Add a hat", True), ("k1", "subject-add", "cn", "加一顶帽子", True),
             ("k2", "text_change", "en", "Change the sign", False)]  # fmt: skip
    names = ("key", "task_type", "instruction_language", "instruction", "Intersection_exist")
    return [dict(zip(names, values, strict=True)) for values in texts]


def table(changes: dict[str, Any] | None = None, drop: str | None = None) -> pa.Table:
    """The official fields; `changes` go into the last row."""
    data = rows()
    data[-1] |= changes or {}
    image = {"bytes": encoded("red"), "path": None}
    full = [{**row, "input_image": image, "input_image_raw": {"bytes": encoded("blue"), "path": None}} for row in data]
    made = pa.Table.from_pylist(full)
    return made.drop_columns([drop]) if drop else made


@pytest.fixture(params=["parquet file", "parquet folder", "arrow folder", "metadata folder"])
def bench_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param.startswith("parquet"):
        (tmp_path / "data").mkdir()
        pq.write_table(table().slice(0, 2), tmp_path / "data" / "train-00000-of-00002.parquet")
        pq.write_table(table().slice(2), tmp_path / "data" / "train-00001-of-00002.parquet")
        if request.param == "parquet folder":
            return tmp_path
        pq.write_table(table(), tmp_path / "all.parquet")
        return tmp_path / "all.parquet"
    if request.param == "arrow folder":
        with pa.ipc.new_stream(tmp_path / "data-00000-of-00001.arrow", table().schema) as writer:
            writer.write_table(table())
        return tmp_path
    (tmp_path / "1.png").write_bytes(encoded("red"))
    lines = [json.dumps({**row, "input_image": "1.png"}) for row in rows()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def test_reads_every_layout(bench_path: Path) -> None:
    bench = GEditBench(bench_path)
    assert [(s.key, s.category, s.language, s.intersection) for s in bench] == [
        ("k1", "subject-add", "en", True),
        ("k1", "subject-add", "cn", True),
        ("k2", "text_change", "en", False),
    ]
    assert bench[1].instruction == "加一顶帽子"
    assert bench[-1].source.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    assert bench[0].source.size == (6, 4)
    assert [s.key for s in bench[1:]] == ["k1", "k2"]


def test_one_language(bench_path: Path) -> None:
    assert [s.language for s in GEditBench(bench_path, ["cn"])] == ["cn"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_type": "subject_add"}, "row 2: task_type is 'subject_add'; must be one of"),
        ({"instruction_language": "zh"}, "row 2: instruction_language is 'zh'"),
        ({"instruction": ""}, "row 2: instruction is ''"),
        ({"key": None}, "row 2: key is None"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    pq.write_table(table(changes), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=message):
        GEditBench(tmp_path)


def test_missing_field(tmp_path: Path) -> None:
    pq.write_table(table(drop="Intersection_exist"), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train.parquet: fields \['Intersection_exist'\] are missing"):
        GEditBench(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no GEdit-Bench here"):
        GEditBench(tmp_path)


def test_broken_file(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(ValueError, match=r"train.parquet: cannot be read"):
        GEditBench(tmp_path)


def test_line_separators_inside_of_texts_end_no_line(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(encoded("red"))
    changed = {"input_image": "1.png", "instruction": "one\u2028two\x85"}
    lines = [json.dumps(row | changed, ensure_ascii=False) for row in rows()]
    (tmp_path / "metadata.jsonl").write_bytes(("\ufeff" + "\r\n".join([*lines, "", ""])).encode())
    assert {sample.instruction for sample in GEditBench(tmp_path)} == {"one\u2028two\x85"}


def test_broken_image_names_its_row(tmp_path: Path) -> None:
    broken = pa.Table.from_pylist([{**rows()[0], "input_image": {"bytes": b"no image", "path": None}}])
    pq.write_table(broken, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="row 0: input_image of 'k1' cannot be read"):
        GEditBench(tmp_path)[0]


@pytest.mark.parametrize("name", ["../secret.png", "absent.png"])
def test_image_outside_or_absent(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(encoded("red"))
    folder = tmp_path / "bench"
    folder.mkdir()
    (folder / "metadata.jsonl").write_text(json.dumps({**rows()[0], "input_image": name}), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="line 1: input_image"):
        GEditBench(folder)


def test_images_are_read_as_a_person_sees_them(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    clear.save(tmp_path / "1.png", exif=exif)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({**rows()[0], "input_image": "1.png"}), encoding="utf-8")
    source = GEditBench(tmp_path)[0].source
    assert source.size == (4, 6)
    assert (source.getpixel((3, 0)), source.getpixel((0, 0))) == ((255, 0, 0), (255, 255, 255))


def test_cut_off_images_name_their_row_and_file(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(encoded("red")[:50])
    (tmp_path / "metadata.jsonl").write_text(json.dumps({**rows()[0], "input_image": "1.png"}), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"line 1: input_image of 'k1' cannot be read \(1\.png: not a readable picture"
    ):
        GEditBench(tmp_path)[0]
