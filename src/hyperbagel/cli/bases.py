"""Configurations laid over others: `bases` in a YAML file names the files, or the shipped ones, that lie under it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from hyperbagel.cli.configs import find_config

BASES = "bases"
_OPTIONS = ("--config", "-c")


class BaseError(ValueError):
    """Bases that are not there, or that lead back to the file that names them."""


def with_bases(arguments: Sequence[str]) -> list[str]:
    """The trainer's arguments with the bases of each configuration, and theirs, laid under it; each is laid once.

    Raises BaseError.
    """
    laid: list[str] = []
    files: list[Path] = []
    for option, value in _pairs(arguments):
        if option != _OPTIONS[0]:
            laid.append(option)
            continue
        for file in _chain(Path(value), ()):
            if file.resolve() not in files:
                files.append(file.resolve())
                laid.append(f"{option}={file}")
    return laid


def stage_of(arguments: Sequence[str]) -> str | None:
    """Class path of the stage that the trainer's arguments and their files choose, None if they choose none."""
    stage: str | None = None
    for option, value in _pairs(arguments):
        model = content(Path(value)).get("model") if option == _OPTIONS[0] else None
        stage = (model.get("class_path") if isinstance(model, dict) else None) or stage
    given = iter(arguments)
    for argument in given:
        option, equals, value = argument.partition("=")
        if option in ("--model", "--model.class_path"):
            stage = value if equals else next(given, None)
    return stage


def content(file: Path) -> dict[Any, Any]:
    """The settings in a YAML file, none where it cannot be read: what is wrong with it the parser tells."""
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`("--config", file)` for each configuration, and `(argument, "")` for all else."""
    given = iter(arguments)
    for argument in given:
        option, equals, value = argument.partition("=")
        if option in _OPTIONS and (equals or (value := next(given, ""))):
            yield _OPTIONS[0], value
        else:
            yield argument, ""


def _chain(file: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """A file behind its bases, the lowest first. above: the files that led to it."""
    if any(file.exists() and file.samefile(other) for other in above):
        raise BaseError(
            f"{above[-1]}: {BASES}: {' -> '.join(map(str, (*above, file)))}: a file cannot lie under itself"
        )
    bases = content(file).get(BASES) or []
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise BaseError(f"{file}: {BASES}: give a list of files or names, such as [scenes/cfg_distillation]")
    for base in bases:
        yield from _chain(_found(base, file), (*above, file))
    yield file


def _found(base: str, file: Path) -> Path:
    """The file of a base: seen from the folder of the file that names it, or from one above, or a shipped one."""
    for folder in file.absolute().parents:
        for name in (base, f"{base}.yaml"):
            if (folder / name).is_file():
                return (folder / name).resolve()
    try:
        return find_config(base)
    except FileNotFoundError as error:
        raise BaseError(f"{file}: {BASES}: {error}") from error
