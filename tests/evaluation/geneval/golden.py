"""Reads golden GenEval files: cases (JSON lines, one image each) and summaries (JSON)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hyperbagel.evaluation.geneval.protocol import ClassDetections, Detections

FIXTURES = Path(__file__).parents[2] / "fixtures" / "geneval"
CASES = FIXTURES / "cases_a.jsonl"
SUMMARIES = FIXTURES / "summary_a.json"


def read_cases(path: Path) -> list[dict[str, Any]]:
    """All cases of a file, in file order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def detections_of(case: dict[str, Any]) -> Detections:
    """The raw detections of a case, with the colour classifier's word on each box."""
    found = {}
    for name, rows in case["detections"].items():
        numbers = np.asarray(rows, dtype=np.float64).reshape(-1, 5)
        found[name] = ClassDetections(numbers[:, :4], numbers[:, 4], colors=tuple(case["colors"][name]))
    return Detections(found)
