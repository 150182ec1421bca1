"""The entry point: the table of all commands, and the text of `hyperbagel --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import hyperbagel
from hyperbagel.cli.commands import Target, run_command, summary, unknown_command
from hyperbagel.cli.errors import one_line_errors
from hyperbagel.cli.repeated_keys import refuse_repeated_keys

COMMANDS: dict[str, Target] = {
    "generate": "hyperbagel.cli.pictures:generate",
    "edit": "hyperbagel.cli.pictures:edit",
    "chat": "hyperbagel.cli.text:chat",
    "app": "hyperbagel.cli.app:app",
    "init": "hyperbagel.cli.assembly:init",
    "average": "hyperbagel.cli.average:average",
    "export": {
        "draft": "hyperbagel.cli.export:draft",
        "model": "hyperbagel.cli.export:whole_model",
        "lora": "hyperbagel.cli.export:lora",
    },
    "inspect": "hyperbagel.cli.inspection:inspect",
    "checkpoint": {"split": "hyperbagel.cli.checkpoint:split", "join": "hyperbagel.cli.checkpoint:join"},
    "data": {
        "llava-onevision": "hyperbagel.datamodules.convert.llava_onevision:convert_llava_onevision",
        "journeydb": "hyperbagel.datamodules.convert.journeydb:convert_journeydb",
        "seed-data-edit": "hyperbagel.datamodules.convert.seed_data_edit:convert_seed_data_edit",
        "folder": "hyperbagel.datamodules.convert.folder:convert_folder",
        "scenes": "hyperbagel.cli.data:scenes",
        "regenerate": "hyperbagel.cli.model_data:regenerate",
        "features": "hyperbagel.cli.model_data:features",
        "latents": "hyperbagel.cli.model_data:latents",
        "vocabulary": "hyperbagel.cli.model_data:vocabulary",
        "phrases": "hyperbagel.cli.model_data:phrases",
        "inspect": "hyperbagel.cli.data:inspect",
    },
    "configs": "hyperbagel.cli.configs:configs",
    "plan": "hyperbagel.cli.plan:run_plan",
    "bench": "hyperbagel.cli.bench:bench",
    "report": "hyperbagel.cli.report:report",
    "fit": "hyperbagel.cli.training:fit",
    "validate": "hyperbagel.cli.training:validate",
    "test": "hyperbagel.cli.training:test",
    "predict": "hyperbagel.cli.training:predict",
}
"""Imported when they are called."""

_USAGE = """\
usage: hyperbagel COMMAND [ARGS]

Make the unified multimodal model BAGEL fast.

use a model
  {generate}
  {edit}
  {chat}
  {app}
  {init}
  {average}
  export model | lora | draft   trained parts for other programs: export model OUT --branch scenes/nfe6 --text-scale 4
  {inspect}

data (shards of interleaved documents)
  data llava-onevision | journeydb | seed-data-edit | folder SRC OUT
  data scenes OUT
  data regenerate SHARDS OUT   the model's own answers, to train its draft head on
  data features SHARDS OUT     a model's hidden states, to train its draft head without running it
  data latents SHARDS OUT      latents of pictures, to train what draws without the autoencoder
  data vocabulary SHARDS OUT   the tokens a draft head may propose
  data phrases SHARDS OUT      what answers mostly say, to propose it without a draft head
  data inspect SHARDS

train and measure (PyTorch Lightning; settings in YAML, a file or the name of one that is shipped)
  {configs}:  hyperbagel configs copy scenes/cfg_distillation
  {fit}:  hyperbagel fit --config nano/generation
  {test}
  validate, predict
  {plan}:  hyperbagel plan --config bagel7b/dmdo --devices 8
  {bench}:  hyperbagel bench --preset 7b --quick
  checkpoint split | join      a training's state as small files, to go on elsewhere
  {report}:  hyperbagel report RUN [RUN ...] [--out FOLDER]

`hyperbagel COMMAND --help` explains a command.
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line `args` (default: the process's)."""
    refuse_repeated_keys()
    arguments = list(sys.argv[1:] if args is None else args)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(usage())
    elif command == "--version":
        print(f"hyperbagel {hyperbagel.__version__}")
    elif command in COMMANDS:
        run_command(command, COMMANDS[command], arguments[1:])
    else:
        with one_line_errors("hyperbagel"):
            unknown_command(command, tuple(COMMANDS))


def usage() -> str:
    """All commands, each with the first line of its docstring."""
    single = {name: target for name, target in COMMANDS.items() if isinstance(target, str)}
    return _USAGE.format_map({name: f"{name:<12}{summary(target)}" for name, target in single.items()})
