"""JourneyDB: generated pictures, each with the prompt it was made by and a caption.

A line of `train_anno_realease_repath.jsonl` has `img_path` (`./000/<uuid>.jpg`), `prompt`, and `Task2` with `Caption`;
not every line has a caption. The pictures come as `imgs/000.tgz`, `001.tgz`, ... with members `000/<uuid>.jpg`. The
names in the older `train_anno.jsonl` do not match the archives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from hyperbagel.datamodules.convert.annotation_index import IMAGE, AnnotationIndex, archive_sources
from hyperbagel.datamodules.convert.archives import Unpacking, find_archives
from hyperbagel.datamodules.convert.conversion import Plan, Unit, first_rows, run
from hyperbagel.datamodules.convert.errors import BadRowError, FormatError, RowCause
from hyperbagel.datamodules.convert.options import DEFAULT_OPTIONS, ConvertOptions
from hyperbagel.datamodules.convert.pictures import Draft, PictureFolder, plain_name
from hyperbagel.datamodules.convert.reports import ConversionSummary
from hyperbagel.datamodules.convert.slices import first_row, need_keys, slice_json_lines
from hyperbagel.datamodules.convert.wording import choose_wording
from hyperbagel.datamodules.convert.workplace import temporary_folder

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
    """
    folder = Path(images) if images else _picture_folder(Path(src))
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} with pictures or archives of them; set `images`")
    temporary = temporary_folder(Path(out))
    lines = _annotation_file(Path(src), annotations, temporary / "annotations")
    slices = slice_json_lines(lines, options.shard_size)
    row = first_row(slices, lines)
    need_keys(row, ("img_path", "prompt"), ("img_path", "Task2"))
    converter = Captions(PictureFolder((folder,)), wording)
    archives = find_archives(folder)
    if archives:
        index = AnnotationIndex(temporary / "annotations.sqlite")
        index.build(slices, _picture_name)
        units = [Unit(source, converter) for source in archive_sources(archives, index, options.limit)]
    else:
        units = first_rows([Unit(source, converter) for source in slices], options.limit)
    settings = {"images": images, "annotations": lines.name, "wording": wording, "archives": bool(archives)}
    return run(Plan("journeydb", units, settings), out, options)


def _picture_folder(src: Path) -> Path:
    return src / "imgs" if (src / "imgs").is_dir() else src


def _annotation_file(src: Path, given: str | None, unpacked: Path) -> Path:
    """The JSONL file, unpacked if it came in an archive. Raises FileNotFoundError, and FormatError when in doubt."""
    if given is None:
        if not src.is_dir():
            raise FileNotFoundError(f"no folder {src}; give that of a split of JourneyDB, such as data/train")
        found = next((files for pattern in _PATTERNS if (files := sorted(src.glob(pattern)))), [])
        if not found:
            raise FileNotFoundError(f"no *_repath.jsonl or *_repath.jsonl.tgz in {src}; set `annotations`")
        if len(found) > 1:
            raise FormatError(f"{src} has several annotation files ({', '.join(map(str, found))}); set `annotations`")
        path = found[0]
    else:
        path = Path(given)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix == ".jsonl":
        return path
    Unpacking((path,), unpacked).run()
    files = sorted(unpacked.rglob("*.jsonl"))
    if len(files) != 1:
        raise FormatError(f"{path} must have one *.jsonl in it, not {len(files)}")
    return files[0]


def _picture_name(row: Mapping[str, Any]) -> object:
    return row.get("img_path")


@dataclass(frozen=True, slots=True)
class Captions:
    """Makes documents of captioned pictures. folder: where they are; wording: which text is taken."""

    folder: PictureFolder
    wording: CaptionWording

    def draft(self, row: Mapping[str, Any]) -> Draft:
        """The text and then the picture."""
        name = plain_name(row.get("img_path"))
        task = row.get("Task2")
        caption = task.get("Caption") if isinstance(task, Mapping) else None
        wordings = {"caption": caption, "prompt": row.get("prompt")}
        chosen, text = choose_wording(wordings, self.wording, name)
        draft = Draft({"img_path": name, "wording": chosen, **wordings})
        draft.text(text, chosen)
        draft.image(row[IMAGE] if IMAGE in row else self._read(name), "img_path", loss=True)
        return draft

    def _read(self, name: str) -> bytes:
        group = name.partition("/")[0]
        if "/" in name and not any((root / group).is_dir() for root in self.folder.roots):
            raise BadRowError(RowCause.NOT_DOWNLOADED, f"the folder {group} of {name!r} is not there")
        return self.folder.read(name)
