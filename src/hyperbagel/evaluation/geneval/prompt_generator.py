"""New GenEval prompts over one's own list of objects, in the official wording and mix of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hyperbagel.evaluation.geneval.prompts import COLORS, COUNTING, RELATIONS, GenEvalPrompt, PromptSet, parse_prompt

OFFICIAL_MIX: Mapping[str, int] = {
    "single_object": 80,
    "two_object": 99,
    COUNTING: 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# Draws until a task's space counts as exhausted and prompts repeat (as single_object does with few objects).
_TRIES = 200


@dataclass(frozen=True)
class Vocabulary:
    """What prompts may speak of.

    objects: class names; colors: colour names; counts: numbers of objects to ask for (2 to 10);
    uncolored: objects never asked for in a colour; plurals: irregular plurals, object -> plural.

    Examples:
        >>> Vocabulary(("box", "star")).plural("box")
        'boxes'
    """

    objects: Sequence[str]
    colors: Sequence[str] = COLORS
    counts: Sequence[int] = (2, 3, 4)
    uncolored: Sequence[str] = ("person",)
    plurals: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        colored = set(self.objects) - set(self.uncolored)
        if len(colored) < 2 or len(set(self.colors)) < 2:
            raise ValueError("GenEval prompts need at least two objects that may have a colour, and two colours")
        if not self.counts or not all(1 <= count < len(_NUMBERS) for count in self.counts):
            raise ValueError(f"counts must be whole numbers from 1 to {len(_NUMBERS) - 1}, got {list(self.counts)}")

    def plural(self, name: str) -> str:
        """The plural of an object."""
        if name in self.plurals:
            return self.plurals[name]
        return name + ("es" if name.endswith(("s", "x", "z", "ch", "sh")) else "s")


def generate_prompts(
    vocabulary: Vocabulary,
    mix: Mapping[str, int] = OFFICIAL_MIX,
    seed: int = 0,
    accept: Callable[[GenEvalPrompt], bool] = lambda prompt: True,
) -> PromptSet:
    """Draw `mix[task]` prompts of each task. Prompts repeat only where a task has no more different ones.

    accept: keeps a drawn prompt or not, for example held-out combinations only. ValueError for an unknown task, or
    when a task yields nothing that `accept` keeps.

    Examples:
        >>> from hyperbagel.evaluation.geneval import Vocabulary
        >>> prompts = generate_prompts(Vocabulary(("box", "star")), mix={"counting": 1})
        >>> prompts.prompts[0].prompt
        'a photo of three stars'
    """
    unknown = set(mix) - set(_TASKS)
    if unknown:
        raise ValueError(f"unknown GenEval task {sorted(unknown)[0]!r}: known are {', '.join(_TASKS)}")
    rng = np.random.default_rng(seed)
    prompts = [
        prompt
        for tag, number in mix.items()
        for prompt in _distinct_first(_draws(tag, vocabulary, rng), number, accept)
    ]
    return PromptSet.of(prompts, f"generated(objects={len(vocabulary.objects)}, seed={seed})")


def _distinct_first(
    draws: Iterator[GenEvalPrompt], number: int, accept: Callable[[GenEvalPrompt], bool]
) -> list[GenEvalPrompt]:
    """`number` accepted prompts, all different as long as new ones turn up."""
    distinct: dict[str, GenEvalPrompt] = {}
    misses = 0
    while len(distinct) < number and misses < _TRIES:
        prompt = next(draws)
        if prompt.metadata not in distinct and accept(prompt):
            distinct[prompt.metadata] = prompt
            misses = 0
        else:
            misses += 1
    if number and not distinct:
        raise ValueError(f"no {next(draws).tag} prompt is acceptable: widen the vocabulary or the filter")
    found = list(distinct.values())
    return [found[index % len(found)] for index in range(number)]


def _draws(tag: str, vocabulary: Vocabulary, rng: np.random.Generator) -> Iterator[GenEvalPrompt]:
    while True:
        yield parse_prompt({"tag": tag, **_TASKS[tag](vocabulary, rng)})


def _pick(rng: np.random.Generator, names: Sequence[str], number: int) -> list[str]:
    return [names[index] for index in rng.choice(len(names), number, replace=False)]


def _colorable(vocabulary: Vocabulary) -> list[str]:
    return [name for name in vocabulary.objects if name not in vocabulary.uncolored]


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _single_object(vocabulary: Vocabulary, rng: np.random.Generator) -> dict[str, Any]:
    (name,) = _pick(rng, vocabulary.objects, 1)
    return {"include": [{"class": name, "count": 1}], "prompt": f"a photo of {_a(name)}"}


def _two_object(vocabulary: Vocabulary, rng: np.random.Generator) -> dict[str, Any]:
    first, second = _pick(rng, vocabulary.objects, 2)
    include = [{"class": first, "count": 1}, {"class": second, "count": 1}]
    return {"include": include, "prompt": f"a photo of {_a(first)} and {_a(second)}"}


def _counting(vocabulary: Vocabulary, rng: np.random.Generator) -> dict[str, Any]:
    (name,) = _pick(rng, vocabulary.objects, 1)
    count = int(rng.choice(np.asarray(vocabulary.counts)))
    words = _a(name) if count == 1 else f"{_NUMBERS[count]} {vocabulary.plural(name)}"
    return {
        "include": [{"class": name, "count": count}],
        "exclude": [{"class": name, "count": count + 1}],
        "prompt": f"a photo of {words}",
    }


def _colors(vocabulary: Vocabulary, rng: np.random.Generator) -> dict[str, Any]:
    (name,) = _pick(rng, _colorable(vocabulary), 1)
    (color,) = _pick(rng, vocabulary.colors, 1)
    include = [{"class": name, "count": 1, "color": color}]
    return {"include": include, "prompt": f"a photo of {_a(f'{color} {name}')}"}


def _position(vocabulary: Vocabulary, rng: np.random.Generator) -> dict[str, Any]:
    placed, target = _pick(rng, vocabulary.objects, 2)
    (relation,) = _pick(rng, RELATIONS, 1)
    # The target is clause 0: "a left of b" asks for b, and for an a that stands left of it.
    include = [{"class": target, "count": 1}, {"class": placed, "count": 1, "position": [relation, 0]}]
    return {"include": include, "prompt": f"a photo of {_a(placed)} {relation} {_a(target)}"}


def _color_attr(vocabulary: Vocabulary, rng: np.random.Generator) -> dict[str, Any]:
    names = _pick(rng, _colorable(vocabulary), 2)
    colors = _pick(rng, vocabulary.colors, 2)
    include = [{"class": name, "count": 1, "color": color} for name, color in zip(names, colors, strict=True)]
    words = [_a(f"{color} {name}") for name, color in zip(names, colors, strict=True)]
    return {"include": include, "prompt": f"a photo of {words[0]} and {words[1]}"}


_TASKS: Mapping[str, Callable[[Vocabulary, np.random.Generator], dict[str, Any]]] = {
    "single_object": _single_object,
    "two_object": _two_object,
    COUNTING: _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}
