"""`hyperbagel fit`, `validate`, `test`, `predict`: what can be told of a command line before Lightning is imported."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from hyperbagel.cli.bases import BASES, content, stage_of, with_bases
from hyperbagel.cli.configs import with_found_configs
from hyperbagel.cli.early_check import SettingsCheck
from hyperbagel.cli.explanation import UsageError, did_you_mean
from hyperbagel.cli.moved import FormerNames

SETTINGS = ("model", "data", "trainer", "callbacks", "optimizer", "lr_scheduler", "seed_everything", "ckpt_path")
"""Parts of a configuration."""
_OF_COMMANDS = ("weights_only", "verbose", "return_predictions", "config", "print_config", "help")
_ALL = ["--help", "all"]

_HELP = """\
usage: hyperbagel {command} --config NAME [--config NAME ...] [--SETTING VALUE ...]

{what}

  --config NAME         YAML file, or the name of one that is shipped (`hyperbagel configs` lists them); several are
                        laid over each other, the later over the earlier
  --SETTING VALUE       any setting of the YAML, such as --model.init_args.settings.max_updates 10, --trainer.devices 2,
                        --data.init_args.batching.batch_size 4 or --trainer.logger.init_args.name mine
  --ckpt_path FILE      checkpoint of a run to go on from, or last for the run's own
  --seed_everything N   seed of what has no seed of its own
  --print_config        print all settings as YAML, and stop
  --model.help CLASS    the settings of a stage, such as hyperbagel.modules.CFGDistillation
  --data.help CLASS     those of a data module, such as hyperbagel.datamodules.interleaved.InterleavedDataModule
  --help all            the options of the trainer and the callbacks too
"""


def fit(arguments: Sequence[str]) -> None:
    """Run a training stage."""
    _run("fit", fit.__doc__, arguments)


def validate(arguments: Sequence[str]) -> None:
    """Measure a stage on the data kept for validation."""
    _run("validate", validate.__doc__, arguments)


def test(arguments: Sequence[str]) -> None:
    """Measure a model or a stage's result."""
    _run("test", test.__doc__, arguments)


def predict(arguments: Sequence[str]) -> None:
    """Draw, edit or answer the documents of a data module."""
    _run("predict", predict.__doc__, arguments)


def _run(command: str, what: str | None, arguments: Sequence[str]) -> None:
    if list(arguments) in (["-h"], ["--help"], []):
        print(_HELP.format(command=command, what=what))
        return
    if list(arguments) == _ALL:
        arguments = ["--help"]
    check_names(arguments)
    from hyperbagel.cli.trainer import run

    run([command, *arguments])


def check_names(arguments: Sequence[str]) -> None:
    """Raises, within a blink, FileNotFoundError for a missing configuration, UsageError for an unknown setting."""
    known = (*SETTINGS, *_OF_COMMANDS)
    for argument in arguments:
        name = argument[2:].partition("=")[0].partition(".")[0].removesuffix("+")
        if argument.startswith("--") and name not in known:
            close = did_you_mean(name, known).replace("mean ", "mean --")
            raise UsageError(f"no option {argument.partition('=')[0]}{close}")
    arguments = with_bases(with_found_configs(arguments))
    former = FormerNames(stage_of(arguments))
    check = SettingsCheck()
    options = []
    for argument in arguments:
        option, _, value = argument.partition("=")
        if option != "--config":
            options.append(argument)
            continue
        settings = content(Path(value))
        for key in settings:
            if str(key).partition(".")[0].removesuffix("+") not in (*SETTINGS, *_OF_COMMANDS, BASES):
                raise UsageError(f"{value}: {key} is no setting{did_you_mean(str(key), SETTINGS)}")
        check.file(former.in_settings(settings)[0], value)
    for argument, following in pairwise([*former.in_arguments(options)[0], ""]):
        option, equals, value = argument.partition("=")
        if option.startswith("--"):
            check.option(option, value if equals else following)
