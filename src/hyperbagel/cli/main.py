"""Entry point: training commands go to LightningCLI, the others to plain functions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import auto_cli

import hyperbagel
from hyperbagel.cli.app import App, app
from hyperbagel.cli.assembly import Init, init
from hyperbagel.cli.average import Average, average
from hyperbagel.cli.configs import run_configs
from hyperbagel.cli.errors import CommandParser, OneLineParser, one_line_errors
from hyperbagel.cli.explanation import UsageError, did_you_mean
from hyperbagel.cli.pictures import Edit, Generate, edit, generate
from hyperbagel.cli.repeated_keys import refuse_repeated_keys
from hyperbagel.cli.text import Chat, chat
from hyperbagel.files import check_folder

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")

OTHER_COMMANDS = ("export", "checkpoint", "data", "configs", "plan", "report")

COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "generate": (Generate, generate),
    "edit": (Edit, edit),
    "chat": (Chat, chat),
    "app": (App, app),
    "init": (Init, init),
    "average": (Average, average),
}
"""Command -> its options, which become the command line, and what it does with them."""

USAGE = """\
usage: hyperbagel COMMAND [ARGS]

Make the unified multimodal model BAGEL fast.

use a model
  generate    picture from a prompt
  edit        picture from a picture and an instruction
  chat        answer a question, about a picture or not
  app         all of it on an interactive page
  init        build a BAGEL from pretrained or fresh parts
  average     the mean of branches that were trained from one another
  export      a trained part for other programs:  hyperbagel export draft DRAFT OUT

data (shards of interleaved documents)
  data llava-onevision | journeydb | seed-data-edit | folder SRC OUT
  data scenes OUT
  data regenerate SHARDS OUT   the model's own answers, to train its draft head on
  data features SHARDS OUT     a model's hidden states, to train its draft head without running it
  data vocabulary SHARDS OUT   the tokens a draft head may propose
  data inspect SHARDS

train and measure (PyTorch Lightning; settings in YAML, a file or the name of one that is shipped)
  configs     list the configurations that are shipped; copy one:  hyperbagel configs copy scenes/cfg
  fit         run a training stage:  hyperbagel fit --config nano/generation
  test        measure a model or a stage's result
  validate, predict
  plan        memory of a stage on some devices:  hyperbagel plan --config bagel7b/dmdo --devices 8
  checkpoint split | join      a training's state as small files, to go on elsewhere
  report      compare finished runs:  hyperbagel report RUN [RUN ...] [--out FOLDER]

`hyperbagel COMMAND --help` explains a command.
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line `args` (default: the process's)."""
    refuse_repeated_keys()
    arguments = list(sys.argv[1:] if args is None else args)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(USAGE)
    elif command == "--version":
        print(f"hyperbagel {hyperbagel.__version__}")
    elif command in TRAINER_COMMANDS:
        from hyperbagel.cli.trainer import run

        with one_line_errors(f"hyperbagel {command}"):
            run(arguments)
    elif command == "data":
        from hyperbagel.cli.data import DATA_COMMANDS

        run_group("data", DATA_COMMANDS, arguments[1:])
    elif command == "export":
        from hyperbagel.cli.export import EXPORT_COMMANDS

        run_group("export", EXPORT_COMMANDS, arguments[1:])
    elif command == "checkpoint":
        from hyperbagel.cli.checkpoint import CHECKPOINT_COMMANDS

        run_group("checkpoint", CHECKPOINT_COMMANDS, arguments[1:])
    elif command == "plan":
        from hyperbagel.cli.plan import run_plan

        with one_line_errors("hyperbagel plan"):
            run_plan(with_underscores(arguments[1:]))
    elif command == "configs":
        with one_line_errors("hyperbagel configs"):
            run_configs(arguments[1:])
    elif command == "report":
        run_report(arguments[1:])
    elif command in COMMANDS:
        run_command(*COMMANDS[command], f"hyperbagel {command}", arguments[1:])
    else:
        with one_line_errors("hyperbagel"):
            unknown_command(command, (*COMMANDS, *OTHER_COMMANDS, *TRAINER_COMMANDS))


def run_command(options: type, action: Callable[[Any], None], name: str, arguments: Sequence[str]) -> None:
    """Parse the arguments of a plain command and run it."""
    with one_line_errors(name):
        action(_parse(options, name, arguments))


def run_group(group: str, commands: Mapping[str, Callable[..., Any]], arguments: Sequence[str]) -> None:
    """Run a command of a group, such as `hyperbagel data scenes`, and print what it returns."""
    if not arguments or arguments[0] not in commands:
        with one_line_errors(f"hyperbagel {group}"):
            unknown_command(arguments[0] if arguments else "", tuple(commands))
    name = f"hyperbagel {group} {arguments[0]}"
    with one_line_errors(name):
        result = _parse(commands[arguments[0]], name, arguments[1:])
    if result is not None:
        print(result)


def unknown_command(word: str, known: Sequence[str]) -> NoReturn:
    """Raises UsageError, with the commands there are."""
    told = f"no command {word!r}{did_you_mean(word, known)}" if word and not word.startswith("-") else "which command?"
    raise UsageError(f"{told} (one of {', '.join(known)})")


def run_report(arguments: Sequence[str]) -> None:
    """Print the tables of finished runs side by side, and write them if asked to."""
    from hyperbagel.callbacks.report import combined, read_report, tables, write_report

    parser = OneLineParser("hyperbagel report", description="Tables of finished runs, side by side.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder with a report.json, or such a file")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="also write report.json and report.md there")
    with one_line_errors("hyperbagel report"):
        options = parser.parse_args(arguments)
        if options.out is not None:
            check_folder(options.out)
        reports = {run: read_report(run) for run in options.runs}
        print(tables(reports))
        if options.out is not None:
            write_report(combined(reports), options.out)


def with_underscores(arguments: Sequence[str]) -> list[str]:
    """Options as Python names: `--text-scale=4` becomes `--text_scale=4`; values stay as they are."""

    def convert(argument: str) -> str:
        if not argument.startswith("--") or len(argument) == 2:
            return argument
        option, equals, value = argument[2:].partition("=")
        return f"--{option.replace('-', '_')}{equals}{value}"

    return [convert(argument) for argument in arguments]


def with_short_device(arguments: Sequence[str]) -> list[str]:
    """`--device cuda` as `--device.device cuda`; configurations (`--device '{dtype: ...}'`, files) stay."""
    result = list(arguments)
    for i, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if not equals and i + 1 < len(arguments):
            value = arguments[i + 1]
        if option == "--device" and value and not value.startswith("{") and not value.endswith((".yaml", ".json")):
            result[i] = f"--device.device{equals}{value if equals else ''}"
    return result


def _parse(component: Callable[..., Any], name: str, arguments: Sequence[str]) -> Any:
    """What `component`, an options class or a function, returns when called with the arguments."""
    return auto_cli(
        component, args=with_short_device(with_underscores(arguments)), parser_class=_named(name), as_positional=True
    )


def _named(name: str) -> type[CommandParser]:
    """A parser with the command's name in its usage line."""

    class Parser(CommandParser):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "prog": name})

    return Parser
