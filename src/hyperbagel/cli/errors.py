"""Tells a user's errors in one line, and the option parsers that raise them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

from hyperbagel.cli.explanation import UsageError, chain, explain
from hyperbagel.messages import clip

TRACEBACK = "HYPERBAGEL_TRACEBACK"
"""Environment variable: set, user errors show where they come from."""

_BAD_INPUT = (ValueError, OSError, ImportError, FloatingPointError)
_OF_LIBRARIES = {
    "lightning.fabric.utilities.exceptions": "MisconfigurationException",
    "safetensors": "SafetensorError",
    "torch": "OutOfMemoryError",
}
"""Module -> an exception of it that tells of bad input, or of a machine that is too small."""
_LONGEST = 1000
"""Characters of a message, which may name many files."""

set_parsing_settings(docstring_parse_attribute_docstrings=True)  # settings are explained beneath their fields


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """User errors end the process with one line, `name` before it, and status 1, those of options and settings with 2,
    Ctrl+C with 130. Bugs keep their traceback, and with HYPERBAGEL_TRACEBACK=1 everything does.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # the trainer makes it status 1
            sys.exit(130)
        raise
    except Exception as error:
        cause = root_cause(error)
        if os.environ.get(TRACEBACK) or not is_user_error(cause):
            raise
        if isinstance(cause, UsageError):
            print(f"{name}: {cause}", file=sys.stderr)
            sys.exit(2)
        sys.exit(f"{name}: {one_line(cause)}")


def root_cause(error: BaseException) -> BaseException:
    """What an error is about that jsonargparse raised while it made objects: the error of the object's own class, or
    else the innermost of its own."""
    found = error
    for found in chain(error):
        if isinstance(found, UsageError) or not _raised_in(found, "jsonargparse"):
            break
    return found


def is_user_error(error: BaseException) -> bool:
    """Whether an error is of input, files or the machine rather than of the program."""
    libraries = [getattr(sys.modules.get(module), name, None) for module, name in _OF_LIBRARIES.items()]
    kinds = (*_BAD_INPUT, UsageError, *(kind for kind in libraries if isinstance(kind, type)))
    return isinstance(error, kinds) or _is_of_machine(error)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; of files of which only the system complained, with their names."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return clip(error, _LONGEST) or type(error).__name__


def _is_of_machine(error: BaseException) -> bool:
    """RuntimeErrors by which torch tells that a process was killed or a disk is full."""
    told = str(error)
    return type(error) is RuntimeError and ("DataLoader worker" in told or "PytorchStreamWriter failed" in told)


def _raised_in(error: BaseException, package: str) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).split(".")[0] == package


class OneLineParser(argparse.ArgumentParser):
    """Mixed into a parser: wrong options raise UsageError, with what may have been meant; none may be abbreviated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self._reading: str | None = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises UsageError."""
        parser = getattr(ex, "subcommand_parser", None) or self
        told = explain(parser, message, ex)
        place = "" if self._reading is None or told.startswith(self._reading) else f"{self._reading}: "
        raise UsageError(f"{place}{told}") from ex

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """jsonargparse's, which forgets which file it could not read."""
        self._reading = str(path)
        try:
            return super().parse_path(path, *args, **kwargs)  # type: ignore[misc]
        except UnicodeDecodeError as error:
            place = f"byte {error.object[error.start]:#x} at {error.start}"
            raise UsageError(f"{path}: not UTF-8 ({place}); save it as UTF-8") from error
        finally:
            self._reading = None


class CommandParser(OneLineParser, ArgumentParser):
    """jsonargparse's parser."""
