"""Phrases: what mostly follows short sequences of tokens in answers."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch

from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.bagel.tensors import write_tensors
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.cli import main
from hyperbagel.datamodules.writer import ShardWriter
from hyperbagel.draft.phrases import LONGEST, count_phrases, load_phrases, save_phrases
from tests.runs import nano_folder


def answers(seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 4, (length,), generator=generator).tolist() for length in (0, 1, 2, 5, 40, 90)]


def test_what_followed_most_often_is_proposed_as_long_as_it_is_likely(tmp_path: Path) -> None:
    """Against counting one by one; and the same from a file."""
    counts: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for answer in answers():
        for place in range(1, len(answer)):
            for length in range(1, min(LONGEST, place) + 1):
                counts[tuple(answer[place - length : place])][answer[place]] += 1
    phrases = count_phrases(answers())
    assert len(phrases) == len(counts)
    save_phrases(phrases, tmp_path / "phrases.safetensors")
    stored = load_phrases(tmp_path / "phrases.safetensors", vocab_size=4)
    for window, followers in counts.items():
        best = max(followers.values())
        share = best / (followers.total() + 1)
        first = phrases.propose(window, most=1, share=share - 1e-6)
        assert first == [min(token for token, count in followers.items() if count == best)]
        assert not phrases.propose(window, most=1, share=share + 1e-6)
        assert stored.propose(window, most=6, share=0.01) == phrases.propose(window, most=6, share=0.01)
    assert not phrases.propose([17], most=3, share=0.1) and not phrases.propose([], most=3, share=0.1)


def test_longer_agreement_counts_and_shares_are_multiplied() -> None:
    phrases = count_phrases([[1, 2, 3], [1, 2, 3], [4, 2, 5], [6, 2, 5], [7, 2, 5]])
    assert phrases.propose([1, 2], most=1, share=0.5) == [3]
    assert phrases.propose([9, 2], most=1, share=0.5) == [5]
    long = count_phrases([[1, 2, 3, 4, 5]])
    assert long.propose([1], most=8, share=0.2) == [2, 3] and long.propose([1], most=8, share=0.05) == [2, 3, 4, 5]


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    write_tensors({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="hyperbagel data phrases"):
        load_phrases(tmp_path / "other.safetensors", 10)
    save_phrases(count_phrases([[1, 12]]), tmp_path / "phrases.safetensors")
    with pytest.raises(CheckpointError, match="beyond 10"):
        load_phrases(tmp_path / "phrases.safetensors", 10)


def test_phrases_of_shards_begin_as_answers_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = nano_folder(tmp_path / "nano")
    with ShardWriter(tmp_path / "answers" / "a-{:06d}.tar") as writer:
        texts = [{"type": "text", "text": "what?"}, {"type": "text", "text": "red circle", "loss": True}]
        writer.write("a", {"segments": texts}, {})
    out = tmp_path / "phrases.safetensors"
    main(["data", "phrases", str(tmp_path / "answers"), str(out), "--model", str(folder), "--answer-prefix", "a "])
    assert "sequences of tokens" in capsys.readouterr().out
    tokenizer = Tokenizer.from_pretrained(folder)
    begun = [tokenizer.tokens.bos, *tokenizer.encode("a ").tolist()]
    expected = [*tokenizer.encode("red circle").tolist(), tokenizer.tokens.eos]
    phrases = load_phrases(out, tokenizer.size)
    assert phrases.propose(begun, most=len(expected), share=1e-6) == expected
