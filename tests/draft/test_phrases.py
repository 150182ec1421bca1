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
from hyperbagel.draft.phrases import KEPT, LONGEST, count_phrases, load_phrases, save_phrases
from tests.runs import nano_folder


def answers(seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 6, (length,), generator=generator).tolist() for length in (0, 1, 2, 5, 40, 90)]


def test_followers_are_counted_and_discounted(tmp_path: Path) -> None:
    """Against counting one by one, shorter sequences behind different tokens only; and the same from a file."""
    counts: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    behind: set[tuple[int, ...]] = set()
    for answer in answers():
        for place in range(1, len(answer)):
            for length in range(1, min(LONGEST, place) + 1):
                longer = tuple(answer[place - length - 1 : place + 1]) if length < place else ()
                if length == LONGEST or not longer or longer not in behind:
                    counts[tuple(answer[place - length : place])][answer[place]] += 1
                behind.add(longer)
    phrases = count_phrases(answers())
    assert len(phrases) == len(counts)
    save_phrases(phrases, tmp_path / "phrases.safetensors")
    stored = load_phrases(tmp_path / "phrases.safetensors", vocab_size=6)
    for sequence, followers in counts.items():
        found, total = phrases.after(sequence), followers.total()
        assert found is not None and stored.after(sequence) == found
        ranked = sorted(followers, key=lambda token: (-followers[token], token))[:KEPT]
        assert found.tokens == ranked
        assert found.shares == pytest.approx([(followers[token] - 0.75) / total for token in ranked])
        assert found.rest == pytest.approx(0.75 * len(followers) / total)
        if len(followers) <= KEPT:
            assert sum(found.shares) + found.rest == pytest.approx(1)
    assert max(map(len, counts.values())) > KEPT, "some are left out"
    assert phrases.after([17]) is None and phrases.after([0] * (LONGEST + 1)) is None


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    write_tensors({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    write_tensors({"x": torch.zeros(1)}, tmp_path / "former.safetensors", {"hyperbagel_phrases": "1"})
    for name, what in (("other", "holds no phrases"), ("former", "as an earlier version counted")):
        with pytest.raises(CheckpointError, match=f"{what}.*hyperbagel data phrases"):
            load_phrases(tmp_path / f"{name}.safetensors", 10)
    save_phrases(count_phrases([[1, 12]]), tmp_path / "phrases.safetensors")
    with pytest.raises(CheckpointError, match="beyond 10"):
        load_phrases(tmp_path / "phrases.safetensors", 10)


def test_phrases_of_shards_begin_as_answers_do_and_serve_as_a_draft(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    for place, token in enumerate(expected):
        found = phrases.after([*begun, *expected[:place]][-LONGEST:])
        assert found is not None and found.tokens == [token]
    asked = ["chat", "-", "what?", "--model", str(folder), "--answer-prefix", "a ", "--max-tokens", "8"]
    main(asked)
    plain = capsys.readouterr().out
    main([*asked, "--draft", str(out)])
    assert capsys.readouterr().out.splitlines()[0] == plain.splitlines()[0]
