"""Runs functions as commands: their options are parsed by their signatures, and a user's errors take one line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn, TypeAlias, get_type_hints

from jsonargparse import auto_cli

from hyperbagel.cli.errors import CommandParser, one_line_errors
from hyperbagel.cli.explanation import UsageError, did_you_mean

Command: TypeAlias = Callable[..., Any]
"""A function of options, of one dataclass called `options`, or of unparsed `arguments`."""


def run_command(name: str, target: str, arguments: Sequence[str]) -> None:
    """Run what stands at `target`, "module:attribute": a command, or a group of them by name."""
    with one_line_errors(f"hyperbagel {name}"):
        found = find(target)
        if isinstance(found, Mapping):
            command = arguments[0] if arguments else ""
            if command not in found:
                unknown_command(command, tuple(found))
            name, found, arguments = f"{name} {command}", found[command], arguments[1:]
    with one_line_errors(f"hyperbagel {name}"):
        result = _call(found, f"hyperbagel {name}", arguments)
    if result is not None:
        print(result)


def find(target: str) -> Any:
    """What stands at "module:attribute"."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


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
    words = with_short_device(with_underscores(arguments))
    parsed = auto_cli(options, args=words, parser_class=_named(name), as_positional=True)
    return parsed if options is command else command(parsed)


def _named(name: str) -> type[CommandParser]:
    """A parser with the command's name in its usage line."""

    class Parser(CommandParser):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "prog": name})

    return Parser
