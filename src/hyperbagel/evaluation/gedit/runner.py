"""Run the editing benchmark: edit every sample, judge every edit, report."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from PIL import Image
from tqdm import tqdm

from hyperbagel.evaluation.gedit.aggregate import SampleResult, aggregate, count_once, sample_result
from hyperbagel.evaluation.gedit.journal import Journal
from hyperbagel.evaluation.gedit.report import GEditReport
from hyperbagel.evaluation.gedit.samples import (
    LANGUAGES,
    OFFICIAL_CATEGORIES,
    EditSample,
    ExactJudge,
    Judge,
    JudgeScore,
)

logger = logging.getLogger(__name__)

EditFunction: TypeAlias = Callable[[Sequence[EditSample], Sequence[int]], Sequence[Image.Image | None]]
"""(samples, one seed a sample) -> one edited image a sample, None where the model gave none."""


@dataclass(frozen=True, slots=True)
class GEditSettings:
    """How to run the benchmark.

    categories: all categories the averages are over. seed: base of the samples' noise seeds. batch_size: samples an
    edit call. judge_workers: threads that ask the judge at once (1 for judges that are not thread-safe). journal:
    file in which verdicts are kept, so that an interrupted run goes on where it stopped. model: what was evaluated,
    recorded in journal and report.
    """

    categories: tuple[str, ...] = OFFICIAL_CATEGORIES
    seed: int = 0
    batch_size: int = 1
    judge_workers: int = 1
    journal: Path | None = None
    model: str = ""


def sample_seed(seed: int, key: str) -> int:
    """The noise seed of a sample, 0..2**31-1: the same for every model, order, language and number of processes."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:4], "big") >> 1


def evaluate(
    edit: EditFunction, samples: Sequence[EditSample], judge: Judge | ExactJudge, settings: GEditSettings | None = None
) -> GEditReport:
    """Edit and judge every sample, and aggregate. A sample that occurs twice, (key, language), is done once.

    Raises ValueError for samples with an unknown category or language, for a journal of another run, and for an edit
    function that does not return one image a sample. Errors of the judge go through, with the sample's name noted.
    """
    settings = settings or GEditSettings()
    return report(score_samples(edit, samples, judge, settings), judge, settings)


def report(rows: Sequence[SampleResult], judge: Judge | ExactJudge, settings: GEditSettings) -> GEditReport:
    """The report on rows of `score_samples`; with several processes, on the rows of all of them."""
    rows = count_once(rows)
    result = GEditReport(
        judge=_judge_name(judge),
        judge_version=str(getattr(judge, "version", "unknown")),
        date=datetime.now(UTC).date().isoformat(),
        model=settings.model,
        seed=settings.seed,
        scores=aggregate(rows, settings.categories),
        rows=tuple(rows),
    )
    if missing := sum(row.missing for row in rows):
        logger.warning("%d of %d edits have no score and are in no mean; see their `reasons`", missing, len(rows))
    return result


def score_samples(
    edit: EditFunction, samples: Sequence[EditSample], judge: Judge | ExactJudge, settings: GEditSettings
) -> list[SampleResult]:
    """Edit and judge, without aggregating. Scored samples of the journal are taken from there, missing ones redone."""
    header = {"judge": _judge_name(judge), "model": settings.model, "seed": settings.seed}
    positions = _positions(samples, settings)
    with Journal(settings.journal, header) as journal, ThreadPoolExecutor(settings.judge_workers) as pool:
        rows = {(row.key, row.language): row for row in journal.rows if not row.missing}
        waiting = [position for name, position in positions.items() if name not in rows]
        for start in tqdm(range(0, len(waiting), settings.batch_size), desc="GEdit", unit="batch", disable=None):
            # Fetched here and let go after: a benchmark read from disk decodes its images anew each time.
            batch = [samples[position] for position in waiting[start : start + settings.batch_size]]
            images = _edited(edit, batch, settings.seed)
            for row in pool.map(lambda sample, image: _judged(judge, sample, image), batch, images):
                rows[row.key, row.language] = row
                journal.append(row)
    return [rows[name] for name in positions]


def _judge_name(judge: Judge | ExactJudge) -> str:
    return str(getattr(judge, "name", type(judge).__name__))


def _positions(samples: Sequence[EditSample], settings: GEditSettings) -> dict[tuple[str, str], int]:
    """(key, language) -> where it first occurs. Every sample is checked before the first is edited."""
    positions: dict[tuple[str, str], int] = {}
    for position, sample in enumerate(samples):
        if sample.category not in settings.categories:
            raise ValueError(
                f"sample {sample.key!r} has category {sample.category!r}, which is not one of "
                f"{list(settings.categories)}; set `categories` to those of the data"
            )
        if sample.language not in LANGUAGES:
            raise ValueError(f"sample {sample.key!r} has language {sample.language!r}; it must be one of {LANGUAGES}")
        positions.setdefault((sample.key, sample.language), position)
    return positions


def _edited(edit: EditFunction, batch: Sequence[EditSample], seed: int) -> Sequence[Image.Image | None]:
    images = edit(batch, [sample_seed(seed, sample.key) for sample in batch])
    if len(images) != len(batch):
        raise ValueError(f"the edit function returned {len(images)} images for {len(batch)} samples")
    return images


def _judged(judge: Judge | ExactJudge, sample: EditSample, image: Image.Image | None) -> SampleResult:
    if image is None:
        return sample_result(sample, None)
    try:
        return sample_result(sample, _verdict(judge, sample, image))
    except Exception as error:
        error.add_note(f"while judging sample {sample.key!r} ({sample.language})")
        raise


def _verdict(judge: Judge | ExactJudge, sample: EditSample, image: Image.Image) -> JudgeScore:
    if isinstance(judge, ExactJudge):
        return judge.score_sample(sample, image)
    return judge.score(sample.instruction, sample.source, image)
