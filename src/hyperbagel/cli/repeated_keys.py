"""Refuses YAML in which a setting occurs twice, of which PyYAML silently takes the last one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

_MERGE = "tag:yaml.org,2002:merge"
_plain_load = get_loader("yaml")


class RepeatedKeyError(ValueError):
    """A setting that occurs twice; the message names the file, the setting and both lines."""


def refuse_repeated_keys(of_file: Callable[[Any, str], Any] | None = None) -> None:
    """From now on, all YAML that jsonargparse reads, files and values, is refused when a setting occurs twice in it.

    of_file: makes the content that counts of the content of a file and its name.
    """

    def load(text: str, path: object = "") -> Any:
        if ":" in text:
            try:
                check_repeated_keys(text, str(path))
            except RepeatedKeyError as error:
                if path:  # of a file jsonargparse expects what its loader raises, of a value what its checks raise
                    raise yaml.YAMLError(str(error)) from error
                raise
        content = _plain_load(text)
        return of_file(content, str(path)) if path and of_file is not None else content

    set_loader("yaml", load, (yaml.YAMLError,))


def check_repeated_keys(text: str, file: str = "") -> None:
    """Raises RepeatedKeyError for a key that occurs twice in a mapping, and for `a.b` beside a `b` within `a`.

    Merge keys (`<<`) may occur twice, and what they bring in may be overridden. file: its name, for the message.
    """
    _Check(f"{file}, " if file else "").look(yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), "")


class _Check:
    def __init__(self, place: str) -> None:
        self.place = place
        self.lines: dict[str, int] = {}  # of values by dotted name
        self.known: set[int] = set()  # anchored nodes stand in several places, perhaps in themselves

    def look(self, node: yaml.Node | None, prefix: str) -> None:
        if id(node) in self.known:
            return
        self.known.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self.look(item, f"{prefix}[{number}].")
        elif isinstance(node, yaml.MappingNode):
            self._look_at_keys(node, prefix)

    def _look_at_keys(self, node: yaml.MappingNode, prefix: str) -> None:
        own: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            if key.tag == _MERGE or not isinstance(key, yaml.ScalarNode):
                continue
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if before := own.get((key.tag, key.value)) or self.lines.get(name):
                raise RepeatedKeyError(
                    f"{self.place}line {line}: {name} was set before, in line {before}; remove one of the two"
                )
            own[key.tag, key.value] = line
            if not isinstance(value, yaml.MappingNode):
                self.lines[name] = line
            self.look(value, f"{name}.")
