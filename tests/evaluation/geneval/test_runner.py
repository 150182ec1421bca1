"""A whole run over drawings with known faults: noise pairing, missing images, splitting, reports, comparison."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from hyperbagel.evaluation.geneval import (
    GenEvalReport,
    PromptSet,
    RunSettings,
    Scorer,
    Vocabulary,
    build_report,
    compare,
    evaluate,
    generate_prompts,
    jobs,
    judge_jobs,
    run_info,
)
from hyperbagel.evaluation.geneval.prompts import GenEvalPrompt, parse_prompt
from hyperbagel.evaluation.geneval.protocol import Detections
from hyperbagel.evaluation.geneval.scene_detector import SceneDetector
from hyperbagel.scenes.drawing import draw
from hyperbagel.scenes.palette import SHAPES
from hyperbagel.scenes.prompts import GENEVAL_COUNTS, random_prompt
from hyperbagel.scenes.world import Scene, SceneObject

MIX = {"single_object": 4, "two_object": 4, "counting": 4, "colors": 6, "position": 6, "color_attr": 6}
PROMPTS = generate_prompts(Vocabulary(SHAPES, counts=(2, 3)), MIX, seed=1)
PLACES = {"left of": (16, 32), "right of": (48, 32), "above": (32, 16), "below": (32, 48)}


class Painter:
    """Draws what a prompt asks for; each image fails with probability `fault` (an empty picture), by its seed."""

    def __init__(self, prompts: PromptSet, fault: float = 0.0, lost: float = 0.0) -> None:
        self.by_text = {prompt.prompt: prompt for prompt in prompts.prompts}
        self.fault, self.lost = fault, lost
        self.seeds: list[int] = []

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Tensor | None]:
        self.seeds += seeds
        return [self.paint(self.by_text[prompt], Random(seed)) for prompt, seed in zip(prompts, seeds, strict=True)]

    def paint(self, prompt: GenEvalPrompt, rng: Random) -> Tensor | None:
        luck = rng.random()
        objects = [] if luck < self.fault else self.objects(prompt)
        if luck > 1 - self.lost:
            return None
        return torch.from_numpy(draw(Scene(tuple(objects), "gray"))).permute(2, 0, 1)

    def objects(self, prompt: GenEvalPrompt) -> list[SceneObject]:
        corners = iter([(16, 48), (48, 16), (16, 16), (48, 48)])
        found = []
        for clause in prompt.include:
            for _ in range(clause.count):
                x, y = next(corners)
                if prompt.tag == "position":
                    x, y = PLACES[clause.position.relation] if clause.position else (32, 32)
                found.append(SceneObject(clause.class_name, clause.color or "green", "small", float(x), float(y), 7.0))
        return found


def run(painter: Painter, **changes: int) -> GenEvalReport:
    return evaluate(painter, PROMPTS, SceneDetector(), RunSettings(**{"images_per_prompt": 2, **changes}))


def test_a_perfect_painter_scores_one_in_every_task() -> None:
    report = run(Painter(PROMPTS))
    assert report.metrics() == {f"geneval/{tag}": 1.0 for tag in (*MIX, "overall")}
    assert (report.missing, len(report.results)) == (0, 60)
    assert report.summary.total_prompts == len({prompt.metadata for prompt in PROMPTS.prompts})


def test_scenes_made_for_their_own_prompts_are_all_correct() -> None:
    rng = Random(0)
    claims = [random_prompt("test", rng, tag) for tag in GENEVAL_COUNTS for _ in range(10)]
    prompts = PromptSet.from_metadata([claim.metadata() for claim, _ in claims], "scenes")
    pictures = [torch.from_numpy(draw(scene)).permute(2, 0, 1) for _, scene in claims]
    verdicts = Scorer(SceneDetector()).judge(pictures, prompts.prompts)
    assert all(verdict.correct for verdict in verdicts)
    shifted = Scorer(SceneDetector()).judge([*pictures[1:], pictures[0]], prompts.prompts)
    assert sum(verdict.correct for verdict in shifted) < len(shifted) / 2


def test_faults_lower_the_scores_and_are_explained() -> None:
    report = run(Painter(PROMPTS, fault=0.5))
    assert 0.2 < report.overall.estimate < 0.8
    assert report.overall.low < report.overall.estimate < report.overall.high
    assert report.overall.estimate == pytest.approx(report.summary.overall)
    assert report.metrics()["geneval/colors"] == report.summary.tasks["colors"].score
    assert set(report.reasons()["counting"]) == {"too_few"}


def test_noise_does_not_depend_on_batches_or_processes() -> None:
    first, second = Painter(PROMPTS, fault=0.5), Painter(PROMPTS, fault=0.5)
    report = run(first, batch_size=7)
    assert len(set(first.seeds)) == 60
    assert report.results == run(second, batch_size=16).results
    assert first.seeds == second.seeds
    settings = RunSettings(images_per_prompt=2)
    wanted = jobs(PROMPTS, settings)
    painter, scorer = Painter(PROMPTS, fault=0.5), Scorer(SceneDetector())
    shares = [judge_jobs(wanted[rank::3], painter, PROMPTS, scorer, batch_size=4) for rank in range(3)]
    gathered = [result for share in shares for result in share]
    assert build_report(gathered, run_info(PROMPTS, settings)) == report
    assert run(Painter(PROMPTS, fault=0.5), seed=1).results != report.results


def test_missing_images_are_counted_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        report = run(Painter(PROMPTS, lost=0.2))
    assert report.missing > 0
    assert report.overall.estimate == 1.0
    assert f"{report.missing} of 60 images are missing" in caplog.text
    assert f"MISSING: {report.missing} of 60 images" in report.lines()


def test_a_report_survives_json_and_says_which_prompts(tmp_path: Path) -> None:
    report = run(Painter(PROMPTS, fault=0.3))
    report.save(tmp_path / "report.json")
    assert GenEvalReport.load(tmp_path / "report.json") == report
    info = json.loads((tmp_path / "report.json").read_text())["info"]
    assert (info["prompts_sha256"], info["number_of_prompts"]) == (PROMPTS.sha256, len(PROMPTS))
    with pytest.raises(ValueError, match="not a GenEval report"):
        GenEvalReport.from_dict({"info": {}})


def test_paired_comparison_is_sharper_than_two_intervals() -> None:
    good, bad = run(Painter(PROMPTS, fault=0.4)), run(Painter(PROMPTS, fault=0.6))
    result = compare(good, bad)
    assert result.images == 60
    assert result.overall.estimate == pytest.approx(good.overall.estimate - bad.overall.estimate)
    assert result.overall.low > 0
    assert result.overall.high - result.overall.low < good.overall.high - good.overall.low
    assert compare(good, good).overall.high == 0
    assert set(result.tasks) == set(MIX)


def test_only_pairs_are_compared() -> None:
    report = run(Painter(PROMPTS))
    with pytest.raises(ValueError, match="seed is 0 and 1"):
        compare(report, run(Painter(PROMPTS), seed=1))
    others = generate_prompts(Vocabulary(SHAPES), {"colors": 2}, seed=9)
    with pytest.raises(ValueError, match="prompts_sha256"):
        compare(report, evaluate(Painter(others), others, SceneDetector(), RunSettings(images_per_prompt=2)))


def test_prompts_that_can_not_be_judged_are_refused_before_generating() -> None:
    painter = Painter(PROMPTS)
    for clause, message in (({"class": "dog"}, "class 'dog'"), ({"class": "star", "color": "teal"}, "colour 'teal'")):
        prompt = parse_prompt({"tag": "colors", "include": [{"count": 1, **clause}], "prompt": "-"})
        with pytest.raises(ValueError, match=message):
            evaluate(painter, PromptSet.of([prompt], "own"), SceneDetector())
    assert painter.seeds == []


def test_bad_runs_are_refused() -> None:
    class Blind:
        classes = SHAPES

        def detect(self, images: Sequence[Tensor]) -> list[Detections]:
            return [Detections() for _ in images]

    with pytest.raises(ValueError, match="Blind names no colours"):
        Scorer(Blind())
    with pytest.raises(ValueError, match="asked for 16 images, got 0"):
        evaluate(lambda prompts, seeds: [], PROMPTS, SceneDetector())
    with pytest.raises(ValueError, match="no judged images"):
        evaluate(lambda prompts, seeds: [None] * len(seeds), PROMPTS, SceneDetector())
    with pytest.raises(ValueError, match="at least 1"):
        RunSettings(images_per_prompt=0)
    report = run(Painter(PROMPTS))
    with pytest.raises(ValueError, match="image 0 of prompt 0 was judged twice"):
        build_report([*report.results, report.results[0]], report.info)
