"""Varied instructions for a chat model as shards, to let it answer them (`hyperbagel data regenerate`).

    python examples/instructions.py OUT [--train 10000] [--validation 60] [--test 60]

Sixteen kinds of instructions (`instructions/kinds.yaml`), filled with topics, names, numbers, messages and passages
(`words.yaml`, `passages.yaml`). What OUT/validation, OUT/topics and OUT/kinds are filled with does not occur in
OUT/train; OUT/kinds has kinds that are in none of the others. Texts are framed as SmolLM2 and other models of its chat
format expect them: a system text, which is left out at times, then instructions, each behind the name of the speaker.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import yaml

from hyperbagel.datamodules.writer import ShardWriter

DATA = Path(__file__).parent / "instructions"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
ROLE = "You are {role}. Stay in this role, whatever you are asked."
PLAIN = 0.2
"""Share of documents without a system text."""
SHARD = 250
PART = 8
"""One of so many entries is for testing, and one for validation."""
SLOT = re.compile(r"\{([a-z_]+)\d?\}")


class Asked(NamedTuple):
    """A document of questions that are still to be answered. system: what stands before them, or nothing."""

    kind: str
    system: str
    questions: tuple[str, ...]


class Words:
    """What templates are filled with in one split: "train", "validation" or "test"."""

    def __init__(self, split: str, random: Random) -> None:
        self.random = random
        words = yaml.safe_load((DATA / "words.yaml").read_text())
        passages = yaml.safe_load((DATA / "passages.yaml").read_text())
        self.lists = {name: _part(_entries(text), split) for name, text in words["split"].items()}
        self.lists |= {name: _entries(text) for name, text in words["shared"].items()}
        self.texts: dict[str, list[str]] = words["texts"]
        self.passages = _part(list(passages.values()), split)

    def fill(self, template: str) -> str:
        """A template with its words, each of them another one."""
        chosen: dict[str, str] = {}

        def word(slot: re.Match[str]) -> str:
            while slot[0] not in chosen:
                new = self._draw(slot[1])
                if new not in chosen.values():
                    chosen[slot[0]] = new
            return chosen[slot[0]]

        return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", SLOT.sub(word, template))

    def _draw(self, name: str) -> str:
        random = self.random
        if name == "number":
            return str(random.randint(2, 30))
        if name == "big":
            return str(random.randint(31, 999))
        if name == "price":
            return f"{random.randint(1, 60)}.{random.choice(('00', '20', '50', '75', '99'))}"
        if name == "time":
            return f"{random.randint(6, 21)}:{random.choice(('00', '15', '30', '45'))}"
        if name == "passage":
            sentences = random.choice(self.passages).splitlines()
            kept = sorted(random.sample(range(len(sentences)), random.randint(3, 4)))
            return " ".join(sentences[i] for i in kept)
        if name in self.texts:
            return self.fill(random.choice(self.texts[name]))
        return random.choice(self.lists[name])


def _entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(";" if ";" in text else ",")]


def _part(entries: list[str], split: str) -> list[str]:
    """Those of a split."""
    places = {"test": {0}, "validation": {PART // 2}, "train": set(range(PART)) - {0, PART // 2}}[split]
    return [entry for i, entry in enumerate(entries) if i % PART in places]


def documents(templates: dict[str, list[str]], begins: list[str], words: Words) -> Iterator[Asked]:
    """Documents of all kinds in turn, for ever. begins: kinds that dialogues begin with, if there are any."""
    random = words.random
    while True:
        for kind, group in templates.items():
            system = "" if random.random() < PLAIN else SYSTEM
            if kind == "role_play":
                system = words.fill(ROLE)
            yield Asked(kind, system, (words.fill(random.choice(group)),))
        if begins:
            first = words.fill(random.choice(templates[random.choice(begins)]))
            further = random.sample(words.lists["follow_up"], random.randint(1, 3))
            yield Asked("dialogue", SYSTEM, (first, *further))


def distinct(found: Iterator[Asked], count: int, seen: set[Asked]) -> list[Asked]:
    """So many documents that were not seen before. Raises ValueError if they cannot be found."""
    chosen: list[Asked] = []
    for tries, asked in enumerate(found):
        if len(chosen) == count:
            break
        if tries > 100 * count:
            raise ValueError(f"there are not many more than {len(chosen)} distinct instructions; ask for fewer")
        if asked._replace(system="") not in seen:
            seen.add(asked._replace(system=""))
            chosen.append(asked)
    return chosen


def write(folder: Path, asked: list[Asked]) -> None:
    """Documents whose answers are still to be given; results are reported under their kind."""
    with ShardWriter(folder / "instructions-{:06d}.tar", SHARD) as writer:
        for number, (kind, system, questions) in enumerate(asked):
            segments = [{"type": "text", "text": f"system\n{system}"}] if system else []
            for question in questions:
                segments.append({"type": "text", "text": f"user\n{question}"})
                segments.append({"type": "text", "text": "(to be answered)", "loss": True})
            writer.write(f"{folder.name}-{number:06d}", {"segments": segments, "meta": {"kind": kind}}, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for train/, validation/, topics/ and kinds/")
    parser.add_argument("--train", type=int, default=10_000, help="documents to train on")
    parser.add_argument("--validation", type=int, default=60, help="documents of other topics to choose settings by")
    parser.add_argument("--test", type=int, default=60, help="documents each of other topics, and of other kinds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kinds = yaml.safe_load((DATA / "kinds.yaml").read_text())
    seen: set[Asked] = set()
    sizes = {"kinds": options.test, "topics": options.test, "validation": options.validation, "train": options.train}
    for name, size in sizes.items():  # testing first, so that it does not depend on the other sizes
        split = "test" if name in ("kinds", "topics") else name
        words = Words(split, Random(f"{options.seed} {name}"))
        new = name == "kinds"
        found = documents(kinds["unseen" if new else "trained"], [] if new else kinds["dialogue"], words)
        write(options.out / name, distinct(found, size, seen))
        print(f"{options.out / name}: {size} documents")


if __name__ == "__main__":
    main()
