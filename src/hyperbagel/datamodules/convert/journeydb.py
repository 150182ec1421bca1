"""JourneyDB: generated pictures, each with the prompt it was made by and a caption.

A line of `train_anno_realease_repath.jsonl` has `img_path` (`./000/<uuid>.jpg`), `prompt`, and `Task2` with `Caption`;
not every line has a caption. The pictures come as `imgs/000.tgz`, `001.tgz`, ... with members `000/<uuid>.jpg`. The
names in the older `train_anno.jsonl` do not match the archives, and are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from hyperbagel.datamodules.convert.annotation_index import IMAGE, AnnotationIndex, archive_sources
from hyperbagel.datamodules.convert.archives import Unpacking, find_archives
from hyperbagel.datamodules.convert.conversion import ConversionJob, Unit, first_rows, run
from hyperbagel.datamodules.convert.conversion_folder import temporary_folder
from hyperbagel.datamodules.convert.errors import BadRowError, FormatError, RowCause
from hyperbagel.datamodules.convert.files import find_files, watch
from hyperbagel.datamodules.convert.names import PictureFolder, plain_name
from hyperbagel.datamodules.convert.options import DEFAULT_OPTIONS, ConvertOptions
from hyperbagel.datamodules.convert.pictures import PICTURE_SUFFIXES, Composition
from hyperbagel.datamodules.convert.reports import ConversionSummary
from hyperbagel.datamodules.convert.rows import RowSource
from hyperbagel.datamodules.convert.slices import first_row, need_keys, slice_json_lines
from hyperbagel.datamodules.convert.wording import choose_wording
from hyperbagel.datamodules.documents import system_name
from hyperbagel.messages import clip, shown

CaptionWording: TypeAlias = Literal["caption", "prompt", "either"]

_PATTERNS: Final = tuple(
    f"{name}{suffix}" for name in ("*_repath", "*anno*", "*") for suffix in (".jsonl", ".jsonl.tgz")
)


def convert_journeydb(
    src: str,
    out: str,
    annotations: str | None = None,
    images: str | None = None,
    wording: CaptionWording = "caption",
    options: ConvertOptions = DEFAULT_OPTIONS,
) -> ConversionSummary:
    """Convert a split of JourneyDB to shards.

    A document is the text and then the picture, which is learnt. Archives of pictures are read as they are; it does not
    matter if some are not downloaded.

    Args:
        src: Folder of the split, such as `data/train`.
        out: Folder for the shards.
        annotations: The JSONL file, or the .tgz with it; by default the only `*_repath.jsonl` in `src`, or else the
            only other one.
        images: Folder with the archives of pictures, or with the folders unpacked from them; by default `imgs` in
            `src`.
        wording: Which wording is the text: the caption, the prompt, or either of them by chance. The other one is kept
            in `meta`. A line without the wanted wording is left out.
        options: Shard size, number of processes, and so on.

    Examples:
        >>> convert_journeydb("train", "shards")
        Traceback (most recent call last):
        ...
        FileNotFoundError: no folder train with pictures or archives of them; set `images`
    """
    folder = Path(images) if images else _picture_folder(Path(src))
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} with pictures or archives of them; set `images`")
    temporary = temporary_folder(Path(out))
    given = _annotation_file(Path(src), annotations)
    lines = _unpacked(given, temporary / "annotations")
    slices = slice_json_lines(lines, options.shard_size)
    row = first_row(slices, lines)
    need_keys(row, ("img_path", "prompt"), ("img_path", "Task2"))
    converter = Captions(PictureFolder((folder,)), wording)
    archives = find_archives(folder)
    pictures = [] if archives else [find_files(folder, PICTURE_SUFFIXES, Path(out))]
    files = watch([given, *(part for parts in archives.values() for part in parts)], pictures)
    if archives:
        index = AnnotationIndex(temporary / f"annotations-{files.digest}.sqlite")
        index.build(slices, _picture_name)
        _need_fit((name for (name,) in index.query("SELECT name FROM good")), archives, given)
        units = [Unit(source, converter) for source in archive_sources(archives, index, options.limit)]
    else:
        folders = {path.name for path in folder.iterdir() if path.is_dir()}
        _need_fit(_names(slices), folders, given)
        units = first_rows([Unit(source, converter) for source in slices], options.limit)
    settings = {"images": images, "annotations": lines.name, "wording": wording, "archives": bool(archives)}
    return run(ConversionJob("journeydb", units, settings, Path(src), files), out, options)


def _names(slices: Iterable[RowSource]) -> Iterator[str]:
    """Plain names of the pictures of all rows that can be read."""
    for source in slices:
        for row in source.rows():
            with suppress(BadRowError):
                if not isinstance(row.data, BadRowError):
                    yield plain_name(_picture_name(row.data))


def _need_fit(names: Iterator[str], folders: Collection[str], annotations: Path) -> None:
    """Raise FormatError when not one name begins with a folder that is there, as those of the older annotations do."""
    first = next(names, None)
    if first is None or any("/" not in name or name.partition("/")[0] in folders for name in chain([first], names)):
        return
    raise FormatError(
        f"{annotations}: its names, such as {shown(first)}, do not fit the archives, which are of "
        f"{clip(', '.join(sorted(folders)) or 'no folder', 60)}: use train_anno_realease_repath.jsonl"
    )


def _picture_folder(src: Path) -> Path:
    return src / "imgs" if (src / "imgs").is_dir() else src


def _annotation_file(src: Path, given: str | None) -> Path:
    """The JSONL file or the archive with it. Raises FileNotFoundError, and FormatError when in doubt."""
    if given is not None:
        if not Path(given).is_file():
            raise FileNotFoundError(f"no file {given}")
        return Path(given)
    if not src.is_dir():
        raise FileNotFoundError(f"no folder {src}; give that of a split of JourneyDB, such as data/train")
    files = [path for path in sorted(src.iterdir()) if path.is_file() and not system_name(path.name)]
    fitting = ([path for path in files if fnmatch(path.name.lower(), pattern)] for pattern in _PATTERNS)
    found = next((paths for paths in fitting if paths), [])
    if not found:
        raise FileNotFoundError(f"no *_repath.jsonl or *_repath.jsonl.tgz in {src}; set `annotations`")
    if len(found) > 1:
        names = clip(", ".join(map(str, found)), 200)
        raise FormatError(f"{src} has several annotation files ({names}); set `annotations`")
    return found[0]


def _unpacked(path: Path, folder: Path) -> Path:
    """The JSONL file itself, unpacked into a folder if it is in an archive. Raises FormatError."""
    if path.suffix.lower() == ".jsonl":
        return path
    Unpacking((path,), folder).run()
    files = list(find_files(folder, {".jsonl"}).files)
    if len(files) != 1:
        raise FormatError(f"{path} must have one *.jsonl in it, not {len(files)}")
    return folder / files[0]


def _picture_name(row: Mapping[str, Any]) -> object:
    return row.get("img_path")


@dataclass(frozen=True, slots=True)
class Captions:
    """Makes documents of captioned pictures. folder: where they are; wording: which text is taken."""

    folder: PictureFolder
    wording: CaptionWording

    def compose(self, row: Mapping[str, Any]) -> Composition:
        """The text and then the picture."""
        name = plain_name(row.get("img_path"))
        task = row.get("Task2")
        caption = task.get("Caption") if isinstance(task, Mapping) else None
        wordings = {"caption": caption, "prompt": row.get("prompt")}
        chosen, text = choose_wording(wordings, self.wording, name)
        composition = Composition({"img_path": name, "wording": chosen, **wordings})
        composition.text(text, chosen)
        composition.image(row[IMAGE] if IMAGE in row else self._read(name), "img_path", loss=True)
        return composition

    def _read(self, name: str) -> bytes:
        group = name.partition("/")[0]
        if "/" in name and not any((root / group).is_dir() for root in self.folder.roots):
            raise BadRowError(RowCause.NOT_DOWNLOADED, f"the folder of {shown(name)} is not there")
        return self.folder.read(name)
