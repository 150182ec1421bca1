"""Any folder of pictures with captions: beside each picture, or in one CSV, TSV, JSONL or text file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from hyperbagel.datamodules.convert.conversion import ConversionJob, Unit, first_rows, run
from hyperbagel.datamodules.convert.errors import BadRowError, FormatError, RowCause
from hyperbagel.datamodules.convert.files import FolderFiles, find_files, some, watch
from hyperbagel.datamodules.convert.lines import decode, not_utf8, open_text, text_lines
from hyperbagel.datamodules.convert.names import PictureFolder, name_key, only_folder, plain_name
from hyperbagel.datamodules.convert.options import DEFAULT_OPTIONS, ConvertOptions
from hyperbagel.datamodules.convert.pictures import PICTURE_SUFFIXES, UNREAD_SUFFIXES, Composition, missing_picture
from hyperbagel.datamodules.convert.reports import ConversionSummary
from hyperbagel.datamodules.convert.rows import ListedRows, Row, RowSource
from hyperbagel.datamodules.convert.slices import first_row, slice_json
from hyperbagel.datamodules.convert.tables import TableDialect, read_header, slice_table
from hyperbagel.datamodules.skipped import Skip
from hyperbagel.messages import clip, shown

_CAPTION_FILES: Final = tuple(
    f"{stem}.{suffix}" for stem in ("metadata", "captions") for suffix in ("jsonl", "json", "csv", "tsv", "txt")
)
_IMAGE_KEYS: Final = ("file_name", "filename", "file", "image", "img_path", "path")
_TEXT_KEYS: Final = ("text", "caption", "prompt")
_PAIR: Final = ("file_name", "text")
_OTHER_ROW: Final = re.compile(
    rf"[\r\n]([^\s,]*(?:{'|'.join(map(re.escape, sorted(PICTURE_SUFFIXES)))}))\"?[\t,]", re.IGNORECASE
)


@dataclass(frozen=True)
class CaptionFields:
    """Names of the columns or keys in a caption file.

    Args:
        image: The picture's file name; by default the first of file_name, filename, file, image, img_path and path.
        text: The caption; by default the first of text, caption and prompt. All others are kept in `meta`, so that
            further wordings are not lost.

    Examples:
        >>> CaptionFields(image="file", text="title").text
        'title'
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
        src: Folder of pictures; subfolders belong to it, linked ones too. Hidden files and folders do not.
        out: Folder for the shards.
        captions: A .csv or .tsv file with names of columns, a .jsonl or .json file of objects, or a .txt file with
            lines that are either a picture's name, a tab and its caption, or only captions, in the order of the
            pictures' names. Names of pictures start from `src`. By default a file `metadata` or `captions` of these
            kinds in `src`; if there is none, each picture needs a .txt file of the same name beside it.
        fields: Names of the columns or keys.
        options: Shard size, number of processes, and so on.

    Examples:
        >>> from PIL import Image
        >>> Path("pictures").mkdir()
        >>> Image.new("RGB", (8, 8), "red").save("pictures/a.png")
        >>> _ = Path("pictures/a.txt").write_text("a red square")
        >>> convert_folder("pictures", "shards").written
        1
    """
    root = Path(src)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    files = [Path(captions)] if captions else _caption_files(root)
    suffixes = PICTURE_SUFFIXES | UNREAD_SUFFIXES | ({".txt"} if not files else set())
    found = find_files(root, suffixes, Path(out))
    sources: Sequence[RowSource]
    notes: Callable[[], list[str]]
    if files:
        sources, keys = _listed(found, files[0], options.shard_size, fields)
        notes = partial(_table_notes, found, files, sources if options.limit is None else (), keys[0])
    else:
        sources, keys, notes = _neighbours(found, options.shard_size), _PAIR, partial(_notes, found)
    converter = CaptionedPictures(PictureFolder((root,)), *keys)
    units = first_rows([Unit(source, converter) for source in sources], options.limit)
    settings = {"captions": files[0].name if files else None, "fields": list(keys)}
    return run(ConversionJob("folder", units, settings, root, watch(files[:1], [found]), notes=notes), out, options)


def _caption_files(root: Path) -> list[Path]:
    """Files of captions in the order in which they are preferred; endings and names may be in upper case."""
    found: dict[str, list[str]] = {name: [] for name in _CAPTION_FILES}
    for name in os.listdir(root):
        if name.lower() in found:
            found[name.lower()].append(name)
    # Sorted backwards, a name in lower case comes first.
    return [root / name for names in found.values() for name in sorted(names, reverse=True) if (root / name).is_file()]


def _key(keys: Iterable[str], place: str, given: str | None, meaning: str) -> str:
    """The key that a field has in the rows. Raises FormatError."""
    usual, present = {"image": _IMAGE_KEYS, "text": _TEXT_KEYS}[meaning], list(keys)
    for key in (given,) if given else usual:
        if key in present:
            return key
    raise FormatError(
        f"{place}: no key {given or ' or '.join(usual)!r} for the {meaning}, only {clip(', '.join(present), 100)}; "
        f"set `fields.{meaning}`"
    )


def _listed(
    found: FolderFiles, file: Path, size: int, fields: CaptionFields
) -> tuple[Sequence[RowSource], tuple[str, str]]:
    """Slices of a caption file, keys of pictures and captions. Raises FileNotFoundError and FormatError."""
    suffix = file.suffix.lower()
    if suffix in (".jsonl", ".json"):
        slices = slice_json(file, size)
        row = first_row(slices, file)
        assert not isinstance(row.data, BadRowError)
        return slices, (
            _key(row.data, row.place, fields.image, "image"),
            _key(row.data, row.place, fields.text, "text"),
        )
    if suffix in (".csv", ".tsv"):
        return _table(file, size, TableDialect("," if suffix == ".csv" else "\t"), fields)
    if suffix != ".txt":
        raise FormatError(f"{file}: captions must be a .csv, .tsv, .jsonl, .json or .txt file")
    with open_text(file) as stream:
        lines = [decode(line).rstrip("\r\n") for line in text_lines(stream)]
    first = next((line for line in lines if line.strip()), "").split("\t")
    if len(first) == 1:
        return _in_order(found, file, lines, size), _PAIR
    dialect = TableDialect("\t", quoted=False)
    if {*first} & {*_IMAGE_KEYS} and {*first} & {*_TEXT_KEYS}:
        return _table(file, size, dialect, fields)
    return slice_table(file, size, replace(dialect, columns=_PAIR)), _PAIR


def _table(
    file: Path, size: int, dialect: TableDialect, fields: CaptionFields
) -> tuple[Sequence[RowSource], tuple[str, str]]:
    """Slices of a table with names of columns."""
    dialect, start, line = read_header(file, dialect)
    image, text = (
        _key(dialect.columns, f"{file}, line 1", given, meaning)
        for given, meaning in ((fields.image, "image"), (fields.text, "text"))
    )
    dialect = replace(dialect, pictures=dialect.columns.index(image))
    return slice_table(file, size, dialect, start, line), (image, text)


def _in_order(found: FolderFiles, file: Path, lines: list[str], size: int) -> Sequence[RowSource]:
    """Lines that are captions of the pictures in order; further empty lines at the end do not count."""
    pictures = found.names(PICTURE_SUFFIXES)
    while len(lines) > len(pictures) and not lines[-1].strip():
        lines.pop()
    if len(lines) != len(pictures):
        raise FormatError(
            f"{file} has {len(lines)} lines for {len(pictures)} pictures in {found.root}; write a line for each, or "
            "begin each line with the picture's name and a tab"
        )
    both = zip(pictures, lines, strict=True)
    pairs = [(number, dict(zip(_PAIR, pair, strict=True))) for number, pair in enumerate(both, 1)]
    blocks = [tuple(pairs[start : start + size]) for start in range(0, len(pairs), size)]
    return [ListedRows(len(block), file, block) for block in blocks]


def _notes(found: FolderFiles) -> list[str]:
    """What to tell of files that are not read."""
    unread = found.names(UNREAD_SUFFIXES)
    text = f"{len(unread):,} pictures are of formats that are not read; convert them to PNG or JPEG"
    return [*found.notes(), *([some(text, unread)] if unread else [])]


def _table_notes(found: FolderFiles, files: Sequence[Path], sources: Sequence[RowSource], image: str) -> list[str]:
    """What to tell of pictures without a row, rows that are there twice, and files that were not read.

    sources: all rows; none where only a part of them is converted.
    """
    notes = _notes(found)
    if len(files) > 1:
        notes.append(clip(f"{files[0].name} was read, but not {', '.join(path.name for path in files[1:])}"))
    named, seen, twice = set[str](), set[int](), list[str]()
    for row in (row for source in sources for row in source.rows()):
        if isinstance(row.data, BadRowError):
            continue
        identity = hash(repr(row.data))
        if identity in seen:
            twice.append(row.place)
        seen.add(identity)
        try:
            named.add(name_key(plain_name(row.data.get(image))))
        except BadRowError:
            continue
    inner = only_folder(found.root)
    skip = len(inner.name) + 1 if inner is not None else 0
    keys = {name: name_key(name) for name in found.names(PICTURE_SUFFIXES)} if sources else {}
    unnamed = [name for name, key in keys.items() if key not in named and not (skip and key[skip:] in named)]
    if unnamed:
        notes.append(some(f"{len(unnamed):,} pictures of the folder have no row in {files[0].name}", unnamed))
    if twice:
        notes.append(some(f"{len(twice):,} rows are the same as earlier ones", twice))
    return notes


def _neighbours(found: FolderFiles, size: int) -> list[NeighbourRows]:
    """Pictures with a text file beside them. Raises FileNotFoundError when there is not one pair."""
    pictures, texts = found.names(PICTURE_SUFFIXES), dict[str, list[str]]()
    for name in found.names({".txt"}):
        texts.setdefault(_stem(name), []).append(name)
    pairs: list[tuple[str | None, str | None]] = []
    for name in pictures:
        pairs.append((name, texts.get(_stem(name), [None])[-1]))
    used = {text for _, text in pairs}
    if not used - {None}:
        raise FileNotFoundError(
            f"{found.root} has neither captions ({', '.join(_CAPTION_FILES)}) nor a .txt file beside any of its "
            f"{len(pictures)} pictures; set `captions`"
        )
    pairs += [(None, text) for named in texts.values() for text in named if text not in used]
    pairs.sort(key=lambda pair: pair[0] or pair[1] or "")
    blocks = [tuple(pairs[start : start + size]) for start in range(0, len(pairs), size)]
    return [NeighbourRows(len(block), found.root, block) for block in blocks]


def _stem(name: str) -> str:
    """The same for a picture and the text beside it."""
    return name_key(name.rpartition(".")[0] + ".")


@dataclass(frozen=True)
class NeighbourRows(RowSource):
    """Pictures with a text file of the same name. pairs: picture and text, None where there is none."""

    root: Path
    pairs: tuple[tuple[str | None, str | None], ...]

    @property
    def name(self) -> str:
        """All names."""
        return "\n".join(f"{picture}\0{text}" for picture, text in self.pairs[: self.count])

    def read(self) -> Iterator[Row]:
        """Look up the captions."""
        for picture, text in self.pairs:
            path = self.root / (picture or text or "")
            if picture is None:
                yield Row(str(path), missing_picture(path))
            elif text is None:
                message = f"there is no {path.with_suffix('.txt').name} beside it"
                yield Row(str(path), BadRowError(RowCause.MISSING_CAPTION, message))
            elif "\\" in picture:
                message = "a backslash in a name means a folder on some systems; rename the picture"
                yield Row(str(path), BadRowError(Skip.UNSAFE_NAME, message))
            else:
                yield Row(str(path), self._captioned(picture, text))

    def _captioned(self, picture: str, text: str) -> Mapping[str, Any] | BadRowError:
        try:
            data = (self.root / text).read_bytes()
        except OSError as error:
            return BadRowError(RowCause.MISSING_CAPTION, f"{text}: {error.strerror}")
        if problem := not_utf8(data[:4096]):
            return BadRowError(RowCause.NOT_UTF8, f"{text} {problem}")
        return dict(zip(_PAIR, (picture, decode(data)), strict=True))


@dataclass(frozen=True, slots=True)
class CaptionedPictures:
    """Makes documents of captioned pictures. folder: where they are; image, text: keys of a row."""

    folder: PictureFolder
    image: str
    text: str

    def compose(self, row: Mapping[str, Any]) -> Composition:
        """The caption and then the picture. Raises BadRowError, also for a caption that took in other rows."""
        composition = Composition({key: value for key, value in row.items() if key != self.text})
        text = row.get(self.text)
        if isinstance(text, str) and (other := _OTHER_ROW.search(text)):
            message = f"`{self.text}` holds another row, that of {shown(other[1])}; close its quotation mark"
            raise BadRowError(Skip.BAD_SCHEMA, message)
        composition.text(text, self.text)
        composition.image(self.folder.read(row.get(self.image)), self.image, loss=True)
        return composition
