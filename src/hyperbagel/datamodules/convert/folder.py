"""Any folder of pictures with captions: beside each picture, or in one CSV, TSV, JSONL or text file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hyperbagel.datamodules.convert.conversion import Plan, Unit, first_rows, run
from hyperbagel.datamodules.convert.errors import BadRowError, FormatError, RowCause
from hyperbagel.datamodules.convert.options import DEFAULT_OPTIONS, ConvertOptions
from hyperbagel.datamodules.convert.pictures import PICTURE_SUFFIXES, Draft, PictureFolder, missing_picture
from hyperbagel.datamodules.convert.reports import ConversionSummary
from hyperbagel.datamodules.convert.rows import ListedRows, Row, RowSource, TableDialect
from hyperbagel.datamodules.convert.slices import first_row, slice_json, slice_table

_CAPTION_FILES: Final = tuple(
    f"{stem}.{suffix}" for stem in ("metadata", "captions") for suffix in ("jsonl", "json", "csv", "tsv", "txt")
)
_IMAGE_KEYS: Final = ("file_name", "filename", "file", "image", "img_path", "path")
_TEXT_KEYS: Final = ("text", "caption", "prompt")
_PAIR: Final = ("file_name", "text")


@dataclass(frozen=True)
class CaptionFields:
    """Names of the columns or keys in a caption file.

    Args:
        image: The picture's file name; by default the first of file_name, filename, file, image, img_path and path.
        text: The caption; by default the first of text, caption and prompt. All others are kept in `meta`, so that
            further wordings are not lost.
    """

    image: str | None = None
    text: str | None = None


DEFAULT_FIELDS = CaptionFields()
"""All found by their usual names."""


def convert_folder(
    src: str,
    out: str,
    captions: str | None = None,
    fields: CaptionFields = DEFAULT_FIELDS,
    options: ConvertOptions = DEFAULT_OPTIONS,
) -> ConversionSummary:
    """Convert a folder of pictures with captions to shards.

    A document is the caption and then the picture, which is learnt.

    Args:
        src: Folder of pictures; subfolders belong to it.
        out: Folder for the shards.
        captions: A .csv or .tsv file with names of columns, a .jsonl or .json file of objects, or a .txt file with
            lines that are either a picture's name, a tab and its caption, or only captions, in the order of the
            pictures' names. Names of pictures start from `src`. By default a file `metadata` or `captions` of these
            kinds in `src`; if there is none, each picture needs a .txt file of the same name beside it.
        fields: Names of the columns or keys.
        options: Shard size, number of processes, and so on.
    """
    root = Path(src)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    file = Path(captions) if captions else _caption_file(root)
    sources = _neighbours(root, options.shard_size) if file is None else _listed(root, file, options.shard_size)
    if file is None:
        keys = _PAIR
    else:
        row = first_row(sources, file)
        assert not isinstance(row.data, BadRowError)
        keys = (_key(row, fields.image, _IMAGE_KEYS, "image"), _key(row, fields.text, _TEXT_KEYS, "text"))
    converter = CaptionedPictures(PictureFolder((root,)), *keys)
    units = first_rows([Unit(source, converter) for source in sources], options.limit)
    settings = {"captions": file.name if file else None, "fields": list(keys)}
    return run(Plan("folder", units, settings), out, options)


def _caption_file(root: Path) -> Path | None:
    return next((root / name for name in _CAPTION_FILES if (root / name).is_file()), None)


def _key(row: Row, given: str | None, usual: Sequence[str], meaning: str) -> str:
    """The key that a field has in the rows. Raises FormatError."""
    assert not isinstance(row.data, BadRowError)
    for key in (given,) if given else usual:
        if key in row.data:
            return key
    raise FormatError(
        f"{row.place}: no key {given or ' or '.join(usual)!r} for the {meaning}, only {', '.join(row.data)}; "
        f"set `fields.{meaning}`"
    )


def _pictures(root: Path) -> list[str]:
    """Names of all pictures in a folder, in order."""
    found = (path for path in root.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file())
    return sorted(path.relative_to(root).as_posix() for path in found)


def _neighbours(root: Path, size: int) -> list[NeighbourRows]:
    """Pictures with a text file beside them. Raises FileNotFoundError when there is not one pair."""
    pictures = _pictures(root)
    stems = {Path(name).with_suffix("").as_posix() for name in pictures}
    texts = {path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.txt")}
    if not stems & texts:
        raise FileNotFoundError(
            f"{root} has neither captions ({', '.join(_CAPTION_FILES)}) nor a .txt file beside any of its "
            f"{len(pictures)} pictures; set `captions`"
        )
    names = sorted([*pictures, *(f"{stem}.txt" for stem in texts - stems)])
    blocks = [tuple(names[start : start + size]) for start in range(0, len(names), size)]
    return [NeighbourRows(len(block), root, block) for block in blocks]


@dataclass(frozen=True)
class NeighbourRows(RowSource):
    """Pictures with a text file of the same name. names: of the pictures, and of text files without a picture."""

    root: Path
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """All names."""
        return "\n".join(self.names[: self.count])

    def read(self) -> Iterator[Row]:
        """Look up the captions."""
        for name in self.names:
            path = self.root / name
            text = path.with_suffix(".txt")
            if path == text:
                yield Row(str(path), missing_picture(text))
            elif not text.is_file():
                yield Row(str(path), BadRowError(RowCause.MISSING_CAPTION, f"there is no {text.name} beside it"))
            else:
                caption = text.read_bytes().decode("utf-8-sig", "surrogateescape")
                yield Row(str(path), dict(zip(_PAIR, (name, caption), strict=True)))


def _listed(root: Path, file: Path, size: int) -> Sequence[RowSource]:
    """Slices of a caption file. Raises FileNotFoundError and FormatError."""
    suffix = file.suffix.lower()
    if suffix in (".jsonl", ".json"):
        return slice_json(file, size)
    if suffix in (".csv", ".tsv"):
        return slice_table(file, size, TableDialect("," if suffix == ".csv" else "\t"))
    if suffix != ".txt":
        raise FormatError(f"{file}: captions must be a .csv, .tsv, .jsonl, .json or .txt file")
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    lines = file.read_text("utf-8-sig", "surrogateescape").splitlines()
    if lines and "\t" in lines[0]:
        return slice_table(file, size, TableDialect("\t", quoted=False), _PAIR)
    pictures = _pictures(root)
    if len(lines) != len(pictures):
        raise FormatError(
            f"{file} has {len(lines)} lines for {len(pictures)} pictures in {root}; write a line for each, or begin "
            "each line with the picture's name and a tab"
        )
    both = zip(pictures, lines, strict=True)
    pairs = [(number, dict(zip(_PAIR, pair, strict=True))) for number, pair in enumerate(both, 1)]
    blocks = [tuple(pairs[start : start + size]) for start in range(0, len(pairs), size)]
    return [ListedRows(len(block), file, block) for block in blocks]


@dataclass(frozen=True, slots=True)
class CaptionedPictures:
    """Makes documents of captioned pictures. folder: where they are; image, text: keys of a row."""

    folder: PictureFolder
    image: str
    text: str

    def draft(self, row: Mapping[str, Any]) -> Draft:
        """The caption and then the picture."""
        draft = Draft({key: value for key, value in row.items() if key != self.text})
        draft.text(row.get(self.text), self.text)
        draft.image(self.folder.read(row.get(self.image)), self.image, loss=True)
        return draft
