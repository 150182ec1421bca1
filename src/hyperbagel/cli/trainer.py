"""LightningCLI over stages and data modules chosen by class path: what `hyperbagel fit` and its like run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from hyperbagel.callbacks.report import Report
from hyperbagel.callbacks.requirements import check_requirements
from hyperbagel.callbacks.safeguard import Safeguard, readable_checkpoint
from hyperbagel.callbacks.update_bar import UpdateBar
from hyperbagel.cli.bases import BASES, stage_of, with_bases
from hyperbagel.cli.configs import with_found_configs
from hyperbagel.cli.errors import OneLineParser
from hyperbagel.cli.moved import FormerNames
from hyperbagel.cli.named_callbacks import add_named_callbacks, in_order
from hyperbagel.cli.outcome import outcome
from hyperbagel.cli.precision import in_arguments, with_precision
from hyperbagel.cli.quiet import leave_out_noise
from hyperbagel.cli.repeated_keys import refuse_repeated_keys
from hyperbagel.cli.saved_config import WholeConfig

_STEPS = {"validate": ("validation_step",), "test": ("test_step",), "predict": ("predict_step", "forward")}
_INSTEAD = {
    "predict": "derive it from hyperbagel.training.stage.Stage, whose stages draw, edit and answer",
    "test": "to measure the branch that it trained, `test` hyperbagel.modules.pretraining.Pretraining with a row "
    "whose `branch` is that file",
}
_INSTEAD["validate"] = _INSTEAD["test"]


class TrainerParser(OneLineParser, LightningArgumentParser):
    """LightningCLI's parser."""


class TrainerCLI(LightningCLI):
    """Stages take their optimizers as arguments, and the saved config, not the checkpoint, is the record of a run."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Defaults that these stages and data modules need."""
        parser.set_defaults({"trainer.use_distributed_sampler": False, "trainer.enable_model_summary": False})
        add_named_callbacks(parser)

    def _parse_ckpt_path(self) -> None:
        """Look into a checkpoint before anything is made, and take its settings over, if it has any.

        Raises FileNotFoundError, or ValueError for what is no whole checkpoint of a run.
        """
        path = self.config[self.config.subcommand].get("ckpt_path") or "last"
        with readable_checkpoint(path):
            content = torch.load(path, "cpu", mmap=True, weights_only=True) if Path(path).is_file() else None
        if content is not None and "state_dict" not in content:
            raise ValueError(f"{path}: not a checkpoint of a run; give a .ckpt file, or last")
        if content is not None and "hyper_parameters" in content:
            super()._parse_ckpt_path()

    def instantiate_classes(self) -> None:
        """Make all objects. Raises ValueError for a command that the stage has nothing for, before time is spent."""
        refuse_command(str(self.subcommand), self.config[self.subcommand].model.class_path)
        super().instantiate_classes()

    def after_instantiate_classes(self) -> None:
        """Raises OSError or ValueError for what callbacks will need and not find, before data is prepared."""
        check_requirements(self.trainer.callbacks, self.model, str(self.subcommand))  # type: ignore[attr-defined]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, whose own folder is its logger's unless it is set. Raises ValueError for devices that are not
        there."""
        made = self.config_init[self.subcommand]
        made.trainer.callbacks = in_order(made.callbacks, made.trainer.callbacks)
        shown = made.trainer.enable_progress_bar is not False
        if shown and not any(isinstance(callback, ProgressBar) for callback in made.trainer.callbacks):
            made.trainer.callbacks.append(UpdateBar())
        if made.trainer.default_root_dir is None and isinstance(made.trainer.logger, TensorBoardLogger | CSVLogger):
            made.trainer.default_root_dir = made.trainer.logger.root_dir
        try:
            return super().instantiate_trainer(**kwargs)
        except MisconfigurationException as error:
            wanted = self.config[self.subcommand].trainer
            raise ValueError(
                f"trainer.accelerator {wanted.accelerator}, trainer.devices {wanted.devices}: {error} "
                "`--trainer.accelerator auto --trainer.devices auto` takes what there is"
            ) from error

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Lightning's table is left out where a report shows the same figures."""
        arguments: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if any(isinstance(callback, Report) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            arguments |= {"verbose": False} if "verbose" in arguments else {}
        return arguments

    def after_fit(self) -> None:
        """Tell what the training left and what can be done with it."""
        told = outcome(self.trainer, self.model)  # ranks agree on folders, so all of them have to ask
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            print(told)

    def after_predict(self) -> None:
        """Tell where the predictions are."""
        predictor = getattr(self.model, "predictor", None)
        if predictor is not None and self.trainer.is_global_zero:
            told = f"{predictor.written} documents written" + (f", {predictor.kept} were there" * (predictor.kept > 0))
            print(f"{predictor.folder}: {told}")


class ConfigReader(TrainerCLI):
    """The command line up to where objects would be made."""

    def instantiate_classes(self) -> None:
        """Make nothing."""

    def after_instantiate_classes(self) -> None:
        """Check nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def refuse_command(command: str, class_path: str) -> None:
    """Raises ValueError, with what to do instead, for a command that a stage has no step for."""
    steps = _STEPS.get(command, ())
    module, _, name = class_path.rpartition(".")
    stage = getattr(import_module(module), name)
    if steps and all(getattr(stage, step, None) is getattr(LightningModule, step) for step in steps):
        raise ValueError(f"{name} has no `{steps[0]}`, so `{command}` has nothing to do: {_INSTEAD[command]}")


def _start(cli: type[TrainerCLI], arguments: Sequence[str]) -> TrainerCLI:
    arguments = in_arguments(with_bases(with_found_configs(arguments)))
    names = FormerNames(stage_of(arguments))
    arguments, found = names.in_arguments(arguments)
    _warn_of_former_names(found, "command line")
    warned: set[str] = set()

    def of_file(settings: Any, file: str) -> Any:
        """The settings of a file without its bases, which are laid under it, and by present names and values."""
        settings, former = names.in_settings(with_precision(settings))
        if file not in warned:
            _warn_of_former_names(former, file)
            warned.add(file)
        return (
            {key: value for key, value in settings.items() if key != BASES} if isinstance(settings, dict) else settings
        )

    refuse_repeated_keys(of_file)
    command = arguments[0]

    class OfCommand(cli):  # type: ignore[valid-type, misc]
        """With the options of one command only: those of each take a second to collect."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {command: LightningCLI.subcommands()[command]}

    leave_out_noise()
    made: TrainerCLI = OfCommand(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_callback=WholeConfig,
        trainer_defaults={"callbacks": [Safeguard()]},
        parser_class=TrainerParser,
        args=arguments,
    )
    return made


def _warn_of_former_names(found: Mapping[str, str], place: str) -> None:
    if found:
        told = ", ".join(f"{former} is now {now}" for former, now in found.items())
        warnings.warn(f"{place}: {told}; the next release knows the new names only", FutureWarning, stacklevel=3)


def run(arguments: Sequence[str]) -> None:
    """Run one trainer command, such as ["fit", "--config", "stage.yaml"] or ["fit", "--config", "nano/tscd"]."""
    _start(TrainerCLI, arguments)


def read_config(files: Sequence[str | Path], command: str = "fit") -> Namespace:
    """The checked settings of YAML files or names, later ones overriding earlier ones: `model`, `data`, ..."""
    return read_arguments([command, *(option for file in files for option in ("--config", str(file)))])


def read_arguments(arguments: Sequence[str]) -> Namespace:
    """The checked settings of a trainer command, such as ["fit", "--config", "nano/tscd"]: `model`, `data`, ..."""
    settings: Namespace = _start(ConfigReader, arguments).config[arguments[0]]
    return settings
