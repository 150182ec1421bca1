"""Runs functions as commands: their options are parsed by their signatures, and a user's errors take one line."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, get_type_hints

from jsonargparse import auto_cli

import hyperbagel
from hyperbagel.cli.errors import CommandParser, one_line_errors
from hyperbagel.cli.explanation import UsageError, did_you_mean

Command: TypeAlias = Callable[..., Any]
"""A function of options, of one dataclass called `options`, or of unparsed `arguments`."""
Target: TypeAlias = str | Mapping[str, str]
"""Where a command stands, "module:attribute"; of a group, the same of each of its commands by name."""


def run_command(name: str, target: Target, arguments: Sequence[str]) -> None:
    """Run the command that stands at `target`, or the one of a group that the first argument names."""
    if isinstance(target, Mapping):
        with one_line_errors(f"hyperbagel {name}"):
            command = arguments[0] if arguments else ""
            if command in ("-h", "--help"):
                print(group_help(name, target))
                return
            if command not in target:
                unknown_command(command, tuple(target))
        name, target, arguments = f"{name} {command}", target[command], arguments[1:]
    with one_line_errors(f"hyperbagel {name}"):
        result = _call(find(target), f"hyperbagel {name}", arguments)
    if result is not None:
        print(result)


def find(target: str) -> Any:
    """What stands at "module:attribute"."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def group_help(name: str, targets: Mapping[str, str]) -> str:
    """The commands of a group, each with the first line of its docstring."""
    width = max(map(len, targets))
    lines = [f"  {command.ljust(width)}  {summary(target)}" for command, target in targets.items()]
    return "\n".join([f"usage: hyperbagel {name} COMMAND [ARGS]", "", *lines])


def summary(target: str) -> str:
    """The first line of the docstring at "module:attribute", read without importing what the module needs."""
    module, _, attribute = target.partition(":")
    file = Path(hyperbagel.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.FunctionDef) and statement.name == attribute:
            line = (ast.get_docstring(statement) or "").partition("\n")[0].rstrip(".")
            return line[:1].lower() + line[1:]
    raise LookupError(f"{target} is no function")


def unknown_command(word: str, known: Sequence[str]) -> NoReturn:
    """Raises UsageError, with the commands there are."""
    told = f"no command {word!r}{did_you_mean(word, known)}" if word and not word.startswith("-") else "which command?"
    raise UsageError(f"{told} (one of {', '.join(known)})")


def options_of(command: Command) -> Command:
    """What a command's options are the parameters of: the class of its one parameter `options`, or itself."""
    if list(inspect.signature(command).parameters) != ["options"]:
        return command
    options: Command = get_type_hints(command)["options"]
    return options


def with_underscores(arguments: Sequence[str]) -> list[str]:
    """Options as Python names: `--text-scale=4` becomes `--text_scale=4`; values stay as they are."""

    def convert(argument: str) -> str:
        if not argument.startswith("--") or len(argument) == 2:
            return argument
        option, equals, value = argument[2:].partition("=")
        return f"--{option.replace('-', '_')}{equals}{value}"

    return [convert(argument) for argument in arguments]


def with_list(command: Command, arguments: Sequence[str]) -> list[str]:
    """Arguments in which the words at the end are one list, where the last required option is one of texts.

    So `chat a.png "x" "y"` is `chat a.png '["x", "y"]'`, and without questions the list is empty.
    """
    required = [p for p in inspect.signature(command).parameters.values() if p.default is p.empty]
    if not required or required[-1].annotation != "list[str]":
        return list(arguments)
    words: list[str] = []
    others: list[str] = []
    given = iter(arguments)
    for argument in given:
        if argument.startswith("--") or argument == "-h":
            others.append(argument)
            if "=" not in argument and argument not in ("-h", "--help", "--print_config"):
                others += [value for value in [next(given, None)] if value is not None]
        else:
            words.append(argument)
    alone = len(required) - 1
    if len(words) < alone:
        return [*words, *others]
    return [*words[:alone], json.dumps(words[alone:], ensure_ascii=False), *others]


def with_short_names(command: Command, arguments: Sequence[str]) -> list[str]:
    """Options that are true or false may stand without a value, and the settings of a command's `device` without its
    name: `--quick` is `--quick=true`, and `--dtype bfloat16` is `--device.dtype bfloat16`."""
    try:
        hints = get_type_hints(command)
    except NameError:  # types that are imported for type checkers alone
        return list(arguments)
    short = {name: name for name in hints if name not in ("device", "return")}
    if is_dataclass(device := hints.get("device")):
        inner = get_type_hints(device)
        short = {name: f"device.{name}" for name in inner if name != "device"} | short
        hints = inner | hints
    result = list(arguments)
    for i, argument in enumerate(result):
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in short:
            continue
        following = result[i + 1].lower() if i + 1 < len(result) else ""
        if hints[name] is bool and not equals and following not in ("true", "false", "yes", "no"):
            equals, value = "=", "true"
        result[i] = f"--{short[name]}{equals}{value}"
    return result


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


def _call(command: Command, name: str, arguments: Sequence[str]) -> Any:
    """What a command returns for the arguments."""
    if list(inspect.signature(command).parameters) == ["arguments"]:
        return command(arguments)
    options = options_of(command)
    words = with_list(options, with_short_device(with_short_names(options, with_underscores(arguments))))
    parsed = auto_cli(options, args=words, parser_class=_named(name), as_positional=True)
    return parsed if options is command else command(parsed)


def _named(name: str) -> type[CommandParser]:
    """A parser with the command's name in its usage line."""

    class Parser(CommandParser):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "prog": name})

    return Parser
