"""Computes the published figures from verdicts, exactly as the official script computes and prints them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class ScoredImage(NamedTuple):
    """One judged image: its task, the metadata text of its prompt, and whether it is correct."""

    tag: str
    metadata: str
    correct: bool


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Correct images out of all images of one task."""

    correct: int
    total: int

    @property
    def score(self) -> float:
        """Share of correct images."""
        return self.correct / self.total


@dataclass(frozen=True, slots=True)
class Summary:
    """The official figures. `overall` is *the* GenEval score; tasks stand in order of first appearance.

    prompt_accuracy: share of prompts with at least one correct image, a prompt being a distinct metadata text.
    """

    total_images: int
    total_prompts: int
    image_accuracy: float
    prompt_accuracy: float
    tasks: dict[str, TaskScore]
    overall: float

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain JSON types."""
        tasks = {
            tag: {"correct": task.correct, "total": task.total, "score": task.score} for tag, task in self.tasks.items()
        }
        return {
            "total_images": self.total_images,
            "total_prompts": self.total_prompts,
            "image_accuracy": self.image_accuracy,
            "prompt_accuracy": self.prompt_accuracy,
            "tasks": tasks,
            "overall": self.overall,
        }

    def lines(self) -> list[str]:
        """The lines of the official printout, without the empty ones and the underlining."""
        tasks = [f"{tag:<16} = {task.score:.2%} ({task.correct} / {task.total})" for tag, task in self.tasks.items()]
        return [
            "Summary",
            f"Total images: {self.total_images}",
            f"Total prompts: {self.total_prompts}",
            f"% correct images: {self.image_accuracy:.2%}",
            f"% correct prompts: {self.prompt_accuracy:.2%}",
            "Task breakdown",
            *tasks,
            f"Overall score (avg. over tasks): {self.overall:.5f}",
        ]


def summarize(images: Iterable[ScoredImage]) -> Summary:
    """Summarise judged images. ValueError when there are none."""
    by_tag: dict[str, list[bool]] = {}
    by_prompt: dict[str, list[bool]] = {}
    for image in images:
        by_tag.setdefault(image.tag, []).append(image.correct)
        by_prompt.setdefault(image.metadata, []).append(image.correct)
    if not by_tag:
        raise ValueError("no judged images to summarise")
    tasks = {tag: TaskScore(sum(correct), len(correct)) for tag, correct in by_tag.items()}
    total = sum(task.total for task in tasks.values())
    return Summary(
        total_images=total,
        total_prompts=len(by_prompt),
        image_accuracy=sum(task.correct for task in tasks.values()) / total,
        prompt_accuracy=sum(any(correct) for correct in by_prompt.values()) / len(by_prompt),
        tasks=tasks,
        overall=float(np.mean([task.score for task in tasks.values()])),
    )
