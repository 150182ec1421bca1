"""`hyperbagel fit`, `validate`, `test`, `predict`: LightningCLI over stages and data modules chosen by class path."""

from __future__ import annotations

from collections.abc import Sequence

from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI


class TrainerCLI(LightningCLI):
    """Stages take their optimizers as arguments, and the saved config, not the checkpoint, is the record of a run."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Defaults that these stages and data modules need."""
        parser.set_defaults({"trainer.use_distributed_sampler": False})


def run(arguments: Sequence[str]) -> None:
    """Run one trainer command, such as ["fit", "--config", "stage.yaml"]."""
    TrainerCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        args=list(arguments),
    )
