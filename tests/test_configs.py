"""Every configuration parses through the command line, and those of nano size run."""

from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyperbagel.bagel.branch_checkpoint import load_branch
from hyperbagel.bagel.model import Bagel
from hyperbagel.cli import main
from hyperbagel.cli.trainer import read_config
from hyperbagel.evaluation.reports import read_report
from tests.runs import nano_folder
from tests.stages import STAGES as CATALOGUE

CONFIGS = Path(__file__).parents[1] / "configs"
ROWS = {config: row for row in CATALOGUE.values() for config in row.configs}
STAGES = [config for config, row in ROWS.items() if row.branch is None]
DISTILLATION = {config: row.branch for config, row in ROWS.items() if row.branch is not None}
"""Stage -> name of its branch."""

ABLATIONS = {config: row.ablation for config, row in ROWS.items() if row.ablation is not None}
"""Stage -> configuration of its ablation."""

ADDED_LOSS = """
trainer:
  callbacks+:
    - class_path: hyperbagel.callbacks.AddLoss
      init_args:
        term: {class_path: tests.custom_loss.LatentContrast, init_args: {spread: 0.5, weight: 0.1}}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: added, filename: last, every_n_train_steps: 1}
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> str:
    return nano_folder(tmp_path_factory.mktemp("work") / "fresh" / "nano")


@pytest.mark.parametrize("config", sorted(CONFIGS.rglob("[!_]*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_configuration_parses(config: Path):
    """Each stands for itself, on its bases."""
    assert read_config([config]).model.class_path.startswith("hyperbagel.modules.")


@pytest.mark.parametrize("stage", STAGES)
def test_a_nano_stage_trains(stage: str, fresh: str, monkeypatch: pytest.MonkeyPatch):
    """In a folder of its own, where `fresh/nano` is a nano model."""
    root = Path(fresh).parents[1]
    monkeypatch.chdir(root)
    main(["fit", "--config", str(CONFIGS / "nano" / f"{stage}.yaml")])
    exported = {"autoencoder": "with_autoencoder", "understanding": "with_understanding", "generation": "teacher"}
    exported |= {"teacher_tuning": "tuned"}
    if stage in exported:
        assert (root / "runs" / "nano" / exported[stage] / "ema.safetensors").is_file()


def test_the_nano_draft_head_is_measured(fresh: str, monkeypatch: pytest.MonkeyPatch):
    """As configured, and the plain baseline by an option of the command line."""
    root = Path(fresh).parents[1]
    monkeypatch.chdir(root)
    if not (root / "runs" / "nano" / "draft" / "draft.safetensors").is_file():
        fit("draft_head")
    eagle3 = [
        "--model.init_args.method.draft",
        "{kind: eagle3, layers: 1}",
        "--trainer.logger.init_args.name",
        "eagle3",
    ]
    fit("draft_head", *eagle3, "--trainer.limit_val_batches", "0")
    for name in ("draft", "eagle3"):
        head = f"runs/nano/{name}/draft.safetensors"
        main(["test", "--config", str(CONFIGS / "nano" / "draft_head.yaml"), "--model.init_args.init_from", head])
        rows = read_report(root / "runs" / "nano" / "draft")["results"]["speculation"]["rows"]
        assert {"chain", "tree"} <= set(rows) and any(row.startswith("chain, ") for row in rows)
        assert rows["chain"]["speculation/differing_answers"] == rows["tree"]["speculation/differing_answers"] == 0


def test_the_nano_model_is_measured(fresh: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`hyperbagel test` shows a table with a row for each sampler and leaves a report beside the run."""
    root = Path(fresh).parents[1]
    monkeypatch.chdir(root)
    main(["test", "--config", str(CONFIGS / "nano" / "pretrain.yaml")])
    shown = capsys.readouterr().out
    assert "### geneval" in shown
    assert "| naive-1 " in shown
    (report,) = (root / "runs" / "nano" / "pretrain").rglob("report.json")
    assert read_report(report.parent)["results"]["geneval"]["rows"]["teacher"]["nfe"] == 4
    assert (report.parent / "provenance.json").is_file()


def fit(config: str, *arguments: str) -> None:
    main(["fit", "--config", str(CONFIGS / "nano" / f"{config}.yaml"), *arguments])


@pytest.fixture(scope="module")
def distilled(fresh: str) -> Path:
    """A folder in which the stages of nano size ran one after the other."""
    root = Path(fresh).parents[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for stage in DISTILLATION:
            fit(stage)
    return root


def test_the_nano_stages_of_distillation_follow_each_other(distilled: Path, monkeypatch: pytest.MonkeyPatch):
    """Each starts from the branch before, and leaves one made for its number of evaluations."""
    model = Bagel.from_pretrained(distilled / "fresh" / "nano")
    found = {}
    for stage, name in DISTILLATION.items():
        branch, info = load_branch(distilled / "runs" / "nano" / "branches" / f"{name}.safetensors", model)
        assert branch.guided
        found[stage] = (info.stage, info.nfe)
    assert found == {
        "cfg_distillation": ("CFGDistillation", 0), "tscd": ("TSCD", 6), "dmdo": ("DMDO", 6), 
        "reward_tuning": ("RewardTuning", 6), "adp": ("ADP", 1), "refl": ("ReFL", 1),
    }  # fmt: skip


def test_distilled_branches_are_measured_beside_the_teacher(
    distilled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(distilled)
    main(["test", "--config", str(CONFIGS / "nano" / "distilled.yaml")])
    (report,) = (distilled / "runs" / "nano" / "distilled").rglob("report.json")
    results = read_report(report.parent)["results"]
    assert {row: metrics["nfe"] for row, metrics in results["geneval"]["rows"].items()} == {
        "nfe6": 6, "nfe1": 1, "naive-1": 2
    }  # fmt: skip
    assert {row: metrics["nfe"] for row, metrics in results["gedit"]["rows"].items()} == {"nfe6": 6, "naive-1": 3}


@pytest.mark.parametrize("stage", DISTILLATION)
def test_a_loss_is_added_to_a_stage_by_yaml(stage: str, distilled: Path, monkeypatch: pytest.MonkeyPatch):
    """It is in the stage's sum, its parameter trains with the student, and it is in the checkpoint."""
    monkeypatch.chdir(distilled)
    overlay = distilled / "added.yaml"
    overlay.write_text(ADDED_LOSS)
    for leftover in (distilled / "added").glob("*"):
        leftover.unlink()
    fit(stage, "--config", str(overlay), "--trainer.default_root_dir", f"runs/added/{stage}")
    checkpoint = torch.load(distilled / "added" / "last.ckpt", weights_only=True)
    (scale,) = (value for name, value in checkpoint["state_dict"].items() if name.endswith(".scale"))
    assert scale != 1
    events = EventAccumulator(str(next((distilled / "runs" / "added" / stage).rglob("events*")).parent)).Reload()
    assert {"loss/contrast", "contrast/spread"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("stage", ABLATIONS)
def test_ablations_are_settings(stage: str, distilled: Path, monkeypatch: pytest.MonkeyPatch):
    """A stage of nano size runs with the method of a scenes ablation; ADP without its pixel critic."""
    monkeypatch.chdir(distilled)
    file = CONFIGS / "scenes" / "ablations" / f"{ABLATIONS[stage]}.yaml"
    method = yaml.safe_load(file.read_text())["model"]["init_args"]["method"]
    method.pop("heads", None)  # of another size
    own = {"method": method} | ({"features": None} if stage == "adp" else {})
    Path("ablation.yaml").write_text(yaml.safe_dump({"model": {"init_args": own}}))
    options = ("--config", "ablation.yaml", "--model.init_args.settings.export", "ablated.safetensors")
    fit(stage, *options, "--trainer.default_root_dir", f"runs/ablated/{stage}")
    events = EventAccumulator(str(next((distilled / "runs" / "ablated" / stage).rglob("events*")).parent)).Reload()
    losses = {tag for tag in events.Tags()["scalars"] if tag.startswith("loss/")}
    assert losses == {f"loss/{name}" for name in ROWS[stage].ablated_losses}
    usual = distilled / "runs" / "nano" / "branches" / f"{DISTILLATION[stage]}.safetensors"
    assert (distilled / "ablated.safetensors").read_bytes() != usual.read_bytes()


def test_a_finished_stage_has_nothing_left_to_do(distilled: Path, monkeypatch: pytest.MonkeyPatch):
    """What makes `make distill` go on where it was stopped: a resumed stage that is done only writes its branch."""
    monkeypatch.chdir(distilled)
    overlay = distilled / "saved.yaml"
    overlay.write_text(ADDED_LOSS[: ADDED_LOSS.index("    - class_path: hyperbagel.callbacks.AddLoss")])
    saver = """    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: runs/nano/cfg/checkpoints, save_last: true, every_n_train_steps: 1}
"""
    overlay.write_text(overlay.read_text() + saver)
    options = ("--config", str(overlay), "--model.init_args.settings.export", "again.safetensors")
    fit("cfg_distillation", *options, "--ckpt_path", "last")
    first = (distilled / "again.safetensors").read_bytes()
    (distilled / "again.safetensors").unlink()
    fit("cfg_distillation", *options, "--ckpt_path", "last")
    assert (distilled / "again.safetensors").read_bytes() == first
