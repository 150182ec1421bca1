"""A training carried elsewhere as small files goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors import safe_open
from torch import Tensor

from hyperbagel.callbacks import EMA
from hyperbagel.modules.pretraining import Pretraining, PretrainingMethod
from hyperbagel.training.networks import Training
from hyperbagel.training.optimizers import MuonWithAdamW
from hyperbagel.training.state_files import StateError, join_checkpoint, split_checkpoint
from tests.runs import nano_folder, scenes, trainer

LIMIT = 2**15


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return nano_folder(tmp_path_factory.mktemp("nano"))


def trained(model: str, folder: Path, updates: int, resumed: Path | None = None) -> tuple[Pretraining, Path]:
    """A stage after so many updates in all, and its checkpoint."""
    torch.manual_seed(0)
    method = PretrainingMethod(train="generation")
    stage = Pretraining(model=model, method=method, student=Training(MuonWithAdamW))
    saver = ModelCheckpoint(folder, filename="state", every_n_train_steps=1)
    runner = trainer(folder, max_steps=updates, callbacks=[EMA(0.5), saver], enable_checkpointing=True)
    runner.fit(stage, scenes({"generation": 1}), ckpt_path=resumed, weights_only=True)
    return stage, folder / "state.ckpt"


@pytest.fixture(scope="module")
def checkpoint(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(model, tmp_path_factory.mktemp("first"), 2)[1]


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [found for child in children for found in tensors(child)]


def without_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_tensors(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_tensors(item) for item in value)
    return (value.shape, value.dtype) if isinstance(value, Tensor) else value


def test_a_carried_training_goes_on_to_the_same_weights(model: str, checkpoint: Path, tmp_path: Path):
    """In float32 to the last bit; every file is below the limit, and large tensors are cut."""
    count = split_checkpoint(checkpoint, tmp_path / "state", max_bytes=LIMIT)
    files = sorted((tmp_path / "state").glob("*.safetensors"))
    assert len(files) == count > 3 and all(file.stat().st_size <= LIMIT for file in files)
    assert any(key.endswith(".1") for file in files for key in safe_open(file, "pt").keys())
    join_checkpoint(tmp_path / "state", tmp_path / "joined.ckpt")
    before, after = (torch.load(p, weights_only=True) for p in (checkpoint, tmp_path / "joined.ckpt"))
    assert without_tensors(before) == without_tensors(after)
    assert all(torch.equal(a, b) for a, b in zip(tensors(before), tensors(after), strict=True))

    gone_on, _ = trained(model, tmp_path / "on", 4, tmp_path / "joined.ckpt")
    undisturbed, _ = trained(model, tmp_path / "whole", 4)
    states = (stage.state_dict() for stage in (gone_on, undisturbed))
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))


def test_what_is_beside_the_weights_may_be_rounded(checkpoint: Path, tmp_path: Path):
    """Half the bytes; weights stay as they are, and rounded tensors are float32 again."""
    split_checkpoint(checkpoint, tmp_path / "state", others=torch.bfloat16)
    join_checkpoint(tmp_path / "state", tmp_path / "joined.ckpt")
    before, after = (torch.load(p, weights_only=True) for p in (checkpoint, tmp_path / "joined.ckpt"))
    assert without_tensors(before) == without_tensors(after)
    weights = zip(before["state_dict"].values(), after["state_dict"].values(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    momenta = list(zip(tensors(before["optimizer_states"]), tensors(after["optimizer_states"]), strict=True))
    assert all(torch.equal(a.bfloat16().float() if a.dtype == torch.float32 else a, b) for a, b in momenta)
    assert any(not torch.equal(a, b) for a, b in momenta)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None, {"weights": 1}])
def test_what_is_no_checkpoint_is_refused(content: Any, tmp_path: Path):
    file = tmp_path / "last.ckpt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(StateError, match=r"last\.ckpt: .*; give a "):
        split_checkpoint(file, tmp_path / "state")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("fault", ["missing", "cut", "no structure"])
def test_a_folder_that_is_not_whole_is_refused(fault: str, checkpoint: Path, tmp_path: Path):
    folder = tmp_path / "state"
    split_checkpoint(checkpoint, folder, max_bytes=LIMIT)
    first = folder / "state-00000.safetensors"
    if fault == "missing":
        first.unlink()
    elif fault == "cut":
        first.write_bytes(first.read_bytes()[:1000])
    else:
        (folder / "state.json").unlink()
    with pytest.raises(StateError, match="state: not a whole folder of state files"):
        join_checkpoint(folder, tmp_path / "joined.ckpt")
    assert not (tmp_path / "joined.ckpt").exists()


def test_only_state_files_are_replaced(checkpoint: Path, tmp_path: Path):
    folder = tmp_path / "state"
    split_checkpoint(checkpoint, folder, max_bytes=LIMIT)
    split_checkpoint(checkpoint, folder)
    assert sorted(file.name for file in folder.iterdir()) == ["state-00000.safetensors", "state.json"]
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(StateError, match="holds other files, which would be lost; name a new folder"):
        split_checkpoint(checkpoint, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "kept"


def test_counts_are_not_rounded(tmp_path: Path):
    """A bfloat16 has no number between 1,000 and 1,004."""
    counted = {"state_dict": {}, "optimizer_states": [{"state": {0: {"step": torch.tensor(1001.0)}}}]}
    torch.save(counted, tmp_path / "last.ckpt")
    split_checkpoint(tmp_path / "last.ckpt", tmp_path / "state", others=torch.bfloat16)
    join_checkpoint(tmp_path / "state", tmp_path / "joined.ckpt")
    joined = torch.load(tmp_path / "joined.ckpt", weights_only=True)
    assert float(joined["optimizer_states"][0]["state"][0]["step"]) == 1001
