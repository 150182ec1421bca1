"""Export of trained models, and loss terms added from outside."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.callbacks import EMA, AddLoss, ExportModel
from hyperbagel.losses.regression import Regression
from hyperbagel.modules.pretraining import Pretraining, PretrainingMethod
from tests.runs import nano_folder, scenes, trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return nano_folder(tmp_path_factory.mktemp("nano"))


def test_the_averaged_model_is_written_as_a_folder(folder: str, tmp_path: Path):
    module, ema, out = (
        Pretraining(model=folder, method=PretrainingMethod(train="generation")),
        EMA(0.5),
        tmp_path / "out",
    )
    for _ in range(2):  # the second run replaces the folder of the first
        runner = trainer(tmp_path, max_steps=2, callbacks=[ema, ExportModel(str(out))])
        runner.fit(module, scenes({"generation": 1.0}))
    exported = Bagel.from_pretrained(out)
    average = ema.state_dict()["average"]["generation.norm.weight"]
    assert torch.equal(exported.generation.norm.weight, average)
    assert not torch.equal(module.model.generation.norm.weight, average)
    original = Bagel.from_pretrained(folder)
    assert exported.config == original.config
    for name, value in original.understanding.state_dict().items():
        assert torch.equal(exported.understanding.state_dict()[name], value), name
    assert (
        Tokenizer.from_pretrained(out)
        .encode("a red circle")
        .equal(Tokenizer.from_pretrained(folder).encode("a red circle"))
    )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out"]


def test_weights_can_be_stored_in_bfloat16(folder: str, tmp_path: Path):
    module = Pretraining(model=folder, method=PretrainingMethod(train="generation"))
    callback = ExportModel(str(tmp_path / "half"), dtype="bfloat16")
    trainer(tmp_path, max_steps=1, callbacks=[callback]).fit(module, scenes({"generation": 1.0}))
    assert module.model.dtype == torch.float32
    whole = (Path(folder) / "ema.safetensors").stat().st_size
    assert (tmp_path / "half" / "ema.safetensors").stat().st_size < 0.6 * whole
    json.loads((tmp_path / "half" / "hyperbagel.json").read_text())


def test_foreign_files_are_not_replaced(folder: str, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="other files than a model"):
        ExportModel(str(tmp_path)).setup(trainer(tmp_path), Pretraining(model=folder), "fit")
    with pytest.raises(ValueError, match="distillation stages write a branch"):
        ExportModel(str(tmp_path / "new")).setup(trainer(tmp_path), LightningModule(), "fit")


def test_a_loss_term_is_added_to_a_stage_once(tmp_path: Path):
    class Stage(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.terms = nn.ModuleList()

        def add_loss(self, term: nn.Module) -> None:
            self.terms.append(term)

    stage, callback = Stage(), AddLoss(Regression("mine", weight=0.5))
    callback.setup(trainer(tmp_path), stage, "fit")
    callback.setup(trainer(tmp_path), stage, "test")
    assert [term.name for term in stage.terms] == ["mine"]
    with pytest.raises(ValueError, match="takes no loss terms"):
        AddLoss(Regression("mine")).setup(trainer(tmp_path), LightningModule(), "fit")
