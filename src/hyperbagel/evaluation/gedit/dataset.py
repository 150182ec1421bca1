"""GEdit-Bench on disk, in the layout in which it is published.

`GEditBench(path)` reads a parquet file, a folder of parquet files (as downloaded from the hub), a folder of arrow
files (as written by `datasets.save_to_disk`), or a folder with `metadata.jsonl` whose image fields are file names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from PIL import Image

from hyperbagel.bagel.images import load_image
from hyperbagel.evaluation.gedit.samples import LANGUAGES, OFFICIAL_CATEGORIES, EditSample

IMAGE_FIELD = "input_image"
TEXT_FIELDS = ("key", "task_type", "instruction", "instruction_language", "Intersection_exist")
METADATA_FILE = "metadata.jsonl"


class GEditBench(Sequence[EditSample]):
    """The samples of the official data, images decoded when a sample is taken.

    path: file or folder, see the module. languages: those to keep. Raises FileNotFoundError if there is nothing to
    read, ValueError for a missing field or a value that the benchmark does not know; both name file and row.
    """

    def __init__(self, path: str | Path, languages: Sequence[str] = LANGUAGES) -> None:
        self.path = Path(path)
        if unknown := set(languages) - set(LANGUAGES):
            raise ValueError(f"languages {sorted(unknown)} are not in the data, which has {LANGUAGES}")
        rows = _read_rows(self.path)
        for row in rows:
            _check_row(row)
        self._rows = [row for row in rows if row["instruction_language"] in languages]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> EditSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[EditSample]: ...
    def __getitem__(self, index: int | slice) -> EditSample | list[EditSample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self._rows[index]
        return EditSample(
            key=row["key"],
            category=row["task_type"],
            language=row["instruction_language"],
            instruction=row["instruction"],
            source=_read_image(row),
            intersection=row["Intersection_exist"],
        )

    def __iter__(self) -> Iterator[EditSample]:
        return (self[i] for i in range(len(self)))


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of the text fields and the still encoded image, plus `origin` (file and row) for error messages."""
    if path.is_file():
        files = [path]
    elif (path / METADATA_FILE).is_file():
        return _read_metadata(path / METADATA_FILE)
    else:
        files = sorted(path.rglob("*.parquet")) or sorted(path.rglob("*.arrow"))
    if not files:
        raise FileNotFoundError(
            f"{path}: no GEdit-Bench here; expected *.parquet, *.arrow or {METADATA_FILE} "
            "(download the dataset stepfun-ai/GEdit-Bench and name its folder)"
        )
    return [row for file in files for row in _read_table(file)]


def _read_table(file: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"{file}: pyarrow is needed to read this: pip install pyarrow") from error
    try:
        if file.suffix == ".arrow":
            with pa.memory_map(str(file)) as source:
                table = pa.ipc.open_stream(source).read_all()
        else:
            names = [name for name in pq.read_schema(file).names if name in (*TEXT_FIELDS, IMAGE_FIELD)]
            table = pq.read_table(file, columns=names)
    except pa.ArrowException as error:
        raise ValueError(f"{file}: cannot be read ({error}); download it again") from error
    if absent := [name for name in (*TEXT_FIELDS, IMAGE_FIELD) if name not in table.column_names]:
        raise ValueError(f"{file}: fields {absent} are missing; the benchmark has {[*TEXT_FIELDS, IMAGE_FIELD]}")
    rows = table.select(list(TEXT_FIELDS)).to_pylist()
    images = table.column(IMAGE_FIELD)
    return [row | {IMAGE_FIELD: images[i], "origin": f"{file}, row {i}"} for i, row in enumerate(rows)]


def _read_metadata(file: Path) -> list[dict[str, Any]]:
    rows = []
    # Not splitlines, which ends a line at U+2028 and the like too, as they may stand in a text.
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        origin = f"{file}, line {number}"
        try:
            row = json.loads(line)
            name = row.get(f"{IMAGE_FIELD}_file_name", row.get(IMAGE_FIELD))
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{origin}: not a JSON object ({error})") from error
        if absent := [field for field in TEXT_FIELDS if field not in row]:
            raise ValueError(f"{origin}: fields {absent} are missing")
        image = file.parent / str(name)
        if not image.resolve().is_relative_to(file.parent.resolve()) or not image.is_file():
            raise FileNotFoundError(f"{origin}: {IMAGE_FIELD} {name!r} is no file in {file.parent}")
        rows.append(row | {IMAGE_FIELD: image, "origin": origin})
    return rows


def _check_row(row: Mapping[str, Any]) -> None:
    allowed: dict[str, Sequence[Any]] = {
        "task_type": OFFICIAL_CATEGORIES,
        "instruction_language": LANGUAGES,
        "Intersection_exist": (True, False),
    }
    for name, values in allowed.items():
        if row[name] not in values:
            raise ValueError(f"{row['origin']}: {name} is {row[name]!r}; must be one of {list(values)}")
    for name in ("key", "instruction"):
        if not isinstance(row[name], str) or not row[name]:
            raise ValueError(f"{row['origin']}: {name} is {row[name]!r}; must be a text")


def _read_image(row: Mapping[str, Any]) -> Image.Image:
    """The image of a row as a person sees it: a file, or an arrow struct {bytes, path} as `datasets` writes it."""
    image = row[IMAGE_FIELD]
    try:
        if isinstance(image, Path):
            return load_image(image, name=image.name)
        value = image.as_py()
        encoded = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(encoded, bytes):
            raise ValueError("the bytes are not stored in the table")
        return load_image(encoded)
    except (OSError, ValueError) as error:
        raise ValueError(f"{row['origin']}: {IMAGE_FIELD} of {row['key']!r} cannot be read ({error})") from error
