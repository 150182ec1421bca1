"""What a sentence claims about a picture: in words, as GenEval metadata, and true or false of a scene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from hyperbagel.scenes.heldout import lacks_pair, lacks_relation
from hyperbagel.scenes.layout import Spec
from hyperbagel.scenes.palette import NUMBERS, plural, with_article
from hyperbagel.scenes.world import Scene, SceneObject, relation, relations


@dataclass(frozen=True, slots=True)
class Noun:
    """Objects of one kind, e.g. "two small red circles" or "a star in the top left"; None: not said."""

    shape: str
    color: str | None = None
    size: str | None = None
    place: str | None = None
    count: int = 1

    def text(self) -> str:
        """The noun phrase with article or number."""
        words = [word for word in (self.size, self.color) if word]
        if self.count == 1:
            phrase = with_article(" ".join([*words, self.shape]))
        else:
            phrase = " ".join([NUMBERS[self.count], *words, plural(self.shape)])
        return f"{phrase} in the {self.place}" if self.place else phrase

    def fits(self, item: SceneObject, scene: Scene) -> bool:
        """Whether `item` has all that is said."""
        return (
            item.shape == self.shape
            and self.color in (None, item.color)
            and self.size in (None, item.size)
            and self.place in (None, scene.place(item))
        )

    def specs(self) -> list[Spec]:
        """One spec for each object."""
        return [Spec(self.shape, self.color, self.size, self.place)] * self.count


@dataclass(frozen=True, slots=True)
class Claim:
    """Nouns, and possibly the relation of the first noun to the second, e.g. "a red circle left of a star".

    tag: GenEval task that it belongs to, or "caption" for richer ones; background: said of the picture as a whole.
    """

    nouns: tuple[Noun, ...]
    relation: str | None = None
    background: str | None = None
    tag: str = "caption"

    def text(self) -> str:
        """The claim as a phrase."""
        phrases = [noun.text() for noun in self.nouns]
        if self.relation:
            phrase = f"{phrases[0]} {self.relation} {phrases[1]}"
        elif len(phrases) > 1:
            phrase = ", ".join(phrases[:-1]) + " and " + phrases[-1]
        else:
            phrase = phrases[0]
        if self.background:
            phrase += f" on {with_article(self.background)} background"
        return phrase

    def specs(self) -> list[Spec]:
        """One spec for each object, in the order of the nouns."""
        return [spec for noun in self.nouns for spec in noun.specs()]

    def metadata(self) -> dict[str, Any]:
        """GenEval metadata: tag, include, exclude (for counting) and prompt.

        As in GenEval the object that a relation places is the last clause and points back to the clause before it.
        Sizes, places and backgrounds have no GenEval clause.
        """
        nouns = self.nouns[::-1] if self.relation else self.nouns
        include: list[dict[str, Any]] = []
        for noun in nouns:
            clause: dict[str, Any] = {"class": noun.shape, "count": noun.count}
            if noun.color:
                clause["color"] = noun.color
            include.append(clause)
        if self.relation:
            include[1]["position"] = [self.relation, 0]
        data: dict[str, Any] = {"tag": self.tag, "include": include}
        if self.tag == "counting":
            data["exclude"] = [{"class": n.shape, "count": n.count + 1} for n in self.nouns]
        data["prompt"] = f"a photo of {self.text()}"
        return data

    def is_held_out(self, split: str) -> bool:
        """Whether the words themselves name a combination that is held out of `split`."""
        named = any(lacks_pair(split, noun.color, noun.shape) for noun in self.nouns)
        return named or bool(
            self.relation and lacks_relation(split, self.nouns[0].shape, self.relation, self.nouns[1].shape)
        )

    def is_true(self, scene: Scene) -> bool:
        """Whether a scene clearly shows what is claimed. Counts above one are exact, a single noun may have company."""
        return self._background_fits(scene) and any(
            not self.relation or relation(a, b) == self.relation for a, b in self._matches(scene)
        )

    def is_false(self, scene: Scene) -> bool:
        """Whether a scene clearly lacks what is claimed: a relation that nearly holds is neither true nor false."""
        return not self._background_fits(scene) or not any(
            not self.relation or self.relation in relations(a, b, threshold=0.3) for a, b in self._matches(scene)
        )

    def _background_fits(self, scene: Scene) -> bool:
        return self.background in (None, scene.background)

    def _matches(self, scene: Scene) -> Iterator[tuple[SceneObject, SceneObject]]:
        """First and last object of every way to give distinct objects to the nouns."""
        wanted = [noun for noun in self.nouns for _ in range(noun.count)]
        for noun in self.nouns:
            if noun.count > 1 and sum(noun.fits(o, scene) for o in scene.objects) != noun.count:
                return
        for items in permutations(scene.objects, len(wanted)):
            if all(noun.fits(item, scene) for noun, item in zip(wanted, items, strict=True)):
                yield items[0], items[-1]


def whole_claim(scene: Scene) -> Claim:
    """All that a scene shows: its objects by colour and shape, lone ones with their place, and the background."""
    kinds = Counter((item.shape, item.color) for item in scene.objects)
    places = {(item.shape, item.color): scene.place(item) for item in scene.objects}
    nouns = (Noun(*kind, None, places[kind] if count == 1 else None, count) for kind, count in kinds.items())
    return Claim(tuple(nouns), background=scene.background)
