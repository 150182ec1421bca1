"""The pictures of reports for a page: of each prompt or edit one, by every run and setting."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from hyperbagel.evaluation.reports import SOURCE, named
from hyperbagel.evaluation.run_files import RunFolder

_LARGEST = 320
"""Sides in pixels up to which a picture is put into a page as it is; larger ones are made smaller."""
_FIRST = 6
"""Prompts that are shown without a click."""


def cards(benchmark: str, reports: Mapping[str, Mapping[str, Any]], runs: Mapping[str, RunFolder]) -> str:
    """HTML with a card for each prompt or edit: what is asked for, and under it the pictures of all runs and settings.

    Nothing where no report has single pictures.
    """
    found: dict[tuple[int, str], dict[str, Path]] = {}
    for run, report in reports.items():
        results = report["results"].get(benchmark, {})
        for row, files in results.get("pictures", {}).items():
            label = SOURCE if row == SOURCE else named(run, row, reports)
            for slot, (caption, file) in enumerate(zip(results.get("captions", ()), files, strict=False)):
                found.setdefault((slot, caption), {}).setdefault(label, runs[run].folder / file)
    if not found:
        return ""
    made = [_card(caption, pictures) for (_, caption), pictures in sorted(found.items())]
    first, others = ("".join(part) for part in (made[:_FIRST], made[_FIRST:]))
    text = f"<h2>{escape(benchmark)}: the same words and the same noise</h2><div class='cards'>{first}</div>"
    if others:
        text += f"<details><summary>{len(made) - _FIRST} more</summary><div class='cards'>{others}</div></details>"
    return text


def _card(caption: str, pictures: Mapping[str, Path]) -> str:
    figures = "".join(
        f"<figure>{image(file, f'{caption} by {label}')}<figcaption>{escape(label)}</figcaption></figure>"
        for label, file in pictures.items()
    )
    return f"<section><p>{escape(caption)}</p><div>{figures}</div></section>"


def image(file: Path, text: str) -> str:
    """A picture file inside of a page; text: in its place for who cannot see it."""
    if not file.is_file():
        return f"<em>{escape(file.name)} is missing</em>"
    data, kind = file.read_bytes(), "png"
    with Image.open(io.BytesIO(data)) as picture:
        if max(picture.size) > _LARGEST:
            picture.thumbnail((_LARGEST, _LARGEST))
            smaller = io.BytesIO()
            picture.convert("RGB").save(smaller, "JPEG", quality=90)
            data, kind = smaller.getvalue(), "jpeg"
    return f'<img alt="{escape(text)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
