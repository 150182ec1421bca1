"""Varied instructions for a chat model as shards, to let it answer them (`hyperbagel data regenerate`).

    python examples/instructions.py OUT [--train 3600] [--test 100]

Templates times topics, shuffled; topics of OUT/test do not occur in OUT/train. Texts are framed as SmolLM2 and other
models of its chat format expect them: a system text, then the instruction, each behind the name of the speaker.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from random import Random

from hyperbagel.datamodules.writer import ShardWriter

SYSTEM = "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
SHARD = 250
HELD_OUT = 8
"""Every n-th topic is held out for testing."""

TEMPLATES = {
    "explain": (
        "What is the most important thing to know about {}?",
        "Explain {} to a ten-year-old.",
        "Give me a short introduction to {}.",
        "What do people often get wrong about {}?",
        "Why does {} matter? Answer in one paragraph.",
        "Summarise what you know about {} in three sentences.",
        "How has {} changed over the last hundred years?",
        "Describe {} to someone who has never heard of it.",
        "What is an example of {} in everyday life?",
        "How would you define {}?",
    ),
    "list": (
        "List five facts about {}.",
        "Name three good reasons to learn about {}.",
        "What are the first steps for a beginner in {}?",
        "Give me a list of questions that I could ask an expert on {}.",
        "What are the advantages and disadvantages of {}?",
        "Which three books or films about {} would you recommend?",
        "Give me five tips on {}.",
    ),
    "write": (
        "Write a short poem about {}.",
        "Write the first paragraph of a story in which {} plays a role.",
        "Write a friendly e-mail that invites a colleague to a talk on {}.",
        "Come up with a title and a subtitle for an article on {}.",
        "Write a dialogue between a teacher and a student about {}.",
        "Write a short speech about {}.",
        "Write a product description that mentions {}.",
    ),
    "code": (
        "Write a Python class that describes {} and explain it briefly.",
        "Write a JSON document with three entries about {}.",
        "Write an HTML page with a heading and a paragraph about {}.",
        "Write a Python function that prints a sentence about {}.",
    ),
}
"""Kind, under which results are reported -> instructions with a place for the topic."""

TOPICS = """
the solar system, volcanoes, earthquakes, rainbows, the water cycle, photosynthesis, gravity, magnets, electricity,
the human heart, sleep, vitamins, vaccines, bacteria, DNA, evolution, dinosaurs, whales, honey bees, migratory birds,
rainforests, deserts, coral reefs, mountains, rivers, the oceans, glaciers, climate change, renewable energy, recycling,
ancient Egypt, the Roman Empire, the Middle Ages, the Renaissance, the French Revolution, the Industrial Revolution,
the invention of printing, the history of writing, the Silk Road, the space race, democracy, human rights, museums,
libraries, public transport, bicycles, trains, ships, airplanes, bridges, skyscrapers, city parks, farming, bread,
cheese, chocolate, coffee, tea, rice, soup, cooking at home, healthy food, gardening, houseplants, dogs, cats, horses,
chess, football, running, swimming, yoga, hiking, photography, painting, sculpture, music theory, the piano, the guitar,
opera, jazz, dancing, theatre, cinema, novels, poetry, fairy tales, learning a language, public speaking, teamwork,
time management, saving money, taxes, trade, advertising, the stock market, computers, the internet, databases,
programming, algorithms, machine learning, robots, computer games, cryptography, mobile phones, maps, clocks, calendars,
numbers, fractions, probability, geometry, statistics, logic, philosophy, memory, emotions, friendship, school,
holidays, the moon, comets, black holes, light, sound, heat, atoms, metals, glass, plastics, water, soil, clouds,
storms, islands, caves, insects, birds, fish, snakes, mushrooms, trees, seeds, flowers, the brain, the lungs, blood,
muscles, medicine, nutrition, exercise, first aid, the Vikings, ancient Greece, castles, pirates, the telephone, the
steam engine, the printing press, currencies, banks, insurance, elections, laws, newspapers, radio, television,
fashion, architecture, poverty, migration, tourism, hotels, restaurants, markets, shopping, furniture, kitchens, toys,
board games, tennis, skiing, sailing, climbing, knitting, pottery, drums, choirs, folk dances, comics, satire, diaries,
letters, grammar, translation, dictionaries, encyclopedias, search engines, e-mail, spreadsheets, operating systems,
networks, batteries, solar panels, wind turbines, electric cars, drones, satellites, telescopes, microscopes, lasers,
bridges made of wood
"""


def write(folder: Path, asked: list[tuple[str, str]]) -> None:
    """Documents of (kind, instruction); the answer is still to be given."""
    with ShardWriter(folder / "instructions-{:06d}.tar", SHARD) as writer:
        for number, (kind, instruction) in enumerate(asked):
            segments = [
                {"type": "text", "text": SYSTEM},
                {"type": "text", "text": f"user\n{instruction}"},
                {"type": "text", "text": "(to be answered)", "loss": True},
            ]
            writer.write(f"{folder.name}-{number:06d}", {"segments": segments, "meta": {"kind": kind}}, {})


def instructions(topics: list[str], seed: int) -> list[tuple[str, str]]:
    """Every template with every topic, shuffled."""
    templates = [(kind, template) for kind, group in TEMPLATES.items() for template in group]
    asked = [(kind, template.format(topic)) for (kind, template), topic in product(templates, topics)]
    Random(seed).shuffle(asked)
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for train/ and test/")
    parser.add_argument("--train", type=int, default=3600, help="instructions to train on")
    parser.add_argument("--test", type=int, default=100, help="held-out instructions")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    topics = [topic.strip() for topic in TOPICS.replace("\n", " ").split(",")]
    for split, size in (("train", options.train), ("test", options.test)):
        mine = [topic for i, topic in enumerate(topics) if (i % HELD_OUT == 0) == (split == "test")]
        asked = instructions(mine, options.seed)
        if size > len(asked):
            parser.error(f"--{split}: there are {len(asked)} instructions, not {size}")
        write(options.out / split, asked[:size])
        print(f"{options.out / split}: {size} of {len(asked)} instructions")


if __name__ == "__main__":
    main()
