"""What proposes tokens, from files of both kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.bagel.tensors import write_tensors
from hyperbagel.decoding.autoregressive import decode_text
from hyperbagel.decoding.loading import check_proposing, load_proposing
from hyperbagel.decoding.speculative import Speculator
from hyperbagel.draft.checkpoint import save_draft
from hyperbagel.draft.phrases import count_phrases, save_phrases
from tests.decoding.drafting import SETTINGS, documents, draft, target


def test_a_head_or_phrases_speed_answers_up(tmp_path: Path) -> None:
    model, asked = target(), documents(2)
    expected = decode_text(model, model.prefill(asked), SETTINGS)
    save_draft(draft("hyper", trained=True), model, tmp_path / "head.safetensors")
    save_phrases(
        count_phrases([[model.config.tokens.bos, *answer] for answer in expected]), tmp_path / "phrases.safetensors"
    )
    for name, with_head in (("head", True), ("phrases", False)):
        path = tmp_path / f"{name}.safetensors"
        check_proposing(path)
        proposing = load_proposing(path, model)
        assert (proposing.head is not None) == with_head
        speculator = Speculator(model, *proposing)
        assert speculator.decode(speculator.prefill(asked), SETTINGS) == expected
        assert speculator.statistics.acceptance_length > 1
    plain = Speculator(model, *load_proposing(None, model))
    assert plain.decode(plain.prefill(asked), SETTINGS) == expected


def test_other_files_are_refused(tmp_path: Path) -> None:
    write_tensors({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name, what in (("other", "not a draft head"), ("missing", "no such file")):
        with pytest.raises(CheckpointError, match=what):
            check_proposing(tmp_path / f"{name}.safetensors")
        with pytest.raises(CheckpointError, match=what):
            load_proposing(tmp_path / f"{name}.safetensors", target())
