"""Reports that people look at: one page of HTML with pictures, tables and curves, which needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

from hyperbagel.evaluation.plots import COLORS, svg
from hyperbagel.evaluation.reports import tables
from hyperbagel.evaluation.run_files import Curve, RunFolder, costs, differences
from hyperbagel.evaluation.samples import cards
from hyperbagel.files import write_text

PAGE = "report.html"
"""Name of the file in a run's folder."""

_FIRST = ("loss/", "val/", "geneval/overall", "gedit/", "speculation/", "draft/", "lr/", "grad_norm/")
"""Beginnings of the tags of curves that are looked at first; all others follow."""

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 1100px; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; } figure { margin: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: right; }
th, td { white-space: nowrap; } tr:hover { background: var(--soft); }
th:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
.wide { overflow-x: auto; } .side { display: flex; flex-wrap: wrap; gap: 1rem; }
img { max-width: 100%; image-rendering: pixelated; border: 1px solid var(--line); box-sizing: border-box; }
.side img { min-width: 240px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: .8rem 1.2rem; }
.cards p { margin: .3rem 0; font-size: 14px; } .cards section > div { display: flex; gap: .4rem; }
.cards figure { flex: 1 1 0; min-width: 0; max-width: 160px; } .cards img { width: 100%; display: block; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: .8rem; }
svg polyline { fill: none; stroke-width: 1.6; } svg .frame { fill: none; stroke: var(--line); }
svg text { font: 10px system-ui, sans-serif; fill: currentColor; } svg .title { font-weight: 600; font-size: 11px; }
.key span { display: inline-block; margin-right: 1.2rem; } .key i { display: inline-block; width: 1.4em; height: 3px;
  vertical-align: middle; margin-right: .4em; } figcaption { font-size: 12px; opacity: .8; overflow-wrap: anywhere; }
summary { cursor: pointer; margin: 1rem 0 .5rem; }
"""


def page(reports: Mapping[str, Mapping[str, Any]], runs: Mapping[str, RunFolder]) -> str:
    """A page about runs: their reports and folders by name, in the same order."""
    found = [*tables(reports), costs(runs), differences(runs)]
    title = ", ".join(runs)
    benchmarks = dict.fromkeys(name for report in reports.values() for name in report["results"])
    sheets = dict.fromkeys(name for run in runs.values() for name in run.pictures())
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(cards(name, reports, runs) for name in benchmarks),
        *(_sheets(name, reports, runs) for name in sheets),
        *(table.html() for table in found if table is not None),
        _curves(runs),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def write_page(reports: Mapping[str, Mapping[str, Any]], runs: Mapping[str, RunFolder], file: str | Path) -> None:
    """Write a page about runs. Raises WriteError."""
    write_text(file, page(reports, runs))


def _sheets(name: str, reports: Mapping[str, Mapping[str, Any]], runs: Mapping[str, RunFolder]) -> str:
    """The same pictures by all runs that have them on one sheet only, beside each other."""
    figures, said = [], dict[str, None]()
    for run, folder in runs.items():
        results = reports[run]["results"].get(name, {})
        if results.get("pictures") or (file := folder.pictures().get(name)) is None:
            continue
        data = base64.b64encode(file.read_bytes()).decode()
        picture = f'<img alt="{escape(name)} of {escape(run)}" src="data:image/png;base64,{data}">'
        figures.append(f"<figure><figcaption>{escape(run)}</figcaption>{picture}</figure>")
        said |= dict.fromkeys(results.get("captions", ()))
    if not figures:
        return ""
    items = "".join(f"<li>{escape(caption)}</li>" for caption in said)
    captions = f"<details><summary>what they should show, in this order</summary><ol>{items}</ol></details>"
    title = f"<h2>{escape(name)}: the same prompts, edits and noise</h2>"
    return f'{title}<div class="side">{"".join(figures)}</div>{captions if items else ""}'


def _curves(runs: Mapping[str, RunFolder]) -> str:
    """One chart for each tag, all runs in it."""
    by_tag: dict[str, dict[str, Curve]] = {}
    for run, folder in runs.items():
        for tag, curve in folder.curves().items():
            by_tag.setdefault(tag, {})[run] = curve
    if not by_tag:
        return ""
    colors = dict(zip(runs, cycle(COLORS), strict=False))
    key = "".join(f'<span><i style="background:{color}"></i>{escape(run)}</span>' for run, color in colors.items())
    first = [tag for begin in _FIRST for tag in sorted(by_tag) if tag.startswith(begin)]
    others = [tag for tag in sorted(by_tag) if tag not in first and tag not in ("epoch", "step")]
    shown, hidden = ("".join(svg(tag, by_tag[tag], colors) for tag in tags) for tags in (first, others))
    parts = [f'<h2>curves against student updates</h2><p class="key">{key}</p><div class="curves">{shown}</div>']
    if hidden:
        parts.append(f'<details><summary>all others</summary><div class="curves">{hidden}</div></details>')
    return "".join(parts)
