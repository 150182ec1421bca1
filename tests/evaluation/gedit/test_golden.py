"""Agreement with the golden cases: the project's own copy, or any file of that format given by `--gedit-cases`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hyperbagel.evaluation.gedit.aggregate import SampleResult, aggregate, sample_result
from hyperbagel.evaluation.gedit.answers import read_answer
from hyperbagel.evaluation.gedit.questions import EditedPair, Question, ask_both
from hyperbagel.evaluation.gedit.samples import OFFICIAL_CATEGORIES, EditSample, JudgeScore

OWN_COPY = Path(__file__).parents[2] / "fixtures" / "gedit" / "cases_a.json"
TOLERANCE = 1e-9
IMAGE = Image.new("RGB", (4, 4))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a case, named by its id."""
    golden = json.loads((metafunc.config.getoption("--gedit-cases") or OWN_COPY).read_text(encoding="utf-8"))
    if "max_tries" in metafunc.fixturenames:
        metafunc.parametrize("max_tries", [golden["max_tries"]], ids=[""])
    for section, fixture in (("parse", "parse_case"), ("samples", "sample_case"), ("aggregate", "aggregate_case")):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, golden[section], ids=lambda case: case["id"])
    if "categories" in metafunc.fixturenames:
        metafunc.parametrize("categories", [golden["categories"]], ids=[""])


def scripted(outputs: dict[int, Sequence[str]]) -> Callable[[Question], str]:
    """A judge that answers from a script: outputs[2] to questions with two images, outputs[1] to those with one."""
    position = dict.fromkeys(outputs, 0)

    def ask(question: Question) -> str:
        count = len(question.images)
        answer = outputs[count][min(position[count], len(outputs[count]) - 1)]
        position[count] += 1
        return answer

    return ask


def judged(sc_outputs: Sequence[str], pq_outputs: Sequence[str], max_tries: int) -> JudgeScore:
    """The verdict from scripted answers."""
    return ask_both(scripted({2: sc_outputs, 1: pq_outputs}), EditedPair("edit it", IMAGE, IMAGE), max_tries)


def close(found: Any, expected: Any) -> bool:
    """Equal structure, numbers within the tolerance."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[name], expected[name]) for name in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    if expected is None or isinstance(expected, str):
        return bool(found == expected)
    return isinstance(found, int | float) and abs(found - expected) <= TOLERANCE


def test_reading_one_answer(parse_case: dict[str, Any]) -> None:
    answer = read_answer(parse_case["output"])
    found: dict[str, Any] = {"status": "ok" if answer.ok else "invalid"}
    if answer.ok:
        found |= {"scores": list(answer.scores), "min": min(answer.scores)}
    else:
        found["reason"] = str(answer.reason)
    assert close(found, parse_case["sane_behaviour"])


def test_judging_one_sample(sample_case: dict[str, Any], max_tries: int) -> None:
    verdict = judged(sample_case["sc_outputs"], sample_case["pq_outputs"], max_tries)
    found: dict[str, Any] = {"status": "missing" if verdict.o is None else "scored"}
    if verdict.o is not None:
        found |= {"SC": verdict.sc, "PQ": verdict.pq, "O": verdict.o}
    found["asked"] = {"sc": verdict.consistency.asked, "pq": verdict.quality.asked}
    assert close(found, sample_case["sane_behaviour"])


def test_aggregating_a_set(aggregate_case: dict[str, Any], max_tries: int, categories: list[str]) -> None:
    rows: list[SampleResult] = []
    for key, category, language, intersection, sc_outputs, pq_outputs, expected in aggregate_case["rows"]:
        sample = EditSample(key, category, language, "edit it", IMAGE, intersection)
        row = sample_result(sample, judged(sc_outputs, pq_outputs, max_tries))
        assert close(None if row.missing else [row.sc, row.pq, row.o], expected), key
        rows.append(row)

    found = {
        language: {name: scores.to_dict() for name, scores in sets.items()}
        for language, sets in aggregate(rows, categories).items()
    }
    assert found.keys() == aggregate_case["expected"].keys()
    for language, sets in aggregate_case["expected"].items():
        for name, expected in sets.items():
            for part in ("categories", "average", "empty_categories"):
                assert close(found[language][name][part], expected[part]), (language, name, part)


def test_categories_are_the_official_ones(categories: list[str]) -> None:
    assert tuple(categories) == OFFICIAL_CATEGORIES
