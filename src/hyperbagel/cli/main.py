"""The entry point: the table of all commands, and the text of `hyperbagel --help`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import hyperbagel
from hyperbagel.cli.commands import run_command, unknown_command
from hyperbagel.cli.errors import one_line_errors
from hyperbagel.cli.repeated_keys import refuse_repeated_keys

COMMANDS = {
    "generate": "hyperbagel.cli.pictures:generate",
    "edit": "hyperbagel.cli.pictures:edit",
    "chat": "hyperbagel.cli.text:chat",
    "app": "hyperbagel.cli.app:app",
    "init": "hyperbagel.cli.assembly:init",
    "average": "hyperbagel.cli.average:average",
    "export": "hyperbagel.cli.export:EXPORT_COMMANDS",
    "inspect": "hyperbagel.cli.inspection:inspect",
    "checkpoint": "hyperbagel.cli.checkpoint:CHECKPOINT_COMMANDS",
    "data": "hyperbagel.cli.data:DATA_COMMANDS",
    "configs": "hyperbagel.cli.configs:configs",
    "plan": "hyperbagel.cli.plan:run_plan",
    "report": "hyperbagel.cli.report:report",
    "fit": "hyperbagel.cli.trainer:fit",
    "validate": "hyperbagel.cli.trainer:validate",
    "test": "hyperbagel.cli.trainer:test",
    "predict": "hyperbagel.cli.trainer:predict",
}
"""Command -> "module:attribute" of its function, or of a group's functions by name; imported when it is called."""

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
  {export}:  hyperbagel export model OUT --branch scenes/nfe6 --text-scale 4
  {inspect}

data (shards of interleaved documents)
  data llava-onevision | journeydb | seed-data-edit | folder SRC OUT
  data scenes OUT
  data regenerate SHARDS OUT   the model's own answers, to train its draft head on
  data features SHARDS OUT     a model's hidden states, to train its draft head without running it
  data vocabulary SHARDS OUT   the tokens a draft head may propose
  data inspect SHARDS

train and measure (PyTorch Lightning; settings in YAML, a file or the name of one that is shipped)
  {configs}:  hyperbagel configs copy scenes/cfg_distillation
  {fit}:  hyperbagel fit --config nano/generation
  {test}
  validate, predict
  {plan}:  hyperbagel plan --config bagel7b/dmdo --devices 8
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
    return _USAGE.format_map({name: f"{name:<12}{_summary(target)}" for name, target in COMMANDS.items()})


def _summary(target: str) -> str:
    """The first line of the docstring of "module:attribute", read without importing what the module needs."""
    module, _, attribute = target.partition(":")
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    statements = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    for statement, following in zip(statements, [*statements[1:], None], strict=True):
        text = None
        if isinstance(statement, ast.FunctionDef) and statement.name == attribute:
            text = ast.get_docstring(statement)
        elif isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == attribute:
            text = ast.literal_eval(following.value) if isinstance(following, ast.Expr) else None
        if text:
            line = text.partition("\n")[0].rstrip(".")
            return line[:1].lower() + line[1:]
    raise LookupError(f"{target} has no docstring")
