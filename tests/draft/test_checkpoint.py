"""Files of draft heads: what they keep, and which are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from hyperbagel.bagel.build.assemble import NANO
from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.bagel.tensors import write_tensors
from hyperbagel.draft.checkpoint import load_draft, save_draft
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.head import DraftHead
from tests.nano import nano_bagel

CONFIG = dataclasses.replace(NANO, llm=dataclasses.replace(NANO.llm, num_hidden_layers=4, vocab_size=64))


@pytest.mark.parametrize(
    "config",
    [
        DraftConfig(levels=(1, 2, 3)),
        DraftConfig(kind="eagle3", layers=1),
        DraftConfig(kind="parallel", ahead=5),
    ],
)
def test_round_trip(tmp_path: Path, config: DraftConfig) -> None:
    model = nano_bagel(CONFIG)
    head = DraftHead.from_target(config, model, vocabulary=range(2, 30))
    save_draft(head, model, tmp_path / "draft.safetensors")
    loaded = load_draft(tmp_path / "draft.safetensors", model)
    assert loaded.config == config
    torch.testing.assert_close(loaded.state_dict(), head.state_dict(), atol=0, rtol=0)


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model, other = nano_bagel(CONFIG), nano_bagel(CONFIG, seed=3)
    path = tmp_path / "draft.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        load_draft(path, model)
    save_draft(DraftHead.from_target(DraftConfig(), model), model, path)
    with pytest.raises(CheckpointError, match="made for another target"):
        load_draft(path, other)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_draft(path, model)
    write_tensors({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a draft head"):
        load_draft(path, model)
