import json
from random import Random

import pytest

from hyperbagel.evaluation.understanding import (
    UnderstandingSample,
    document_samples,
    evaluate_understanding,
    normalized,
)
from hyperbagel.scenes.captions import caption, caption_facts
from hyperbagel.scenes.documents import sample
from hyperbagel.scenes.questions import understanding_scene

SCENES = [understanding_scene("test", Random(i)) for i in range(20)]


def caption_sample(i: int) -> UnderstandingSample:
    return UnderstandingSample(f"c{i}", "caption", "Describe it.", caption(SCENES[i]))


def yes_no(key: str, answer: str) -> UnderstandingSample:
    return UnderstandingSample(key, "yes_no", "Does this picture show a star?", answer)


def test_reference_answers_are_all_right() -> None:
    samples = [
        one
        for kind in ("caption", "question", "yes_no", "dialogue", "generation", "editing")
        for index in range(15)
        for drawn in [sample("test", 0, index, kind)]
        for one in document_samples(drawn.key, drawn.document)
    ]
    report = evaluate_understanding([s.answer for s in samples], samples)
    assert report.metrics() == {"understanding/caption": 1, "understanding/question": 1, "understanding/yes_no": 1}
    assert report.kinds["caption"].n == 15
    assert report.kinds["question"].n + report.kinds["yes_no"].n > 60
    assert {"yes_no/yes", "yes_no/no", "question/color"} <= report.topics.keys()
    assert all(accuracy.unreadable == 0 for accuracy in report.kinds.values())
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_wrong_fact_weighs_once() -> None:
    wanted = caption_sample(0)
    truth = SCENES[0].background
    other = "mint" if truth != "mint" else "gray"
    accuracy = evaluate_understanding([wanted.answer.replace(truth, other)], [wanted]).kinds["caption"]
    total = len(caption_facts(SCENES[0]))
    assert (accuracy.right, accuracy.wrong, accuracy.missed) == (total - 1, 1, 1)
    assert accuracy.share.estimate == pytest.approx((total - 1) / total)


def test_captions_cannot_gain_by_silence_or_chatter() -> None:
    wanted = caption_sample(1)
    total = len(caption_facts(SCENES[1]))
    for answer, right, wrong, missed in (
        (wanted.answer.split(". ")[0] + ".", 2, 0, total - 2),
        (wanted.answer + " What a nice picture.", total, 1, 0),
        (wanted.answer + " " + wanted.answer, total, total, 0),
        ("", 0, 0, total),
    ):
        accuracy = evaluate_understanding([answer], [wanted]).kinds["caption"]
        assert (accuracy.right, accuracy.wrong, accuracy.missed) == (right, wrong, missed)
        assert accuracy.share.estimate == pytest.approx(right / max(right + wrong, total))
        assert accuracy.unreadable == (right == 0)


@pytest.mark.parametrize(
    ("said", "right", "unreadable"),
    [
        ("yes", 1, 0), ("Yes.", 1, 0), (" yes, it does", 1, 0), ("no", 0, 0), ("No, there is no star. yes?", 0, 0),
        ("maybe", 0, 1), ("", 0, 1), ("yesterday", 0, 1), ("not sure", 0, 1),
    ],
)  # fmt: skip
def test_yes_no(said: str, right: int, unreadable: int) -> None:
    accuracy = evaluate_understanding([said], [yes_no("k", "yes")]).kinds["yes_no"]
    assert (accuracy.right, accuracy.wrong, accuracy.unreadable) == (right, 1 - right, unreadable)


def test_short_answers() -> None:
    assert normalized(" The  Top left. ") == "top left"
    assert normalized("a") == "a"
    wanted = UnderstandingSample("k", "question", "Where is it?", "top left", "place")
    accuracy = evaluate_understanding(["top left corner"], [wanted]).kinds["question"]
    assert (accuracy.right, accuracy.wrong) == (0, 1)


def test_interval_resamples_documents() -> None:
    """Answers about one picture are not independent: ten copies of a question tell no more than one."""
    single = [yes_no(f"k{i}", "yes") for i in range(20)]
    answers = ["yes" if i % 2 else "no" for i in range(20)]
    copied = [one for one in single for _ in range(10)]
    one = evaluate_understanding(answers, single).kinds["yes_no"].share
    ten = evaluate_understanding([a for a in answers for _ in range(10)], copied).kinds["yes_no"].share
    assert one.low < 0.5 < one.high
    assert (ten.estimate, ten.low, ten.high) == pytest.approx((one.estimate, one.low, one.high))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="unknown kind 'poem'"):
        UnderstandingSample("k", "poem", "", "")
    with pytest.raises(ValueError, match="cannot be 'perhaps'"):
        yes_no("k", "perhaps")
    with pytest.raises(ValueError, match="2 answers, 1 samples"):
        evaluate_understanding(["yes", "no"], [yes_no("k", "yes")])
    with pytest.raises(ValueError, match="0 samples"):
        evaluate_understanding([], [])
    document = {"segments": [{"type": "text", "text": "?"}, {"type": "text", "text": "red", "loss": True}]}
    with pytest.raises(ValueError, match="2 topics for 1 answers"):
        document_samples("d", {**document, "meta": {"topics": ["color", "size"]}})
