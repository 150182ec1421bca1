"""Small data sets in the formats that the real ones are published in."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hyperbagel.datamodules.convert import ConvertOptions

SERIAL = ConvertOptions(shard_size=4, workers=1)

PARQUET_TYPES = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))),
        ("data_source", pa.string()),
    ]
)


def picture(seed: int, kind: str = "JPEG", size: tuple[int, int] = (24, 16)) -> bytes:
    array = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    return write(path, "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def write_archive(path: Path, members: Mapping[str, bytes], parts: int = 1) -> None:
    """A tar, compressed if its name says so, cut into parts `.part-aa`, `.part-ab`, ... if there are several."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w" if path.suffix == ".tar" else "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = buffer.getvalue()
    size = -(-len(data) // parts)
    for part in range(parts):
        suffix = "" if parts == 1 else f".part-a{'abcdefg'[part]}"
        write(path.with_name(path.name + suffix), data[part * size : (part + 1) * size])


def turns(*values: str, speakers: tuple[str, str] = ("human", "gpt")) -> list[dict[str, str]]:
    return [{"from": speakers[number % 2], "value": value} for number, value in enumerate(values)]


def llava_row(number: int) -> dict[str, Any]:
    """Every third one is text alone, every fourth has two questions."""
    more = ("And now?", f"still {number}") if number % 4 == 0 else ()
    image = None if number % 3 == 2 else {"bytes": picture(number), "path": f"{number}.jpg"}
    question = "What is it?" if image is None else "<image>\nWhat is it?"
    return {
        "id": f"a/b.{number}",  # as odd as the real ones
        "image": image,
        "conversations": turns(question, f"It is {number}.", *more),
        "data_source": "test(cauldron,llava_format)",
    }


def write_parquet(path: Path, rows: list[dict[str, Any]], group: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, PARQUET_TYPES), path, row_group_size=group)
    return path


def write_llava_json(folder: Path, rows: list[dict[str, Any]], file: str = "data.json") -> Path:
    """The JSON form of the same rows, with pictures in `images/part/`."""
    content = []
    for row in rows:
        entry = {key: value for key, value in row.items() if key != "image"}
        if row["image"] is not None:
            entry["image"] = f"part/{row['image']['path']}"
            write(folder / "images" / entry["image"], row["image"]["bytes"])
        content.append(entry)
    if file.endswith(".jsonl"):
        return write_jsonl(folder / file, content)
    return write(folder / file, json.dumps(content, indent=1, ensure_ascii=False))


def journey_row(number: int, group: int) -> dict[str, Any]:
    caption = {} if number % 5 == 4 else {"Caption": f"A picture of {number}."}
    return {
        "img_path": f"./{group:03d}/uuid-{number}.jpg",
        "prompt": f"picture, {number} --v 5",
        "Task1": {"Style": ["plain"], "Content": [str(number)], "Atmosphere": [], "Others": []},
        "Task2": caption,
        "Task3": {"Style Relevant Questions and Answers": [], "Content Relevant Questions and Answers": []},
    }


def write_journeydb(folder: Path, rows: int = 20, groups: int = 2, archives: bool = True) -> Path:
    """A split with its pictures in archives or in folders; the annotations are not in the order of the pictures."""
    annotations = [journey_row(number, number % groups) for number in range(rows)]
    write_jsonl(folder / "train_anno_realease_repath.jsonl", annotations)
    for group in range(groups):
        members = {
            row["img_path"].removeprefix("./"): picture(number)
            for number, row in enumerate(annotations)
            if number % groups == group
        }
        if archives:
            write_archive(folder / "imgs" / f"{group:03d}.tgz", members)
        else:
            for name, data in members.items():
                write(folder / "imgs" / name, data)
    return folder


def multi_turn_row(number: int, rounds: int) -> dict[str, Any]:
    row: dict[str, Any] = {"source_image": f"2024_turns/Data/{number}/0.png"}
    for i in range(1, 6):
        given = i <= rounds
        row[f"instruction_{i}"] = f"Change {i} of {number}" if given else None
        row[f"edit_image_{i}"] = f"2024_turns/Data/{number}/{i}.png" if given else None
    return row


def single_row(number: int) -> dict[str, Any]:
    return {"source_image": f"s{number}.jpg", "target_image": f"t{number}.jpg", "instruction": f"Repair {number}"}


def write_seed(folder: Path, archives: bool = False) -> Path:
    """Five edits of part 2 and four of part 3, with 1 to 4 rounds."""
    singles, multis = [single_row(n) for n in range(5)], [multi_turn_row(n, n + 1) for n in range(4)]
    write_jsonl(folder / "real_editing/annotations/split_0001.jsonl", singles[:3])
    write_jsonl(folder / "real_editing/annotations/split_0002.jsonl", singles[3:])
    write_jsonl(folder / "multi_turn_editing/annotations/split_0001.jsonl", multis)
    real = {
        row[key]: picture(n + 50 * (key < "t"))
        for n, row in enumerate(singles)
        for key in ("source_image", "target_image")
    }
    multi = {
        value: picture(n * 10 + position, "PNG")
        for n, row in enumerate(multis)
        for position, (key, value) in enumerate(row.items())
        if "image" in key and value
    }
    if archives:
        write_archive(
            folder / "real_editing/images/images.tar.gz", {f"images/{name}": data for name, data in real.items()}
        )
        write_archive(folder / "multi_turn_editing/images/multi_turn.tar.gz", multi, parts=3)
        return folder
    for part, files in (("real_editing", real), ("multi_turn_editing", multi)):
        for name, data in files.items():
            write(folder / part / "images" / name, data)
    return folder
