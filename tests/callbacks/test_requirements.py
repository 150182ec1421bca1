"""What callbacks will need is looked for before anything is drawn, trained or copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE
from hyperbagel.bagel.branch_checkpoint import BranchInfo, base_hash, save_branch
from hyperbagel.bagel.build.assemble import NANO
from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.bagel.model import Bagel
from hyperbagel.callbacks import AddLoss, GEdit, GenEval, ImageGrid
from hyperbagel.callbacks.evaluation import Row
from hyperbagel.callbacks.fidelity import Fidelity
from hyperbagel.callbacks.gedit import GEditData
from hyperbagel.callbacks.geneval import GenEvalPrompts
from hyperbagel.callbacks.requirements import check_requirements, require_branch
from hyperbagel.datamodules.interleaved import InterleavedDataModule
from hyperbagel.datamodules.pipeline import Formatting
from hyperbagel.datamodules.sources import Source
from hyperbagel.evaluation.gedit.judges.scene import SceneJudge
from hyperbagel.evaluation.geneval.scene_detector import SceneDetector
from hyperbagel.files import require_all
from hyperbagel.losses.pairs import PairRegression
from hyperbagel.modules.pretraining import Pretraining
from hyperbagel.scenes.vocabulary import tokenizer_folder
from tests.nano import nano_bagel
from tests.runs import PICTURES, nano_folder, scenes, trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return nano_folder(tmp_path_factory.mktemp("nano"))


def geneval(*branches: str, **options: Any) -> GenEval:
    rows = {f"row {i}": Row(1, branch=branch) for i, branch in enumerate(branches)}
    return GenEval(SceneDetector(), prompts=GenEvalPrompts(limit=6), rows={"teacher": None, **rows}, **options)


def gedit(*branches: str) -> GEdit:
    rows = {f"row {i}": Row(1, branch=branch) for i, branch in enumerate(branches)}
    return GEdit(SceneJudge(), GEditData(per_kind=1), {"teacher": None, **rows})


class Drawn(Exception):
    pass


def test_all_missing_files_of_all_rows_are_named_before_anything_is_drawn(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*_: object) -> None:
        raise Drawn

    monkeypatch.setattr(GenEval, "evaluate", draw)
    callbacks = [
        geneval("a.safetensors", "b.safetensors", fidelity=Fidelity(teacher="features.safetensors")),
        gedit("b.safetensors", "c.safetensors"),
    ]
    for own in (callbacks, callbacks[::-1]):
        with pytest.raises(FileNotFoundError) as error:
            trainer(tmp_path, callbacks=own).test(Pretraining(model=folder), scenes({"generation": 1.0}))
        told = str(error.value)
        names = ("a.safetensors", "b.safetensors", "c.safetensors", "features.safetensors")
        assert all(told.count(name) == 1 for name in names) and "run what makes them first" in told
    with pytest.raises(Drawn):
        trainer(tmp_path, callbacks=[geneval()]).test(Pretraining(model=folder), scenes({"generation": 1.0}))


def test_a_training_needs_what_it_evaluates_only(folder: str) -> None:
    stage = Pretraining(model=folder)
    check_requirements([geneval("a.safetensors")], stage, "fit")
    with pytest.raises(FileNotFoundError, match=r"no such file: a\.safetensors"):
        check_requirements([ImageGrid(), geneval("a.safetensors", every_n_updates=1)], stage, "fit")
    with pytest.raises(CheckpointError, match=r"p\.safetensors: no such file"):
        check_requirements([AddLoss(PairRegression("p.safetensors"))], stage, "fit")


def test_a_branch_is_checked_without_its_tensors(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Bagel.from_pretrained(folder)
    good, foreign = tmp_path / "good.safetensors", tmp_path / "foreign.safetensors"
    branch = model.generation.copy()
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    save_branch(branch, BranchInfo("CFG", 6, base_hash(model)), good)
    save_branch(branch, BranchInfo("CFG", 6, base_hash(nano_bagel(NANO, seed=3))), foreign)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-100])
    monkeypatch.setattr("hyperbagel.bagel.branch_checkpoint.read_tensors", None)
    require_branch(str(good), model)
    with pytest.raises(CheckpointError, match="made for another base model"):
        require_branch(str(foreign), model)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        require_branch(str(cut), model)
    with pytest.raises(CheckpointError, match="not a generation branch"):
        require_branch("scenes/draft", model)
    with pytest.raises(CheckpointError, match="made for another base model"):
        require_branch("scenes/nfe6", model)


def test_all_missing_shards_are_named_at_once() -> None:
    sources = [Source(name, shards=f"{name}-{{0..3}}.tar") for name in ("first", "second")]
    data = InterleavedDataModule(Formatting(str(tokenizer_folder()), latent=PICTURES, vit=PICTURES), train=sources)
    with pytest.raises(ValueError, match=r"no shard first-0\.tar.*; no shard second-0\.tar"):
        data.prepare_data()


def test_one_problem_is_told_in_its_own_words() -> None:
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(CheckpointError, match=r"^a$"):
        require_all([lambda: fail(CheckpointError("a")), lambda: None])
    with pytest.raises(ValueError, match=r"^a; b$"):
        require_all([lambda: fail(CheckpointError("a")), lambda: fail(OSError("b")), lambda: fail(ValueError("a"))])
    with pytest.raises(TypeError):  # a bug
        require_all([lambda: fail(TypeError("a")), lambda: fail(OSError("b"))])
    require_all([])
