"""Short messages about wrong options and settings, from jsonargparse's long ones."""

from __future__ import annotations

import argparse
import difflib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator

_UNKNOWN = (
    re.compile(r"Subcommand '(?:.+)' does not accept option '(?P<key>.+)'"),
    re.compile(r"Group '(?P<group>.+)' does not accept option '(?P<key>.+)'"),
    re.compile(r"Option '(?P<key>.+)' is not accepted"),
)
_PLACE = re.compile(r"""Parser key "(?P<key>[^"]+)":""")
_CLASS = re.compile(r"Problem with given class_path '(?P<path>[^']+)'")
_NO_ATTRIBUTE = re.compile(r"module '(?P<module>.+)' has no attribute '(?P<name>.+)'")
_TYPE = re.compile(r"Expected an? (?P<type>.+?)\. Got value: (?P<value>.*)", re.DOTALL)
_PROTOCOL = re.compile(r"Import path (\S+) does not implement protocol (\w+)")
_PACKAGES = ("hyperbagel", "lightning", "torch", "examples")


class UsageError(argparse.ArgumentError):
    """An option or a setting that is not understood."""

    def __init__(self, message: str) -> None:
        super().__init__(None, message)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it comes from, the outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def explain(parser: argparse.ArgumentParser, message: str, error: BaseException | None) -> str:
    """One line about what a parser complains of: `place (class): reason`."""
    places: list[str] = []
    told = message
    for link in chain(error):
        if isinstance(link, UsageError):  # of the parser of a class inside
            return _placed(places, str(link))
        told = str(link)
        if (found := _PLACE.match(told)) and found["key"] not in places:
            places.append(found["key"])
        if found := _CLASS.match(told):
            places.append(f"({found['path'].rpartition('.')[2]})")
        if _NO_ATTRIBUTE.fullmatch(told):
            break
    return _placed(places, _reason(parser, told))


def _placed(places: list[str], reason: str) -> str:
    where = " ".join(places)
    return f"{where}: {reason}" if where else reason


def _reason(parser: argparse.ArgumentParser, told: str) -> str:
    for pattern in _UNKNOWN:
        if found := pattern.match(told):
            key = ".".join(part for part in (found.groupdict().get("group"), found["key"]) if part)
            return f"{key} is no setting{did_you_mean(key, _settings(parser))}"
    if found := _NO_ATTRIBUTE.fullmatch(told):
        return f"{found['module']} has no {found['name']}{did_you_mean(found['name'], _names(found['module']))}"
    if found := re.fullmatch(r"No module named '(?P<name>.+)'", told):
        root = found["name"].split(".")[0]
        return f"no module named {found['name']}{did_you_mean(root, _PACKAGES) or '; is its folder on PYTHONPATH?'}"
    if found := re.fullmatch(r"Expected a dot import path string: (?P<name>.+)", told):
        return f"no class {found['name']}: give its path, such as hyperbagel.modules.pretraining.Pretraining"
    if found := re.match(r"unrecognized arguments: (?P<arguments>.*)", told, re.DOTALL):
        return _unrecognized(parser, found["arguments"])
    if found := re.match(r"the following arguments are required: (?P<keys>.*)", told):
        keys = [re.sub(r"^(fit|validate|test|predict)\.", "", key) for key in found["keys"].split(", ")]
        return f"{', '.join(keys)} {'is' if len(keys) == 1 else 'are'} missing; see --help"
    if found := _TYPE.match(told):
        wanted = re.sub(r"^Literal\[(.*)\]$", r"one of \1", _plain(found["type"]))
        return f"{_plain(found['value'])!r} is not {wanted}"
    if found := re.fullmatch(r"(?:File does not exist|Path is not a file): '(?P<path>.+)'", told):
        return f"no such file: {found['path']}"
    if told.startswith("Unexpected config:"):
        return "holds no settings (a mapping such as `trainer: {max_steps: 10}`)"
    if unlike := _PROTOCOL.findall(told):
        return " or ".join(dict.fromkeys(_unlike(path, protocol) for path, protocol in unlike))
    return _plain(_PLACE.sub("", told))


def _unlike(path: str, protocol: str) -> str:
    """Which methods a plug-in needs, or has without the arguments and type hints by which it would be recognised."""
    module, _, name = path.rpartition(".")
    given = getattr(sys.modules.get(module), name, None)
    loaded = [module for name, module in list(sys.modules.items()) if name.startswith("hyperbagel.")]
    wanted = next((vars(module)[protocol] for module in loaded if protocol in vars(module)), None)
    faults = []
    for method, function in inspect.getmembers(wanted, inspect.isfunction):
        if method.startswith("_"):
            continue
        if not hasattr(given, method):
            faults.append(f"no method {method}{_signature(function)}")
        elif (found := _signature(getattr(given, method))) != _signature(function):
            faults.append(f"{method}{found}, which has to be {method}{_signature(function)}, type hints included")
    return f"{name} is no {protocol}: it has {', and '.join(faults) or 'other methods'}"


def _signature(function: object) -> str:
    """The arguments and hints of a function, types by their last names."""
    try:
        signature = str(inspect.signature(function))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return " that is no method"
    return re.sub(r"(?:\w+\.)+(\w+)", r"\1", signature.replace("'", ""))


def _unrecognized(parser: argparse.ArgumentParser, arguments: str) -> str:
    first = arguments.split(" ")[0].split("=")[0]
    if not first.startswith("-"):
        return f"unexpected argument {first!r}"
    options = [option for one in _with_subcommand(parser) for option in one._option_string_actions]
    return f"no option {first}{did_you_mean(first, options) or did_you_mean(first.split('.')[0], options)}"


def _with_subcommand(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser, and that of the command in its arguments."""
    yield parser
    commands = getattr(getattr(parser, "_subcommands_action", None), "_name_parser_map", {})
    yield from (commands[argument] for argument in getattr(parser, "args", ()) if argument in commands)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question that names the known word closest to one, to be added to a complaint; "" if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _settings(parser: argparse.ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if action.dest != argparse.SUPPRESS]


def _names(module: str) -> list[str]:
    """What a module that was imported holds, modules inside of it included."""
    found = sys.modules.get(module)
    inside = [entry.name for entry in pkgutil.iter_modules(getattr(found, "__path__", ()))]
    return [*dir(found), *inside] if found is not None else []


def _plain(text: str) -> str:
    """On one line, types by their names, and without the value that was given, which may be pages."""
    text = re.sub(r"\. Got value: .*|\n *Given value.*", "", text, flags=re.DOTALL)
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("typing.", "")
    return " ".join(text.split())
