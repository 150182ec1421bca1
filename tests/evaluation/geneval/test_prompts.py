"""Official metadata files are read as they are, broken ones are refused with line and key, new ones are well formed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hyperbagel.evaluation.geneval.prompt_generator import OFFICIAL_MIX, Vocabulary, generate_prompts
from hyperbagel.evaluation.geneval.prompts import PromptError, PromptSet, parse_prompt, read_prompts
from hyperbagel.scenes.prompts import geneval_prompts

from .golden import CASES, read_cases

GOOD = {
    "tag": "position",
    "include": [{"class": "dog", "count": 1}, {"class": "tie", "count": 1, "position": ["above", 0]}],
    "prompt": "a photo of a tie above a dog",
}
SHAPES = ("circle", "square", "cross", "heart")


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_metadata_of_all_golden_cases_survives_a_file(tmp_path: Path) -> None:
    rows = [case["metadata"] for case in read_cases(CASES)]
    prompts = read_prompts(write(tmp_path / "evaluation_metadata.jsonl", *rows))
    assert [json.loads(prompt.metadata) for prompt in prompts.prompts] == rows
    assert [prompt.prompt for prompt in prompts.prompts] == [row["prompt"] for row in rows]
    assert prompts.name == "evaluation_metadata.jsonl"
    prompts.save(tmp_path / "again.jsonl")
    assert read_prompts(tmp_path / "again.jsonl").sha256 == prompts.sha256


def test_line_separators_inside_of_prompts_end_no_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    row = json.dumps(GOOD | {"prompt": "a photo\u2028of a bench\x85"}, ensure_ascii=False)
    path.write_bytes(f"\ufeff{row}\r\n\r\n{row}".encode())
    assert [prompt.prompt for prompt in read_prompts(path).prompts] == ["a photo\u2028of a bench\x85"] * 2


def test_rewritten_prompts_may_carry_more_keys_and_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "long.jsonl", {**GOOD, "note": "rewritten"}, "", GOOD)
    assert len(read_prompts(path)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": "colour"}, "key tag: expected one of single_object"),
        ({"include": None}, r"key include: expected a list"),
        ({"include": []}, "key include: needs at least one"),
        ({"include": ["dog"]}, r"key include\[0\]: expected an object"),
        ({"include": [{"count": 1}]}, r"key include\[0\], key class: expected a text, got None"),
        ({"include": [{"class": "dog", "count": 0}]}, r"key include\[0\], key count: expected a whole number"),
        ({"include": [{"class": "dog", "count": True}]}, r"key count: expected a whole number"),
        ({"include": [{"class": "dog", "count": 1, "colour": "red"}]}, "unknown key 'colour'"),
        ({"include": [{"class": "dog", "count": 1, "color": 3}]}, "key color: expected a text, got 3"),
        ({"include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}, "index of an earlier include clause"),
        (
            {"include": [GOOD["include"][0], {"class": "a", "count": 1, "position": ["over", 0]}]},
            "expected one of left",
        ),
        ({"include": [GOOD["include"][0], {"class": "a", "count": 1, "position": "above"}]}, "relation, index"),
        ({"exclude": [{"class": "dog"}]}, r"key exclude\[0\], key count"),
        ({"prompt": " "}, "key prompt: expected a text"),
    ],
)
def test_a_broken_prompt_is_refused_with_line_and_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "p.jsonl", GOOD, {**GOOD, **change})
    with pytest.raises(PromptError, match=r"p\.jsonl, line 2.*" + message):
        read_prompts(path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give a metadata file"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(PromptError, match="line 1: not JSON"):
        read_prompts(write(tmp_path / "a.jsonl", "{"))
    with pytest.raises(PromptError, match="no prompts"):
        read_prompts(write(tmp_path / "b.jsonl"))
    with pytest.raises(PromptError, match="expected an object with tag"):
        read_prompts(write(tmp_path / "c.jsonl", [1]))


def test_a_thinned_set_keeps_the_shares_of_the_tasks() -> None:
    prompts = PromptSet.from_metadata(geneval_prompts(), "scenes test")
    few = prompts.thinned(60)
    assert len(few) == 60
    shares = Counter(prompt.tag for prompt in few.prompts)
    assert all(abs(shares[tag] - 60 * number / 553) <= 1 for tag, number in OFFICIAL_MIX.items())
    assert few.sha256 != prompts.sha256
    assert "60 of 553" in few.name
    assert prompts.thinned(1000) is prompts
    with pytest.raises(PromptError, match="mine, prompt 1, key tag"):
        PromptSet.from_metadata([GOOD, {}], "mine")


def test_generated_prompts_have_the_official_mix_and_wording() -> None:
    prompts = generate_prompts(Vocabulary(SHAPES), seed=3)
    assert Counter(prompt.tag for prompt in prompts.prompts) == OFFICIAL_MIX
    assert len(prompts) == 553
    texts = {prompt.prompt for prompt in prompts.prompts}
    assert {"a photo of a circle", "a photo of three crosses", "a photo of an orange heart"} <= texts
    placed = next(prompt for prompt in prompts.prompts if prompt.tag == "position")
    target, figure = placed.include
    assert figure.position is not None
    assert figure.position.target == 0
    assert placed.prompt == f"a photo of a {figure.class_name} {figure.position.relation} a {target.class_name}"
    for prompt in prompts.prompts:
        if prompt.tag == "counting":
            assert prompt.exclude[0].count == prompt.include[0].count + 1
        assert parse_prompt(json.loads(prompt.metadata)) == prompt


def test_generated_prompts_repeat_only_when_a_task_is_exhausted() -> None:
    prompts = generate_prompts(Vocabulary(SHAPES), {"single_object": 6, "color_attr": 60})
    single = [prompt.metadata for prompt in prompts.prompts if prompt.tag == "single_object"]
    assert len(set(single)) == len(SHAPES)
    assert len({prompt.metadata for prompt in prompts.prompts}) == len(SHAPES) + 60


def test_generated_prompts_follow_seed_and_filter() -> None:
    vocabulary = Vocabulary((*SHAPES, "person"))
    mix = {"colors": 20}
    assert generate_prompts(vocabulary, mix, 1) == generate_prompts(vocabulary, mix, 1)
    assert generate_prompts(vocabulary, mix, 1).sha256 != generate_prompts(vocabulary, mix, 2).sha256
    red = generate_prompts(vocabulary, mix, accept=lambda prompt: prompt.colors == {"red"})
    assert {prompt.include[0].color for prompt in red.prompts} == {"red"}
    assert all(prompt.include[0].class_name != "person" for prompt in generate_prompts(vocabulary, mix).prompts)
    with pytest.raises(ValueError, match="no colors prompt is acceptable"):
        generate_prompts(vocabulary, mix, accept=lambda prompt: False)


def test_impossible_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match="two objects"):
        Vocabulary(("dog", "person"))
    with pytest.raises(ValueError, match="counts"):
        Vocabulary(SHAPES, counts=(11,))
    with pytest.raises(ValueError, match="unknown GenEval task 'colour'"):
        generate_prompts(Vocabulary(SHAPES), {"colour": 1})
