"""LLaVA-OneVision: conversations about pictures, as Parquet files or as JSON with a folder of pictures.

A row has `id`, `conversations` (turns with `from` and `value`), `image` and `data_source`. `<image>` in a human turn
stands where a picture is shown. In Parquet, `image` holds the encoded picture as `bytes`, or nothing for text alone; in
JSON it is a file name, or a list of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

from hyperbagel.datamodules.convert.conversion import ConversionJob, Unit, first_rows, run
from hyperbagel.datamodules.convert.errors import BadRowError, FormatError, RowCause
from hyperbagel.datamodules.convert.files import FolderFiles, find_files, watch
from hyperbagel.datamodules.convert.names import PictureFolder
from hyperbagel.datamodules.convert.options import DEFAULT_OPTIONS, ConvertOptions
from hyperbagel.datamodules.convert.pictures import PICTURE_SUFFIXES, Composition
from hyperbagel.datamodules.convert.reports import ConversionSummary
from hyperbagel.datamodules.convert.rows import RowSource
from hyperbagel.datamodules.convert.slices import first_row, need_keys, slice_json, slice_parquet
from hyperbagel.datamodules.skipped import Skip
from hyperbagel.messages import shown

PLACEHOLDER: Final = "<image>"
_SPEAKERS: Final = {"human": "question", "user": "question", "gpt": "answer", "assistant": "answer", "system": "system"}
_ANNOTATIONS: Final = ((".parquet",), (".json", ".jsonl"))
_COLUMNS: Final = ("id", "image", "images", "conversations", "data_source")


def convert_llava_onevision(
    src: str, out: str, images: str | None = None, options: ConvertOptions = DEFAULT_OPTIONS
) -> ConversionSummary:
    """Convert LLaVA-OneVision-Data, or any conversations in the LLaVA format, to shards.

    A document is the conversation with its pictures where they are shown; the answers are learnt.

    Args:
        src: A folder with Parquet files, or with JSON files if there are none of these, both searched with all its
            subfolders; or one such file.
        out: Folder for the shards.
        images: Folder that the names of pictures in JSON files start from; by default the folder `images` beside a
            JSON file, then the folder of the JSON file.
        options: Shard size, number of processes, and so on.

    Examples:
        >>> convert_llava_onevision("LLaVA-OneVision-Data", "shards")
        Traceback (most recent call last):
        ...
        FileNotFoundError: no LLaVA-OneVision-Data; give a folder with *.parquet or *.json of LLaVA-OneVision-Data
    """
    found = _find(Path(src), Path(out))
    units = []
    for path in _annotations(found, Path(src)):
        sources, roots = _sources(path, options.shard_size), (path.parent / "images", path.parent)
        converter = Conversations(PictureFolder((Path(images),) if images else roots))
        units += [Unit(source, converter) for source in sources]
    folders = [found, *([find_files(Path(images), PICTURE_SUFFIXES, Path(out))] if images else [])]
    units = first_rows(units, options.limit)
    job = ConversionJob("llava-onevision", units, {"images": images}, Path(src), watch([], folders), notes=found.notes)
    return run(job, out, options)


def _find(src: Path, out: Path) -> FolderFiles:
    """The files of a folder, or a single file with the pictures beside it. Raises FileNotFoundError."""
    if not src.exists():
        raise FileNotFoundError(f"no {src}; give a folder with *.parquet or *.json of LLaVA-OneVision-Data")
    if src.is_dir():
        return find_files(src, {*PICTURE_SUFFIXES, *chain.from_iterable(_ANNOTATIONS)}, out)
    folder = src.parent / "images"
    pictures = find_files(folder, PICTURE_SUFFIXES, out).files if folder.is_dir() else {}
    status = src.stat()
    files = {f"images/{name}": state for name, state in pictures.items()}
    return FolderFiles(src.parent, {src.name: (status.st_size, status.st_mtime_ns), **files})


def _annotations(found: FolderFiles, src: Path) -> list[Path]:
    """The Parquet files, or else the JSON files, of a folder; a single file itself. Raises FileNotFoundError."""
    if src.is_file():
        return [src]
    for suffixes in _ANNOTATIONS:
        if names := found.names(suffixes):
            return sorted(src / name for name in names)
    raise FileNotFoundError(f"no *.parquet, *.json or *.jsonl in {src} or its subfolders")


def _sources(path: Path, size: int) -> Sequence[RowSource]:
    """Slices of a file whose format is right. Raises FormatError."""
    if path.suffix.lower() != ".parquet":
        slices = slice_json(path, size)
        need_keys(first_row(slices, path), ("conversations",))
        return slices
    slices_of_rows = slice_parquet(path, size, _COLUMNS)
    if slices_of_rows and "conversations" not in slices_of_rows[0].columns:
        raise FormatError(f"{path}: no column 'conversations'; LLaVA-OneVision-Data has id, image and conversations")
    return slices_of_rows


@dataclass(frozen=True, slots=True)
class Conversations:
    """Makes documents of conversations. folder: where pictures named in them are."""

    folder: PictureFolder

    def compose(self, row: Mapping[str, Any]) -> Composition:
        """Questions with their pictures, and answers to be learnt."""
        composition = Composition({key: row[key] for key in ("id", "data_source") if row.get(key) is not None})
        turns = _turns(row.get("conversations"))
        images = list(self._images(row.get("image") or row.get("images")))
        shown = sum(text.count(PLACEHOLDER) for kind, text in turns if kind != "answer")
        if shown == 0:
            for image in images:  # LLaVA's rule for conversations that do not say where
                composition.image(image, "image")
        elif not images:
            raise BadRowError(RowCause.MISSING_IMAGE, f"{shown} {PLACEHOLDER} in `conversations`, but no `image`")
        elif shown != len(images):
            message = f"{shown} {PLACEHOLDER} in `conversations` for {len(images)} pictures"
            raise BadRowError(RowCause.IMAGE_COUNT, message)
        left = iter(images)
        for number, (kind, text) in enumerate(turns):
            key = f"conversations[{number}].value"
            if kind == "answer":
                composition.text(text, key, loss=True)
                continue
            for position, piece in enumerate(text.split(PLACEHOLDER)):
                if position:
                    composition.image(next(left), "image")
                if piece.strip() or text.strip() == "":
                    composition.text(piece, key)
        return composition

    def _images(self, images: object) -> Iterator[bytes]:
        """The encoded pictures of a row: one or several, encoded or by name."""
        for image in images if isinstance(images, list) else [images]:
            if image is None or image == "":
                continue
            if isinstance(image, Mapping) and isinstance(image.get("bytes"), bytes):
                yield image["bytes"]
            else:
                yield self.folder.read(image.get("path") if isinstance(image, Mapping) else image)


def _turns(turns: object) -> list[tuple[str, str]]:
    """Kind ("system", "question", "answer") and text of each turn. Raises BadRowError unless they alternate."""
    if not isinstance(turns, list) or not turns:
        raise BadRowError(Skip.BAD_SCHEMA, "`conversations` must be a list of turns")
    read = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise BadRowError(Skip.BAD_SCHEMA, f"`conversations[{number}]` needs `from` and `value`, both strings")
        kind = _SPEAKERS.get(str(turn.get("from")))
        if kind is None:
            raise BadRowError(RowCause.UNKNOWN_SPEAKER, f"`conversations[{number}].from` is {shown(turn.get('from'))}")
        read.append((kind, turn["value"]))
    spoken = [kind for kind, _ in read[read[0][0] == "system" :]]
    if not spoken or len(spoken) % 2:
        raise BadRowError(RowCause.BAD_TURNS, f"{len(spoken)} turns in `conversations`: a question without an answer")
    if spoken != ["question", "answer"] * (len(spoken) // 2):
        raise BadRowError(RowCause.BAD_TURNS, f"`conversations` do not alternate: {', '.join(spoken)}")
    return read
