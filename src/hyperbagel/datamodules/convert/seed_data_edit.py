"""SEED-Data-Edit: real edits in one step (part 2) and edits of several rounds made by people (part 3).

A line of part 2, and of part 1, has `source_image`, `target_image` and `instruction`, in some files also
`instruction_new`, a rewritten wording. A line of part 3 has `source_image`, and for round i = 1, 2, ... `instruction_i`
and `edit_image_i`. Pictures come as an archive in the folder `images` beside `annotations`, that of part 3 cut into
`multi_turn.tar.gz.part-aa`, `-ab`, ...
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from hyperbagel.datamodules.convert.archives import Unpacking, find_archives
from hyperbagel.datamodules.convert.conversion import ConversionJob, Unit, first_rows, run
from hyperbagel.datamodules.convert.conversion_folder import temporary_folder
from hyperbagel.datamodules.convert.errors import BadRowError, RowCause
from hyperbagel.datamodules.convert.files import FolderFiles, find_files, watch
from hyperbagel.datamodules.convert.names import PictureFolder, normal_name
from hyperbagel.datamodules.convert.options import DEFAULT_OPTIONS, ConvertOptions
from hyperbagel.datamodules.convert.pictures import PICTURE_SUFFIXES, Composition
from hyperbagel.datamodules.convert.reports import ConversionSummary
from hyperbagel.datamodules.convert.slices import first_row, need_keys, slice_json
from hyperbagel.datamodules.convert.wording import choose_wording
from hyperbagel.datamodules.skipped import Skip

InstructionWording: TypeAlias = Literal["instruction", "instruction_new", "either"]

_SINGLE: Final = ("source_image", "target_image", "instruction")
_MULTI: Final = ("source_image", "instruction_1", "edit_image_1")
_ROUND: Final = re.compile(r"(instruction|edit_image)_(\d{1,3})")


def convert_seed_data_edit(
    src: str,
    out: str,
    images: str | None = None,
    wording: InstructionWording = "instruction",
    options: ConvertOptions = DEFAULT_OPTIONS,
) -> ConversionSummary:
    """Convert SEED-Data-Edit (parts 2 and 3, and also part 1) to shards.

    A document is the source picture, then for each round the instruction and the edited picture, which is learnt.
    Archives of pictures that were not unpacked are unpacked into the output folder while the conversion runs.

    Args:
        src: The downloaded folder with `real_editing` and `multi_turn_editing`, or one of these, or one JSONL file.
        out: Folder for the shards.
        images: Folder that the names of pictures start from; by default `images` beside the folder of the annotations.
        wording: Which wording is the text, where a line has also a rewritten instruction; `either` takes one by chance.
            The other one is kept in `meta`.
        options: Shard size, number of processes, and so on.

    Examples:
        >>> convert_seed_data_edit("SEED-Data-Edit", "shards")
        Traceback (most recent call last):
        ...
        FileNotFoundError: no SEED-Data-Edit; give the folder of SEED-Data-Edit
    """
    units: list[Unit] = []
    unpackings: dict[Path, Unpacking] = {}
    found = _find(Path(src), Path(out))
    for path in _annotations(found, Path(src)):
        sources = slice_json(path, options.shard_size)
        row = first_row(sources, path)
        need_keys(row, _SINGLE, _MULTI)
        base = path.parent.parent if path.parent.name.startswith("annotations") else path.parent
        folder = PictureFolder((Path(images),) if images else (base / "images", base))
        if not images and folder.find(_first_name(row.data)) is None:
            targets = _unpackings(base / "images", temporary_folder(Path(out)) / base.name)
            unpackings |= {unpacking.target: unpacking for unpacking in targets}
            folder = PictureFolder((*folder.roots, *(unpacking.target for unpacking in targets)))
        units += [Unit(source, Edits(folder, wording)) for source in sources]
    settings = {"images": images, "wording": wording}
    folders = [found, *([find_files(Path(images), PICTURE_SUFFIXES, Path(out))] if images else [])]
    files = watch((part for unpacking in unpackings.values() for part in unpacking.parts), folders)
    units = first_rows(units, options.limit)
    job = ConversionJob("seed-data-edit", units, settings, Path(src), files, tuple(unpackings.values()), found.notes)
    return run(job, out, options)


def _find(src: Path, out: Path) -> FolderFiles:
    """The annotations and pictures of a folder, or a single file."""
    if src.is_dir():
        return find_files(src, {*PICTURE_SUFFIXES, ".jsonl"}, out)
    if not src.is_file():
        raise FileNotFoundError(f"no {src}; give the folder of SEED-Data-Edit")
    status = src.stat()
    return FolderFiles(src.parent, {src.name: (status.st_size, status.st_mtime_ns)})


def _annotations(found: FolderFiles, src: Path) -> list[Path]:
    """The annotation files: those in folders called `annotations`, if there are any. Raises FileNotFoundError."""
    if src.is_file():
        return [src]
    files = sorted(src / name for name in found.names({".jsonl"}))
    files = [path for path in files if path.parent.name == "annotations"] or files
    if not files:
        raise FileNotFoundError(f"no *.jsonl in {src} or its subfolders; give the folder of SEED-Data-Edit")
    return files


def _first_name(row: Mapping[str, Any] | BadRowError) -> str:
    assert not isinstance(row, BadRowError)
    return normal_name(str(row["source_image"]))


def _unpackings(folder: Path, target: Path) -> list[Unpacking]:
    return [Unpacking(parts, target / name) for name, parts in find_archives(folder).items()]


@dataclass(frozen=True, slots=True)
class Edits:
    """Makes documents of edits. folder: where their pictures are; wording: which instruction is the text."""

    folder: PictureFolder
    wording: InstructionWording

    def compose(self, row: Mapping[str, Any]) -> Composition:
        """Source, then instruction and target of each round."""
        multi = any(_ROUND.fullmatch(key) for key in row)
        rounds = _rounds(row) if multi else [("instruction", "target_image")]
        composition = Composition({"source_image": row.get("source_image"), "rounds": len(rounds)})
        composition.image(self.folder.read(row.get("source_image")), "source_image")
        for instruction, target in rounds:
            text = row.get(instruction)
            if not multi and row.get("instruction_new"):
                wordings = {"instruction": text, "instruction_new": row["instruction_new"]}
                instruction, text = choose_wording(wordings, self.wording, str(row.get("target_image")))
                composition.meta |= wordings
            composition.text(text, instruction)
            composition.image(self.folder.read(row.get(target)), target, loss=True)
        return composition


def _rounds(row: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """Keys of instruction and edited picture of each round. Null and empty fields are no rounds if none comes later."""
    given = {(found[1], int(found[2])) for key, value in row.items() if value and (found := _ROUND.fullmatch(key))}
    last = max((number for _, number in given), default=0)
    if last == 0:
        raise BadRowError(Skip.BAD_SCHEMA, "no round has an `instruction_i` and an `edit_image_i`")
    for number in range(1, last + 1):
        for kind in ("instruction", "edit_image"):
            if (kind, number) not in given:
                raise BadRowError(RowCause.INCOMPLETE_ROUND, f"`{kind}_{number}` is missing, but round {last} is there")
    return [(f"instruction_{number}", f"edit_image_{number}") for number in range(1, last + 1)]
