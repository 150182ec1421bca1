"""A nano model on disk, and a CFG-distilled branch of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyperbagel.bagel.branch_checkpoint import BranchInfo, base_hash, context_hash, save_branch
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.scenes.vocabulary import tokenizer_folder
from tests.nano import nano_bagel


@pytest.fixture(scope="session")
def nano_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint folder with a tokenizer."""
    folder = tmp_path_factory.mktemp("nano")
    nano_bagel().save_pretrained(folder)
    Tokenizer.from_pretrained(tokenizer_folder(), add_special_tokens=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def nano_branch(nano_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A branch with guidance embedders that do something."""
    model = Bagel.from_pretrained(nano_folder)
    branch = model.generation.copy()
    torch.manual_seed(5)  # of the embedders, whatever ran before
    branch.add_guidance_embedders()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    path: Path = tmp_path_factory.mktemp("branch") / "branch.safetensors"
    save_branch(branch, BranchInfo("CFGDistillation", 0, base_hash(model), context=context_hash(model)), path)
    return str(path)
