"""Every configuration parses through the command line, and those of nano size run."""

from pathlib import Path

import pytest
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser

from hyperbagel.callbacks.report import read_report
from hyperbagel.cli import main
from hyperbagel.cli.trainer import TrainerCLI
from tests.runs import nano_folder

CONFIGS = Path(__file__).parents[1] / "configs"
STAGES = ("autoencoder", "understanding", "generation", "pretrain")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> str:
    return nano_folder(tmp_path_factory.mktemp("work") / "runs" / "nano" / "fresh")


class ParsingOnly(TrainerCLI):
    """The command line up to where objects would be made."""

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


@pytest.mark.parametrize("config", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_configuration_parses(config: Path):
    parsed = ParsingOnly(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        args=["fit", "--config", str(config)],
    )
    assert isinstance(parsed.parser, LightningArgumentParser)
    assert parsed.config.fit.model.class_path.startswith("hyperbagel.modules.")


@pytest.mark.parametrize("stage", STAGES)
def test_a_nano_stage_trains(stage: str, fresh: str, monkeypatch: pytest.MonkeyPatch):
    """In a folder of its own, where `runs/nano/fresh` is a nano model."""
    root = Path(fresh).parents[2]
    monkeypatch.chdir(root)
    main(["fit", "--config", str(CONFIGS / "nano" / f"{stage}.yaml")])
    exported = {"autoencoder": "with_autoencoder", "understanding": "with_understanding", "generation": "teacher"}
    if stage in exported:
        assert (root / "runs" / "nano" / exported[stage] / "ema.safetensors").is_file()


def test_the_nano_model_is_measured(fresh: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`hyperbagel test` shows a table with a row for each sampler and leaves a report beside the run."""
    root = Path(fresh).parents[2]
    monkeypatch.chdir(root)
    main(["test", "--config", str(CONFIGS / "nano" / "pretrain.yaml")])
    shown = capsys.readouterr().out
    assert "### geneval" in shown
    assert "| naive-1 " in shown
    (report,) = (root / "runs" / "nano" / "pretrain").rglob("report.json")
    assert read_report(report.parent)["results"]["geneval"]["rows"]["teacher"]["nfe"] == 4
    assert (report.parent / "provenance.json").is_file()
