"""The configurations of BAGEL-7B-MoT run, with a nano model in its place and on one CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hyperbagel.bagel.branch_checkpoint import load_branch
from hyperbagel.bagel.model import Bagel
from hyperbagel.cli import main
from hyperbagel.datamodules.scenes import write_scenes
from tests.runs import nano_folder
from tests.stages import DISTILLATION, STAGES

CONFIGS = Path(__file__).parents[1] / "configs" / "bagel7b"
ROWS = {config: STAGES[name] for name in DISTILLATION for config in STAGES[name].configs}
BRANCHES = {config: row.branch for config, row in ROWS.items()}
DATA = {"journeydb": "generation", "seed-data-edit": "editing", "answers": "question"}

MACHINE = """
data:
  init_args:
    formatting:
      latent: {max_size: 32, min_size: 16, stride: 8}
      vit: {max_size: 32, min_size: 16, stride: 8}
    batching: {batch_size: 2}
    reader: {num_workers: 0}
trainer:
  accelerator: cpu
  devices: 1
  strategy: auto
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and data where the configurations look for them."""
    root = tmp_path_factory.mktemp("work")
    nano_folder(root / "models" / "BAGEL-7B-MoT")
    for name, kind in DATA.items():
        write_scenes(root / "data" / name, size=8, weights={kind: 1.0})
    return root


def run(stage: str, work: Path, *overlays: str, model: Mapping[str, Any] | None = None) -> None:
    """One update. model: arguments of the stage in a last YAML file."""
    last = work / "nano.yaml"
    last.write_text(yaml.safe_dump({"model": {"init_args": dict(model or {})}}) + MACHINE)
    files = [CONFIGS / f"{name}.yaml" for name in (stage, *overlays)]
    limits = [] if stage in BRANCHES else ["--trainer.max_steps", "1"]
    configs = [argument for file in (*files, last) for argument in ("--config", str(file))]
    main(["fit", *configs, "--trainer.default_root_dir", str(work / "runs"), *limits])


def distil(stage: str, work: Path, *overlays: str) -> None:
    """One update of each network."""
    row = ROWS[stage]
    networks = {network: {"accumulate": 1} for network in row.networks}
    run(stage, work, *overlays, model={**networks, **row.outside, "settings": {"max_updates": 1}})


@pytest.fixture(scope="module")
def distilled(work: Path) -> Path:
    """The folder after all stages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        for stage in BRANCHES:
            distil(stage, work)
    return work


def test_the_stages_train_in_full_precision_over_a_model_in_half(distilled: Path) -> None:
    """Each leaves its branch, with what small updates did to it."""
    model = Bagel.from_pretrained(distilled / "models" / "BAGEL-7B-MoT")
    start = model.generation.norm.weight
    for name in BRANCHES.values():
        branch, _ = load_branch(distilled / "runs" / "bagel7b" / "branches" / f"{name}.safetensors", model)
        assert torch.isfinite(branch.norm.weight).all()
        assert not torch.equal(branch.norm.weight, start.bfloat16().float())


@pytest.mark.parametrize("stage", BRANCHES)
def test_adapters_train(stage: str, distilled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    monkeypatch.chdir(distilled)
    path = distilled / "runs" / "bagel7b" / "branches" / f"{BRANCHES[stage]}.safetensors"
    path.rename(path.with_suffix(".full"))
    distil(stage, distilled, f"lora/{stage}")
    model = Bagel.from_pretrained(distilled / "models" / "BAGEL-7B-MoT")
    assert load_branch(path, model)[0].guided
    path.with_suffix(".full").replace(path)


@pytest.mark.parametrize("stage", ["draft_head", "generation"])
def test_the_other_trainings_run(stage: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    run(stage, work)


def test_every_configuration_is_covered() -> None:
    assert {path.stem for path in CONFIGS.glob("[!_]*.yaml")} == {*BRANCHES, "draft_head", "generation"}
    assert {path.stem for path in (CONFIGS / "lora").glob("[!_]*.yaml")} == set(BRANCHES)
