"""Names of what comes with the package, beside paths."""

from pathlib import Path

import pytest
import torch

from hyperbagel.bagel import shipped
from hyperbagel.bagel.branch_checkpoint import BranchInfo, base_hash, context_hash, load_branch, save_branch
from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.tokenizer import Tokenizer
from tests.runs import nano_folder

NFE6 = Path("tiny", "branches", "nfe6.safetensors")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    return tmp_path


def test_models_and_branches_load_by_name(weights: Path) -> None:
    nano_folder(weights / "tiny")
    model = Bagel.from_pretrained("tiny")
    assert Tokenizer.from_pretrained("tiny").size
    save_branch(model.generation, BranchInfo("cfg", 6, base_hash(model)), weights / NFE6)
    assert load_branch("tiny/nfe6", model)[1].nfe == 6
    assert shipped.shipped_models() == ["tiny"]


def test_a_shipped_branch_belongs_to_the_model_beside_it(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nano_folder(weights / "tiny")
    model = Bagel.from_pretrained("tiny")
    save_branch(model.generation, BranchInfo("cfg", 6, base_hash(model)), weights / NFE6)
    assert load_branch("tiny/nfe6", model)[1].context == context_hash(model)
    assert not caplog.records
    with torch.no_grad():
        model.generation.llm2vae.bias += 1
    with pytest.raises(CheckpointError, match="another generation branch"):
        load_branch("tiny/nfe6", model)


def test_a_path_goes_before_a_name(weights: Path) -> None:
    (weights / "tiny").mkdir()
    assert shipped.resolve("tiny") == weights / "tiny"
    Path("tiny").mkdir()
    assert shipped.resolve("tiny") == Path("tiny")
    assert shipped.resolve("unknown") == Path("unknown")
