"""The table of a report that fits a terminal."""

from __future__ import annotations

from typing import Any

from hyperbagel.evaluation.reports import brief


def report(**rows: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {"results": {benchmark: {"rows": found, "details": {}} for benchmark, found in rows.items()}}


def test_benchmarks_share_a_row_and_unknown_metrics_are_left_out() -> None:
    quality = report(
        geneval={
            "teacher": {"geneval/overall": 0.838, "nfe": 100, "geneval/colors": 0.9},
            "nfe6": {"geneval/overall": 0.83, "nfe": 6},
        },
        gedit={"nfe6": {"gedit/en/o": 7.63, "gedit/cn/o": 7.56, "nfe": 6}},
        understanding={"model": {"caption": 0.9}},
    )
    speed = report(speculation={"chain-4": {"speculation/tokens_per_second": 2037.4, "speculation/speedup": 3.4}})
    table = brief({"runs/a": quality, "runs/b": speed})
    assert dict(table.rows) == {
        "teacher": {"GenEval": "0.838", "NFE": "100"},
        "nfe6": {"GenEval": "0.830", "GEdit EN": "7.630", "GEdit CN": "7.560", "NFE": "6"},
        "chain-4": {"tokens/s": "2037.400", "of plain": "3.400"},
    }
    assert max(map(len, table.markdown().splitlines())) <= 100


def test_rows_of_one_name_are_told_apart_by_their_run() -> None:
    runs = {name: report(geneval={"nfe6": {"geneval/overall": value}}) for name, value in (("a", 0.8), ("b", 0.9))}
    assert list(brief(runs).rows) == ["a: nfe6", "b: nfe6"]
