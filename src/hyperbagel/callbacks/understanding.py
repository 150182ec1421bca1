"""The callback `Understanding`: marks what a stage's model says about pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image
from tqdm import tqdm

from hyperbagel.callbacks.evaluation import Evaluation, Findings, Run
from hyperbagel.datamodules.pipeline import member_picture
from hyperbagel.datamodules.scenes import SceneSource
from hyperbagel.evaluation.batches import batches_of_equals
from hyperbagel.evaluation.reports import OWN
from hyperbagel.evaluation.understanding import UnderstandingSample, document_samples, evaluate_understanding
from hyperbagel.pipeline.answers import answer

SCENE_KINDS = {"caption": 1.0, "question": 1.0, "yes_no": 1.0}


@dataclass(frozen=True)
class _Question:
    sample: UnderstandingSample
    picture: Image.Image


class Understanding(Evaluation):
    """Asks for captions and answers and logs `understanding/{caption,question,yes_no}`.

    Args:
        samples: documents to take questions from, an object as data sources take (its `meta` names the kinds or topics,
            see `evaluation.understanding.document_samples`); None for 600 test documents of the scenes world.
        batch_size: questions answered at once.
        max_tokens: longest answer.
        every_n_updates: student updates between two runs in `fit`; 0 for none.

    Examples:
        >>> from hyperbagel.datamodules.scenes import SceneSource
        >>> callback = Understanding(SceneSource("test", 4, weights={"yes_no": 1}), max_tokens=8)
        >>> callback.questions[0].sample.prompt
        'Does this picture show a star below a circle?'
    """

    def __init__(
        self, samples: Any = None, batch_size: int = 64, max_tokens: int = 256, every_n_updates: int = 0
    ) -> None:
        super().__init__(every_n_updates)
        samples = SceneSource("test", 600, weights=SCENE_KINDS) if samples is None else samples
        self.batch_size, self.max_tokens = batch_size, max_tokens
        self.questions = [question for i in range(len(samples)) for question in _questions(samples[i])]
        if not self.questions:
            raise ValueError("understanding: the samples hold no captions, questions or yes/no questions")

    def evaluate(self, run: Run) -> Findings:
        """One row."""
        # Equal prompts make equal lengths, and pictures of one size no padding either.
        lengths = [len(run.tokenizer.encode(question.sample.prompt)) for question in self.questions]
        batches = list(batches_of_equals(lengths, self.batch_size))
        answers: list[tuple[int, str]] = []
        hidden = True if run.rank else None
        for batch in tqdm(run.share(batches), "Understanding", leave=False, disable=hidden):
            asked = [(self.questions[i].picture, self.questions[i].sample.prompt) for i in batch]
            given = answer(run.stage.model, run.tokenizer, asked, self.max_tokens)
            answers += zip(batch, given, strict=True)
        texts = dict(run.gather(answers))
        ordered = [texts[index] for index in range(len(self.questions))]
        report = evaluate_understanding(ordered, [question.sample for question in self.questions])
        examples = [
            {"prompt": question.sample.prompt, "right": question.sample.answer, "answer": text}
            for question, text in list(zip(self.questions, ordered, strict=True))[:20]
        ]
        return Findings({OWN: report.metrics()}, {OWN: report.to_dict() | {"examples": examples}})


def _questions(sample: Any) -> list[_Question]:
    """The questions about the one picture of a document; documents with more pictures have none."""
    files = [segment["file"] for segment in sample["json"]["segments"] if segment["type"] == "image"]
    if len(files) != 1:
        return []
    picture = member_picture(f"{sample['__key__']}.{files[0]}", sample[files[0]])
    return [_Question(one, picture) for one in document_samples(sample["__key__"], sample["json"])]
