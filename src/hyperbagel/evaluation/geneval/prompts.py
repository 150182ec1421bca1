"""GenEval prompts: the official metadata files as they are, and new prompts over one's own list of objects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperbagel.files import write_text

COUNTING = "counting"
TASKS = ("single_object", "two_object", COUNTING, "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")


class PromptError(ValueError):
    """A prompt that can not be scored; the message names the file, the line and the key."""


@dataclass(frozen=True, slots=True)
class Position:
    """Wanted place: `relation` (one of RELATIONS) to the objects of the earlier include clause number `target`."""

    relation: str
    target: int


@dataclass(frozen=True, slots=True)
class Include:
    """At least `count` objects of the class, all of them with the colour and at the position, if given."""

    class_name: str
    count: int
    color: str | None = None
    position: Position | None = None


@dataclass(frozen=True, slots=True)
class Exclude:
    """Fewer than `count` objects of the class."""

    class_name: str
    count: int


@dataclass(frozen=True, slots=True)
class GenEvalPrompt:
    """One prompt. metadata: the official JSON text, which is also what makes two prompts the same one.

    Examples:
        >>> from hyperbagel.evaluation.geneval.prompts import parse_prompt
        >>> include = [{"class": "star", "count": 1, "color": "red"}]
        >>> metadata = {"tag": "colors", "include": include, "prompt": "a red star"}
        >>> sorted(parse_prompt(metadata).classes)
        ['star']
    """

    tag: str
    include: tuple[Include, ...]
    exclude: tuple[Exclude, ...]
    prompt: str
    metadata: str

    @property
    def classes(self) -> frozenset[str]:
        """All classes that the clauses name."""
        wanted = {clause.class_name for clause in self.include}
        return frozenset(wanted | {clause.class_name for clause in self.exclude})

    @property
    def colors(self) -> frozenset[str]:
        """All colours that the clauses name."""
        return frozenset(clause.color for clause in self.include if clause.color is not None)


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts and where they came from, which has to stand beside every figure.

    name: file name or description; sha256: of the file, or of the metadata lines where there is no file.

    Examples:
        >>> from hyperbagel.scenes.prompts import geneval_prompts
        >>> prompts = PromptSet.from_metadata(geneval_prompts(), "scenes")
        >>> len(prompts.thinned(12))
        12
    """

    prompts: tuple[GenEvalPrompt, ...]
    name: str
    sha256: str

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def of(cls, prompts: Sequence[GenEvalPrompt], name: str) -> PromptSet:
        """A set of prompts made in memory."""
        text = "".join(prompt.metadata + "\n" for prompt in prompts)
        return cls(tuple(prompts), name, hashlib.sha256(text.encode()).hexdigest())

    @classmethod
    def from_metadata(cls, metadata: Sequence[Mapping[str, Any]], name: str) -> PromptSet:
        """A set of official metadata objects. PromptError naming the prompt and the key where one can not be scored."""
        return cls.of([parse_prompt(one, f"{name}, prompt {index}") for index, one in enumerate(metadata)], name)

    def thinned(self, number: int) -> PromptSet:
        """About `number` prompts, evenly spread so that tasks keep their shares: a quick look at a long run."""
        if number >= len(self):
            return self
        kept = [self.prompts[index * len(self) // number] for index in range(number)]
        return PromptSet.of(kept, f"{self.name} ({number} of {len(self)})")

    def save(self, path: Path | str) -> None:
        """Write the prompts as an official metadata file (JSON lines)."""
        write_text(path, "".join(prompt.metadata + "\n" for prompt in self.prompts))


def read_prompts(path: Path | str) -> PromptSet:
    """Read an official metadata file (one JSON object per line).

    FileNotFoundError without the file; PromptError naming line and key where a prompt can not be scored.

    Examples:
        >>> line = '{"tag": "single_object", "include": [{"class": "star", "count": 1}], "prompt": "a star"}'
        >>> _ = Path("prompts.jsonl").write_text(line)
        >>> read_prompts("prompts.jsonl").prompts[0].prompt
        'a star'
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no GenEval prompts at {path}: give a metadata file (JSON lines)")
    content = path.read_bytes()
    prompts = []
    # Of bytes, splitlines ends a line at CR and LF only, not at U+2028 and the like, which may stand in a text.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if line.strip():
            prompts.append(_parse_line(line, f"{path}, line {number}"))
    if not prompts:
        raise PromptError(f"{path}: no prompts in this file")
    return PromptSet(tuple(prompts), path.name, hashlib.sha256(content).hexdigest())


def parse_prompt(metadata: Mapping[str, Any], where: str = "prompt") -> GenEvalPrompt:
    """Check one official metadata object. PromptError starts with `where` and names the key."""
    if not isinstance(metadata, Mapping):
        raise PromptError(f"{where}: expected an object with tag, include and prompt, got {type(metadata).__name__}")
    tag = metadata.get("tag")
    if tag not in TASKS:
        raise PromptError(f"{where}, key tag: expected one of {', '.join(TASKS)}, got {tag!r}")
    include = tuple(
        _include(clause, index, f"{where}, key include[{index}]")
        for index, clause in enumerate(_list(metadata.get("include"), f"{where}, key include"))
    )
    if not include:
        raise PromptError(f"{where}, key include: needs at least one clause")
    exclude = tuple(
        _exclude(clause, f"{where}, key exclude[{index}]")
        for index, clause in enumerate(_list(metadata.get("exclude", []), f"{where}, key exclude"))
    )
    text = _text(metadata, "prompt", where)
    return GenEvalPrompt(str(tag), include, exclude, text, json.dumps(metadata))


def _parse_line(line: bytes, where: str) -> GenEvalPrompt:
    try:
        metadata = json.loads(line)
    except ValueError as error:
        raise PromptError(f"{where}: not JSON ({error})") from None
    return parse_prompt(metadata, where)


def _include(clause: Any, index: int, where: str) -> Include:
    fields = _clause(clause, where, {"class", "count", "color", "position"})
    color = None if fields.get("color") is None else _text(fields, "color", where)
    position = None if fields.get("position") is None else _position(fields["position"], index, f"{where}.position")
    return Include(_text(fields, "class", where), _count(fields, where), color, position)


def _exclude(clause: Any, where: str) -> Exclude:
    fields = _clause(clause, where, {"class", "count"})
    return Exclude(_text(fields, "class", where), _count(fields, where))


def _position(value: Any, index: int, where: str) -> Position:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise PromptError(f"{where}: expected [relation, index of the target clause], got {value!r}")
    relation, target = value
    if relation not in RELATIONS:
        raise PromptError(f"{where}: expected one of {', '.join(RELATIONS)}, got {relation!r}")
    if not _is_int(target) or not 0 <= target < index:
        raise PromptError(f"{where}: the target must be the index of an earlier include clause, got {target!r}")
    return Position(relation, target)


def _clause(value: Any, where: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PromptError(f"{where}: expected an object with class and count, got {value!r}")
    unknown = set(value) - known
    if unknown:
        raise PromptError(f"{where}: unknown key {sorted(unknown)[0]!r}; known are {', '.join(sorted(known))}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise PromptError(f"{where}: expected a list of clauses, got {value!r}")
    return value


def _text(fields: Mapping[str, Any], key: str, where: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not value.strip():
        raise PromptError(f"{where}, key {key}: expected a text, got {value!r}")
    return value


def _count(fields: Mapping[str, Any], where: str) -> int:
    value: Any = fields.get("count")
    if not _is_int(value) or value < 1:
        raise PromptError(f"{where}, key count: expected a whole number from 1 on, got {value!r}")
    return int(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
