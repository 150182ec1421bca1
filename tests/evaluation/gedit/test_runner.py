import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from hyperbagel.evaluation.gedit.report import GEditReport, compare
from hyperbagel.evaluation.gedit.runner import GEditSettings, evaluate, report, sample_seed, score_samples
from hyperbagel.evaluation.gedit.samples import EditSample, JudgeScore, Rating

KINDS = ("recolor", "remove")


def sample(number: int, language: str = "en", category: str = "recolor", intersection: bool = True) -> EditSample:
    source = Image.new("RGB", (4, 4), (number, 0, 0))
    return EditSample(f"s{number}", category, language, f"edit {number}", source, intersection)


SAMPLES = [sample(i, language, KINDS[i % 2], i < 3) for i in range(4) for language in ("en", "cn")]
SETTINGS = GEditSettings(KINDS, seed=7, batch_size=3)


def copy_source(samples: Sequence[EditSample], seeds: Sequence[int]) -> list[Image.Image | None]:
    return [sample.source for sample in samples]


class CountingJudge:
    """SC is the number of the edit (its red value), PQ is 4; fails on demand."""

    name, version = "counting", "1"

    def __init__(self, fail_at: int | None = None) -> None:
        self.asked: list[str] = []
        self.fail_at = fail_at

    def score(self, instruction: str, source: Image.Image, edited: Image.Image) -> JudgeScore:
        if len(self.asked) == self.fail_at:
            raise RuntimeError("the judge broke")
        self.asked.append(instruction)
        return JudgeScore(Rating((float(edited.getpixel((0, 0))[0]), 9.0)), Rating((4.0,)))


def test_report() -> None:
    result = evaluate(copy_source, SAMPLES, CountingJudge(), SETTINGS)
    english = result.scores["en"]
    assert english["full"].categories["recolor"].means.o == (math.sqrt(0 * 4) + math.sqrt(2 * 4)) / 2
    assert english["full"].average.sc == ((0 + 2) / 2 + (1 + 3) / 2) / 2
    assert english["intersection"].categories["remove"].n == 1
    assert result.metrics()["gedit/sc"] == result.metrics()["gedit/en/sc"] == 1.5
    assert result.metrics()["gedit/missing"] == 0
    assert (result.judge, result.judge_version) == ("counting", "1")
    interval = result.intervals()["en"]
    assert interval.estimate == pytest.approx(english["full"].average.o)
    assert interval.low < interval.estimate < interval.high
    saved = json.loads(json.dumps(result.to_dict(), allow_nan=False))  # absent figures are null
    assert saved["scores"]["cn"]["full"]["average"]["PQ"] == 4
    assert len(saved["samples"]) == 8
    assert saved["judge"].keys() == {"name", "version", "date"}
    assert GEditReport.from_dict(saved) == result
    with pytest.raises(ValueError, match="not a GEdit report"):
        GEditReport.from_dict({"judge": saved["judge"]})


def test_runs_are_compared_only_in_pairs() -> None:
    result = evaluate(copy_source, SAMPLES, CountingJudge(), SETTINGS)
    assert {interval.estimate for interval in compare(result, result).languages.values()} == {0.0}
    for other in (replace(result, seed=8), replace(result, judge_version="2"), replace(result, rows=())):
        with pytest.raises(ValueError, match="can not be compared in pairs"):
            compare(result, other)


def test_noise_seed_belongs_to_the_edit() -> None:
    seen: dict[str, set[int]] = {}

    def edit(samples: Sequence[EditSample], seeds: Sequence[int]) -> list[Image.Image | None]:
        for item, seed in zip(samples, seeds, strict=True):
            seen.setdefault(item.key, set()).add(seed)
        return copy_source(samples, seeds)

    evaluate(edit, SAMPLES, CountingJudge(), SETTINGS)
    evaluate(edit, SAMPLES[::-1], CountingJudge(), GEditSettings(KINDS, seed=7, batch_size=1))
    assert seen == {item.key: {sample_seed(7, item.key)} for item in SAMPLES}
    assert len(set.union(*seen.values())) == 4


def test_each_sample_counts_once() -> None:
    judge = CountingJudge()
    once = evaluate(copy_source, SAMPLES, CountingJudge(), SETTINGS)
    twice = evaluate(copy_source, SAMPLES + SAMPLES[:3], judge, SETTINGS)
    assert twice.scores == once.scores
    assert len(judge.asked) == 8


def test_rows_of_several_processes_make_one_report() -> None:
    """Samplers pad the last shard, so processes may overlap."""
    shards = [score_samples(copy_source, shard, CountingJudge(), SETTINGS) for shard in (SAMPLES[:5], SAMPLES[4:])]
    joined = report([row for rows in shards for row in rows], CountingJudge(), SETTINGS)
    assert joined.scores == evaluate(copy_source, SAMPLES, CountingJudge(), SETTINGS).scores


def test_edit_without_image_is_missing_not_skipped() -> None:
    def edit(samples: Sequence[EditSample], seeds: Sequence[int]) -> list[Image.Image | None]:
        return [None if item.key == "s1" else item.source for item in samples]

    result = evaluate(edit, SAMPLES, CountingJudge(), SETTINGS)
    assert result.metrics()["gedit/missing"] == 2
    remove = result.scores["en"]["full"].categories["remove"]
    assert (remove.n, remove.missing, remove.means.sc) == (1, 1, 3)
    assert [row.reasons for row in result.rows if row.missing] == [("no_image",)] * 2


def test_empty_category_leaves_no_average() -> None:
    result = evaluate(copy_source, [sample(1)], CountingJudge(), SETTINGS)
    full = result.scores["en"]["full"]
    assert full.average is None
    assert full.empty_categories == ["remove"]
    assert "gedit/o" not in result.metrics()


def test_interrupted_run_goes_on_and_counts_nothing_twice(tmp_path: Path) -> None:
    settings = GEditSettings(KINDS, batch_size=1, journal=tmp_path / "runs" / "verdicts.jsonl", model="m")
    with pytest.raises(RuntimeError, match="the judge broke") as failure:
        evaluate(copy_source, SAMPLES, CountingJudge(fail_at=5), settings)
    assert failure.value.__notes__ == ["while judging sample 's2' (cn)"]
    with settings.journal.open("a", encoding="utf-8") as file:
        file.write('{"key": "s2", "cat')  # stopped while writing

    judge = CountingJudge()
    resumed = evaluate(copy_source, SAMPLES, judge, settings)
    assert len(judge.asked) == 3
    assert resumed.scores == evaluate(copy_source, SAMPLES, CountingJudge(), SETTINGS).scores
    again = CountingJudge()
    assert evaluate(copy_source, SAMPLES, again, settings).rows == resumed.rows
    assert again.asked == []


def test_missing_samples_are_tried_again_on_resume(tmp_path: Path) -> None:
    settings = GEditSettings(KINDS, journal=tmp_path / "verdicts.jsonl")
    evaluate(lambda samples, seeds: [None] * len(samples), SAMPLES, CountingJudge(), settings)
    resumed = evaluate(copy_source, SAMPLES, CountingJudge(), settings)
    assert resumed.metrics()["gedit/missing"] == 0
    assert len(resumed.rows) == 8


def test_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    evaluate(copy_source, SAMPLES, CountingJudge(), GEditSettings(KINDS, journal=tmp_path / "j", model="teacher"))
    with pytest.raises(ValueError, match="verdicts of another run"):
        evaluate(copy_source, SAMPLES, CountingJudge(), GEditSettings(KINDS, journal=tmp_path / "j", model="student"))
    (tmp_path / "k").write_text("what is this?\n")
    with pytest.raises(ValueError, match="not a journal"):
        evaluate(copy_source, SAMPLES, CountingJudge(), GEditSettings(KINDS, journal=tmp_path / "k"))
    assert (tmp_path / "k").read_text() == "what is this?\n"


def test_several_judge_threads_keep_the_order() -> None:
    settings = GEditSettings(KINDS, batch_size=8, judge_workers=4)
    result = evaluate(copy_source, SAMPLES, CountingJudge(), settings)
    assert [(row.key, row.language) for row in result.rows] == [(s.key, s.language) for s in SAMPLES]
    assert [row.sc for row in result.rows] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_exact_judge_sees_the_sample() -> None:
    class Exact:
        def score_sample(self, sample: EditSample, edited: Image.Image) -> JudgeScore:
            return JudgeScore(Rating((float(sample.meta["truth"]),)), Rating((1.0,)))

    item = EditSample("k", "recolor", "en", "x", Image.new("RGB", (2, 2)), meta={"truth": 5})
    result = evaluate(copy_source, [item], Exact(), GEditSettings(("recolor",)))
    assert result.rows[0].sc == 5
    assert (result.judge, result.judge_version) == ("Exact", "unknown")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (sample(9, category="subject_add"), "'s9' has category 'subject_add', which is not one of"),
        (sample(9, language="zh"), "'s9' has language 'zh'"),
    ],
)
def test_bad_sample_is_named_before_anything_is_edited(bad: EditSample, message: str) -> None:
    def never(samples: Sequence[EditSample], seeds: Sequence[int]) -> list[Image.Image | None]:
        raise AssertionError("edited")

    with pytest.raises(ValueError, match=message):
        evaluate(never, [*SAMPLES, bad], CountingJudge(), SETTINGS)


def test_edit_function_must_return_one_image_a_sample() -> None:
    with pytest.raises(ValueError, match="returned 1 images for 3 samples"):
        evaluate(lambda samples, seeds: [samples[0].source], SAMPLES, CountingJudge(), SETTINGS)
