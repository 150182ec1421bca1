"""Inspects shards: counts what is in them and what is wrong with them, and draws a sheet of samples."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from hyperbagel.bagel.images import ImageError, load_image
from hyperbagel.bagel.shipped import cache_folder
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.datamodules.documents import InterleavedDocument, TextPart
from hyperbagel.datamodules.index import index_shard
from hyperbagel.datamodules.shards import Sample, find_shards
from hyperbagel.datamodules.sources import ShardSamples
from hyperbagel.datamodules.vocabulary import SpelledWords, spelled_words, words_of
from hyperbagel.files import check_picture, write_picture
from hyperbagel.messages import clip

_CELL = 160
_EXAMPLES = 3
_LINES = 4
_LINE = 12


@dataclass
class ShardSummary:
    """Counts over the readable samples. Lengths are characters of all texts of a document.

    skipped: the others by cause; examples: the first few of each cause, where they are and what is wrong with them;
    words: those of all texts, where a tokenizer was given.
    """

    shards: int = 0
    samples: int = 0
    bytes: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    image_sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    text_lengths: list[int] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    words: SpelledWords | None = None

    def __str__(self) -> str:
        """A table for people."""
        lengths = sorted(self.text_lengths) or [0]
        quantiles = " / ".join(str(lengths[int(q * (len(lengths) - 1))]) for q in (0, 0.5, 0.95, 1))
        sizes = ", ".join(f"{w}x{h}: {n}" for (w, h), n in self.image_sizes.most_common(8))
        rows = {
            "shards": f"{self.shards} ({self.bytes / 2**20:.1f} MiB)",
            "samples": str(self.samples),
            "kinds": ", ".join(f"{kind}: {n}" for kind, n in self.kinds.most_common()),
            "images a sample": ", ".join(f"{n}: {count}" for n, count in sorted(self.images.items())),
            "image sizes": f"{len(self.image_sizes)} ({sizes})",
            "characters": f"{quantiles} (least, median, 95 %, most)",
            "skipped": ", ".join(f"{cause}: {n}" for cause, n in sorted(self.skipped.items())) or "none",
        }
        if self.words is not None:
            rows["words"] = str(self.words)
        lines = [f"{name:<16} {value}" for name, value in rows.items()]
        for cause, examples in sorted(self.examples.items()):
            lines += [f"{cause}, such as", *(f"    {example}" for example in examples)]
        return "\n".join(lines)


def kind_of(document: InterleavedDocument) -> str:
    """What a document teaches: generation, editing (of a given picture), multi-turn, understanding, or text."""
    if not document.generates:
        return "understanding" if document.images else "text"
    targets = sum(image.loss for image in document.images)
    if targets > 1:
        return "multi-turn"
    return "generation" if targets == len(document.images) else "editing"


def inspect_shards(
    shards: str | Sequence[str],
    out_png: str | Path,
    cache_dir: str | Path | None = None,
    cells: int = 24,
    tokenizer: Tokenizer | None = None,
) -> ShardSummary:
    """Read all samples of a shard list, and draw some of them, evenly picked.

    out_png: where the contact sheet goes; cache_dir: for copies of remote and compressed shards;
    cells: number of samples drawn; tokenizer: that of a small world, to count the words that it spells in bytes.
    Raises FileNotFoundError for missing shards, and as `check_picture`.
    """
    out = Path(out_png)
    check_picture(out)
    paths = find_shards(shards, Path(cache_dir) if cache_dir else cache_folder())
    indexes = [index_shard(path) for path in paths]
    samples = ShardSamples(paths, indexes, with_loss=False)
    summary = ShardSummary(shards=len(paths), samples=len(samples), bytes=sum(path.stat().st_size for path in paths))
    for record in samples.skipped:
        summary.skipped[record.cause] += 1
        examples = summary.examples.setdefault(record.cause, [])
        if len(examples) < _EXAMPLES:
            examples.append(clip(f"{record.sample}: {record.reason}"))
    for index in indexes:
        summary.image_sizes.update((width, height) for width, height in index.sizes.tolist())
    drawn = set(range(0, len(samples), max(1, -(-len(samples) // cells))))
    pictures, counts = [], Counter[str]()
    for i in range(len(samples)):
        sample = samples.read(i)
        document = sample.document()
        summary.kinds[kind_of(document)] += 1
        summary.images[len(document.images)] += 1
        summary.text_lengths.append(sum(len(part.text) for part in document.parts if isinstance(part, TextPart)))
        if tokenizer is not None:
            counts.update(words_of(document))
        if i in drawn:
            pictures.append(_draw(sample, document))
    if tokenizer is not None:
        summary.words = spelled_words(counts, tokenizer)
    write_picture(out, _sheet(pictures))
    return summary


def _draw(sample: Sample, document: InterleavedDocument) -> Image.Image:
    """A row of the pictures, framed green where they are to be generated, above the beginning of the texts."""
    row = Image.new("RGB", (_CELL * max(1, min(len(document.images), 4)), _CELL + _LINES * _LINE + 8), "white")
    draw = ImageDraw.Draw(row)
    font = ImageFont.load_default(size=_LINE - 2)
    for column, part in enumerate(document.images[:4]):
        data = sample.members[part.file]
        try:
            picture = load_image(data if isinstance(data, bytes) else b"")
        except ImageError:
            draw.text((column * _CELL + 8, 8), "unreadable", fill="red", font=font)
            continue
        scale = (_CELL - 12) / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        corner = (column * _CELL + 6, 6)
        row.paste(picture.resize(size), corner)
        box = (corner[0] - 2, corner[1] - 2, corner[0] + size[0] + 1, corner[1] + size[1] + 1)
        draw.rectangle(box, outline="green" if part.loss else "gray", width=2)
    texts = [("> " if part.loss else "") + part.text for part in document.parts if isinstance(part, TextPart)]
    lines = textwrap.wrap(f"[{sample.key}] " + " | ".join(texts), width=row.width // 6, max_lines=_LINES)
    for number, line in enumerate(lines):
        draw.text((4, _CELL + number * _LINE), line, fill="black", font=font)
    return row


def _sheet(rows: Sequence[Image.Image]) -> Image.Image:
    """Cells packed into lines of equal width."""
    width = max([4 * _CELL, *(row.width for row in rows)])
    places, x, y = [], 0, 0
    height = _CELL + _LINES * _LINE + 8
    for row in rows:
        if x + row.width > width:
            x, y = 0, y + height
        places.append((x, y))
        x += row.width
    sheet = Image.new("RGB", (width, y + height), "white")
    for row, place in zip(rows, places, strict=True):
        sheet.paste(row, place)
    return sheet
