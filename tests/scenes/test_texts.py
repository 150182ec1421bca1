"""Captions, claims, prompts and questions say what the scenes show."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations
from random import Random

import pytest

from hyperbagel.scenes import (
    COLORS,
    GENEVAL_COUNTS,
    PLACES,
    SHAPES,
    Claim,
    Noun,
    Scene,
    SceneObject,
    caption,
    caption_facts,
    geneval_prompts,
    load_tokenizer,
    parse_caption,
    random_prompt,
    relations,
    sample,
    scene_of,
    yes_no_question,
)
from hyperbagel.scenes.heldout import HELD_OUT_PAIRS
from hyperbagel.scenes.palette import NUMBERS
from hyperbagel.scenes.questions import understanding_scene

STAR = SceneObject("star", "blue", "large", 46, 32, 12)
CIRCLE = SceneObject("circle", "red", "small", 12, 30, 8)
SCENE = Scene((STAR, CIRCLE), "mint")


def check_captions(count: int) -> None:
    """Each caption's facts, read from the text alone, are those of the picture's objects and their geometry."""
    for i in range(count):
        document = sample(("train", "test")[i % 2], 11, i, "caption").document
        scene = Scene.from_dict(document["meta"]["scenes"][0])
        facts = parse_caption(document["segments"][-1]["text"])
        assert facts == caption_facts(scene)
        count_fact, background, *rest = facts
        assert count_fact == ("count", NUMBERS[len(scene.objects)]) and background == ("background", scene.background)
        order = dict(zip(("first", "second", "third", "fourth"), scene.objects, strict=False))
        for fact in rest:
            item = order[fact[1]]
            if fact[0] == "relation":
                assert fact[2] in relations(item, order[fact[3]])
            elif fact[0] == "place":
                row = {"top": 0, "bottom": 2}.get(fact[2].split()[0], 1)
                column = {"left": 0, "right": 2}.get(fact[2].split()[-1], 1)
                assert row * 64 / 3 < item.y < (row + 1) * 64 / 3 and column * 64 / 3 < item.x < (column + 1) * 64 / 3
            else:
                assert fact[2] == getattr(item, fact[0])
        assert len(rest) == 4 * len(scene.objects) + len(scene.objects) - 1


def test_captions_agree_with_scenes() -> None:
    check_captions(1000)


@pytest.mark.slow
def test_captions_agree_with_ten_thousand_scenes() -> None:
    check_captions(10_000)


def test_canonical_wording() -> None:
    assert caption(SCENE) == (
        "The picture shows exactly two objects on a plain mint background. First, a small red circle in the center "
        "left. Second, a large blue star in the center right. The first is left of the second."
    )


def test_captions_have_40_to_80_tokens() -> None:
    tokenizer = load_tokenizer()
    for i in range(400):
        document = sample("train", 2, i, "caption").document
        objects = len(document["meta"]["scenes"][0]["objects"])
        length = len(tokenizer.encode(document["segments"][-1]["text"]).ids)
        assert (40 if objects > 1 else 20) <= length <= 80


def test_wrong_captions_have_wrong_facts() -> None:
    truth = set(caption_facts(SCENE))
    text = caption(SCENE).replace("red circle", "green circle").replace("is left of", "is above")
    assert set(parse_caption(text)) - truth == {("color", "first", "green"), ("relation", "first", "above", "second")}
    broken = parse_caption("The picture shows exactly two red. First, a small red circle in the center left")
    assert broken[0] == ("unparsed", "the picture shows exactly two red") and set(broken[1:]) <= truth
    assert parse_caption("") == ()


def test_claim_wording_and_metadata() -> None:
    claim = Claim((Noun("circle", "orange"), Noun("ring")), "right of", tag="position")
    assert claim.metadata() == {
        "tag": "position",
        "include": [
            {"class": "ring", "count": 1},
            {"class": "circle", "count": 1, "color": "orange", "position": ["right of", 0]},
        ],
        "prompt": "a photo of an orange circle right of a ring",
    }
    counting = Claim((Noun("cross", count=3),), tag="counting").metadata()
    assert counting["prompt"] == "a photo of three crosses"
    assert counting["include"] == [{"class": "cross", "count": 3}]
    assert counting["exclude"] == [{"class": "cross", "count": 4}]
    rich = Claim((Noun("circle", "red", "small", count=2), Noun("star", place="top left")), background="azure")
    assert rich.text() == "two small red circles and a star in the top left on an azure background"


@pytest.mark.parametrize(
    ("claim", "truth"),
    [
        (Claim((Noun("circle", "red"),)), True),
        (Claim((Noun("circle", "blue"),)), False),
        (Claim((Noun("circle"), Noun("star")), "left of"), True),
        (Claim((Noun("star"), Noun("circle")), "left of"), False),
        (Claim((Noun("star", "blue"), Noun("circle", "red")), "right of"), True),
        (Claim((Noun("star", "red"), Noun("circle", "blue"))), False),
        (Claim((Noun("star", size="large", place="center right"),)), True),
        (Claim((Noun("star", size="small"),)), False),
        (Claim((Noun("circle", count=2),)), False),
        (Claim((Noun("circle"),), background="mint"), True),
        (Claim((Noun("circle"),), background="gray"), False),
    ],
)
def test_truth_of_claims(claim: Claim, truth: bool) -> None:
    assert claim.is_true(SCENE) == truth
    assert claim.is_false(SCENE) != truth


def test_counts_are_exact_and_near_relations_undecided() -> None:
    twins = Scene((CIRCLE, SceneObject("circle", "blue", "small", 46, 52, 8), replace(STAR, y=15)), "gray")
    assert Claim((Noun("circle", count=2),)).is_true(twins)
    assert Claim((Noun("circle", count=3),)).is_false(twins)
    a, b = SceneObject("ring", "red", "small", 28, 10, 8), SceneObject("cross", "red", "small", 44, 40, 8)
    between = Claim((Noun("ring"), Noun("cross")), "left of")  # 0.376 by GenEval's rule: neither true nor clearly false
    assert not between.is_true(Scene((a, b), "gray")) and not between.is_false(Scene((a, b), "gray"))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_prompt_scenes_show_exactly_what_the_prompt_says(split: str) -> None:
    rng = Random(1)
    tags = Counter()
    for _ in range(600):
        claim, scene = random_prompt(split, rng)
        tags[claim.tag] += 1
        assert claim.is_true(scene)
        assert len(scene.objects) == sum(noun.count for noun in claim.nouns)
        assert not claim.is_held_out(split)
    assert set(tags) == {*GENEVAL_COUNTS, "caption"}


def test_contradictory_prompts_are_refused() -> None:
    nouns = (Noun("ring", place="top left"), Noun("cross", place="top right"))
    with pytest.raises(ValueError, match="no test scene fulfils"):
        scene_of(Claim(nouns, "right of"), "test", Random(0))
    with pytest.raises(ValueError, match="no train scene fulfils"):
        scene_of(Claim((Noun("square", "blue"),)), "train", Random(0))


def test_the_test_set_has_the_official_mix() -> None:
    prompts = geneval_prompts()
    assert Counter(p["tag"] for p in prompts) == GENEVAL_COUNTS and len(prompts) == 553
    assert prompts == geneval_prompts() and prompts != geneval_prompts(seed=1)
    texts = {tag: [p["prompt"] for p in prompts if p["tag"] == tag] for tag in GENEVAL_COUNTS}
    assert len(set(texts["position"])) == len(set(texts["color_attr"])) == 100
    assert {tag: len(set(texts[tag])) for tag in ("single_object", "two_object", "counting", "colors")} == {
        "single_object": 8, "two_object": 56, "counting": 24, "colors": 80,
    }  # fmt: skip
    for color, shape in HELD_OUT_PAIRS["test"]:
        assert any(f"{color} {shape}" in text for text in texts["colors"])
    with pytest.raises(ValueError, match="unknown GenEval task"):
        geneval_prompts(counts={"poems": 3})


def test_validation_prompts_ask_for_nothing_that_is_kept_for_the_test() -> None:
    prompts = geneval_prompts("val")
    texts = {p["prompt"] for p in prompts}
    assert Counter(p["tag"] for p in prompts) == GENEVAL_COUNTS
    assert not any(f"{color} {shape}" in text for color, shape in HELD_OUT_PAIRS["test"] for text in texts)
    for color, shape in HELD_OUT_PAIRS["val"]:
        assert any(f"{color} {shape}" in text for text in texts)
    tested = {p["prompt"] for p in geneval_prompts("test") if p["tag"] == "color_attr"}
    assert len(texts & tested) < 10
    with pytest.raises(ValueError, match="unknown split 'valid': use train, val or test"):
        geneval_prompts("valid")


def right_answers(topic: str, question: str, scene: Scene) -> set[str]:
    """Answers that an independent reading of the question allows."""
    place = max((place for place in PLACES if f" in the {place}" in question), key=len, default=None)
    words = set(question.removesuffix("?").split())
    words |= {word.removesuffix("es") if word == "crosses" else word.removesuffix("s") for word in words}
    fits = [
        o
        for o in scene.objects
        if words & set(SHAPES) <= {o.shape} and words & set(COLORS) <= {o.color} and place in (None, scene.place(o))
    ]
    if topic == "count":
        return {NUMBERS[len(fits)]}
    if topic == "background":
        return {scene.background}
    return {scene.place(o) if topic == "place" else getattr(o, topic) for o in fits}


def test_questions_have_one_right_answer() -> None:
    topics: Counter[str] = Counter()
    for i in range(1500):
        document = sample("train", 3, i, "question").document
        scene = Scene.from_dict(document["meta"]["scenes"][0])
        topic, question, answer = document["meta"]["topics"][0], *(s["text"] for s in document["segments"][1:])
        topics[topic] += 1
        assert right_answers(topic, question, scene) == {answer}, (question, scene)
    assert set(topics) == {"count", "color", "place", "shape", "size", "background"}
    assert min(topics.values()) > 50


def test_yes_no_questions_are_balanced_and_right() -> None:
    rng = Random(4)
    answers = Counter()
    for _ in range(800):
        scene = understanding_scene("train", rng)
        question = yes_no_question(scene, "train", rng)
        answers[question.answer] += 1
        for color, shape in HELD_OUT_PAIRS["val"] | HELD_OUT_PAIRS["test"]:
            assert f"{color} {shape}" not in question.text
    assert answers["yes"] / 800 == pytest.approx(0.5, abs=0.06)
    assert set(answers) == {"yes", "no"}


def test_yes_no_questions_agree_with_the_scene() -> None:
    """Pairs and relations, read back from the text."""
    rng, read = Random(5), 0
    for _ in range(600):
        scene = understanding_scene("test", rng)
        question = yes_no_question(scene, "test", rng)
        text = question.text.removeprefix("Does this picture show ").removesuffix("?")
        joint = next((j for j in ("left of", "right of", "above", "below", "and") if f" {j} " in text), None)
        if joint is None:
            continue
        read += 1
        left, right = (phrase.split()[1:] for phrase in text.split(f" {joint} "))

        def fits(words: list[str], o: SceneObject) -> bool:
            return words[-1] == o.shape and (len(words) == 1 or words[0] == o.color)

        shown = any(
            fits(left, a) and fits(right, b) and (joint == "and" or joint in relations(a, b))
            for a, b in permutations(scene.objects, 2)
        )
        assert shown == (question.answer == "yes"), (question, scene)
    assert read > 100
