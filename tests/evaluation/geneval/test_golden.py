"""Agreement with the official scripts on golden files; further files come by --geneval-cases and --geneval-summary."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hyperbagel.evaluation.geneval.prompts import parse_prompt
from hyperbagel.evaluation.geneval.protocol import ClassDetections
from hyperbagel.evaluation.geneval.rules import judge
from hyperbagel.evaluation.geneval.summary import ScoredImage, summarize

from .golden import CASES, SUMMARIES, detections_of, read_cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a golden case and one a golden summary."""
    given_cases = metafunc.config.getoption("--geneval-cases")
    if "case" in metafunc.fixturenames:
        cases = read_cases(given_cases or CASES)
        metafunc.parametrize("case", cases, ids=[case["id"] for case in cases])
    if "summary" in metafunc.fixturenames:
        path = metafunc.config.getoption("--geneval-summary") or SUMMARIES
        summaries = json.loads(path.read_text(encoding="utf-8"))["cases"]
        for summary in summaries:
            if "results" not in summary:
                # The rows of such a summary are the cases of the file that lies beside it.
                beside = path.with_name(summary["results_from"])
                source = beside if beside.is_file() else given_cases
                summary["judged"] = read_cases(source) if source else None
        metafunc.parametrize("summary", summaries, ids=[summary["id"] for summary in summaries])


def test_verdict_and_reasons_are_the_official_ones(case: dict[str, Any]) -> None:
    def classify(class_name: str, found: ClassDetections) -> tuple[str, ...]:
        assert found.colors is not None
        return found.colors

    verdict = judge(parse_prompt(case["metadata"], case["id"]), detections_of(case), classify)
    assert verdict.correct == case["correct"]
    assert [str(reason) for reason in verdict.reasons] == case["reasons"]


def test_summary_is_the_official_one(summary: dict[str, Any]) -> None:
    if "results" in summary:
        images = [ScoredImage(tag, summary["metadata"][index], correct) for tag, index, correct in summary["results"]]
    elif summary["judged"] is None:
        pytest.skip(f"{summary['results_from']} is not there")
    else:
        images = [
            ScoredImage(case["metadata"]["tag"], json.dumps(case["metadata"]), case["correct"])
            for case in summary["judged"]
        ]
    result = summarize(images)
    expected = dict(summary["expected"])
    assert result.lines() == expected.pop("printed")
    assert list(result.tasks) == list(expected["tasks"])
    tasks = expected.pop("tasks")
    actual = result.to_dict()
    assert actual.pop("tasks") == {tag: pytest.approx(task, abs=1e-12) for tag, task in tasks.items()}
    assert actual == pytest.approx(expected, abs=1e-12)
