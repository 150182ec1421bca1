"""Curves as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 24, 22
COLORS = ("#2f6fde", "#d9622b", "#2e9e5b", "#9b4fc7", "#c2a21b", "#5b6470")
"""Of the first run, the second, and so on."""
MOST_POINTS = 400
"""Points of a curve that are drawn; of longer ones, means of as many stretches."""


def svg(title: str, curves: Mapping[str, Sequence[tuple[float, float]]], colors: Mapping[str, str]) -> str:
    """One chart of the curves of runs by name. colors: of the runs. Raises ValueError for no points."""
    drawn = {run: _thinned([(x, y) for x, y in points if math.isfinite(y)]) for run, points in curves.items()}
    points = [point for curve in drawn.values() for point in curve]
    if not points:
        raise ValueError(f"{title}: no points to draw")
    (left, right), (low, high) = _range([x for x, _ in points]), _range([y for _, y in points])

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - left) / (right - left) * (WIDTH - _LEFT - _RIGHT)
        up = HEIGHT - _BOTTOM - (y - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)
        return f"{across:.1f},{up:.1f}"

    lines = [
        f'<polyline points="{" ".join(place(x, y) for x, y in curve)}" stroke="{colors[run]}"><title>{escape(run)}'
        "</title></polyline>"
        for run, curve in drawn.items()
    ]
    bottom = HEIGHT - _BOTTOM
    labels = [
        f'<text x="{_LEFT}" y="15" class="title">{escape(title)}</text>',
        f'<text x="{_LEFT - 4}" y="{bottom}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{_LEFT - 4}" y="{_TOP + 8}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{_LEFT}" y="{HEIGHT - 6}">{left:g}</text>',
        f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{right:g}</text>',
    ]
    frame = f'<path d="M{_LEFT} {_TOP}V{bottom}H{WIDTH - _RIGHT}" class="frame"/>'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{frame}{"".join(lines)}{"".join(labels)}</svg>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest, apart from each other."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many points, in the order of x."""
    ordered = sorted(points)
    if len(ordered) <= MOST_POINTS:
        return ordered
    edges = [round(i * len(ordered) / MOST_POINTS) for i in range(MOST_POINTS + 1)]
    parts = [ordered[start:end] for start, end in pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
