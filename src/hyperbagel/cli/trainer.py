"""`hyperbagel fit`, `validate`, `test`, `predict`: LightningCLI over stages and data modules chosen by class path."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from hyperbagel.callbacks.safeguard import Safeguard
from hyperbagel.cli.configs import with_found_configs


class TrainerCLI(LightningCLI):
    """Stages take their optimizers as arguments, and the saved config, not the checkpoint, is the record of a run."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Defaults that these stages and data modules need."""
        parser.set_defaults({"trainer.use_distributed_sampler": False})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse without the warning that arguments are handed over: they always are, by the command line or `plan`."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "LightningCLI's args parameter")
            super().parse_arguments(parser, args)


class ConfigReader(TrainerCLI):
    """The command line up to where objects would be made."""

    def instantiate_classes(self) -> None:
        """Make nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def _start(cli: type[TrainerCLI], arguments: Sequence[str]) -> TrainerCLI:
    return cli(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"callbacks": [Safeguard()]},
        args=with_found_configs(arguments),
    )


def run(arguments: Sequence[str]) -> None:
    """Run one trainer command, such as ["fit", "--config", "stage.yaml"] or ["fit", "--config", "nano/cfg"]."""
    _start(TrainerCLI, arguments)


def read_config(files: Sequence[str | Path], command: str = "fit") -> Namespace:
    """The checked settings of YAML files or names, later ones overriding earlier ones: `model`, `data`, ..."""
    options = [option for file in files for option in ("--config", str(file))]
    settings: Namespace = _start(ConfigReader, [command, *options]).config[command]
    return settings
