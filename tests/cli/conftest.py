"""A nano model's folder with branches and a draft head."""

from pathlib import Path

import pytest

from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE
from hyperbagel.bagel.branch_checkpoint import BranchInfo, base_hash, context_hash, save_branch
from hyperbagel.bagel.model import Bagel
from hyperbagel.draft.checkpoint import save_draft
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.head import DraftHead
from tests.runs import nano_folder


@pytest.fixture(scope="session")
def studio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything under the names that `hyperbagel app` looks for."""
    folder = Path(nano_folder(tmp_path_factory.mktemp("studio") / "model"))
    model = Bagel.from_pretrained(folder)
    branch = model.generation.copy()
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    for nfe in (6, 1):
        info = BranchInfo("DMDO", nfe, base_hash(model), context=context_hash(model))
        save_branch(branch, info, folder / "branches" / f"nfe{nfe}.safetensors")
    # Not trained, but it starts as the target's last layers: greedy choices agree often enough.
    save_draft(DraftHead.from_target(DraftConfig(), model), model, folder / "branches" / "draft.safetensors")
    return folder
