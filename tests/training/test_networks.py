"""Branches that train: in full, and by adapters."""

from __future__ import annotations

import pytest
import torch

from hyperbagel.bagel.branch import DURATION, IMAGE_SCALE, TEXT_SCALE
from hyperbagel.training.networks import LoRA, Training, merged, trainable_branch
from tests.nano import nano_bagel


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=2, full=())])
def test_embedders_of_conditions_train_always(lora: LoRA | None) -> None:
    """They may start untrained; of the rest, adapters alone train, where there are any."""
    if lora is not None:
        pytest.importorskip("peft")
    source = nano_bagel().generation
    branch = trainable_branch(source, Training(lora=lora), (TEXT_SCALE, IMAGE_SCALE, DURATION))
    assert not source.conditions and set(branch.conditions) == {TEXT_SCALE, IMAGE_SCALE, DURATION}
    assert all(p.requires_grad for name in branch.conditions for p in branch.embedder(name).parameters())
    others = {name for name, p in branch.named_parameters() if p.requires_grad and "lora_" not in name}
    others -= {name for name in others if name.partition("_embedder.")[0] in branch.conditions}
    assert bool(others) == (lora is None)


def test_small_parts_train_beside_adapters() -> None:
    pytest.importorskip("peft")
    source = nano_bagel().generation
    branch = trainable_branch(source, Training(lora=LoRA(rank=2, alpha=2)), ())
    full = {name.partition(".")[0] for name, p in branch.named_parameters() if p.requires_grad and "lora_" not in name}
    assert full == {"time_embedder", "vae2llm", "llm2vae"}
    with torch.no_grad():
        branch.vae2llm.weight += 1
    assert not torch.equal(branch.vae2llm.weight, source.vae2llm.weight)
    assert merged(branch).state_dict().keys() == source.state_dict().keys()
