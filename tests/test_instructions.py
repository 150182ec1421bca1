"""The example that makes instructions for a chat model."""

import subprocess
import sys
from pathlib import Path

from hyperbagel.datamodules.shards import Sample, find_shards, read_samples

SCRIPT = Path(__file__).parents[1] / "examples" / "instructions.py"
SIZES = {"train": 360, "validation": 24, "topics": 24, "kinds": 24}


def test_instructions_are_documents_that_ask_for_answers(tmp_path: Path):
    arguments = [str(tmp_path / "out"), "--train", "360", "--validation", "24", "--test", "24"]
    made = subprocess.run([sys.executable, SCRIPT, *arguments], check=True, capture_output=True, text=True).stdout
    assert "360 documents" in made
    asked: dict[str, list[tuple[str, ...]]] = {}
    kinds: dict[str, list[str]] = {}
    for split in SIZES:
        samples = [s for path in find_shards(str(tmp_path / "out" / split), tmp_path) for s in read_samples(path)]
        asked[split], kinds[split] = [], []
        for sample in samples:
            assert isinstance(sample, Sample)
            document = sample.document()
            texts = [part.text for part in document.parts]
            if texts[0].startswith("system\n"):
                texts = texts[1:]
            assert all(text.startswith("user\n") for text in texts[::2]) and len(texts) % 2 == 0
            assert [part.loss for part in document.parts][-len(texts) :] == [False, True] * (len(texts) // 2)
            assert not any("{" in text for text in texts), "a place that was not filled"
            asked[split].append(tuple(texts[::2]))
            kinds[split].append(document.meta["kind"])
    assert {split: len(found) for split, found in asked.items()} == SIZES
    everything = [questions for found in asked.values() for questions in found]
    assert len(set(everything)) == len(everything)
    # All kinds equally often, several turns among them, and other ones in a split of their own.
    assert len(set(kinds["train"])) >= 12 and max(map(kinds["train"].count, kinds["train"])) <= 33
    assert set(kinds["train"]) == set(kinds["validation"]) == set(kinds["topics"])
    assert len(set(kinds["kinds"])) >= 4 and not set(kinds["kinds"]) & set(kinds["train"])
    assert max(map(len, asked["train"])) >= 3


def test_what_is_tested_is_asked_about_nothing_that_is_learnt(tmp_path: Path):
    subprocess.run([sys.executable, SCRIPT, str(tmp_path), "--train", "2000"], check=True, capture_output=True)
    texts = {
        split: " ".join(
            part.text
            for path in find_shards(str(tmp_path / split), tmp_path)
            for sample in read_samples(path)
            if isinstance(sample, Sample)
            for part in sample.document().parts
        )
        for split in ("train", "topics", "kinds")
    }
    held_out, learnt = "the solar system", "earthquakes"
    assert held_out in texts["topics"] + texts["kinds"] and held_out not in texts["train"]
    assert learnt in texts["train"] and learnt not in texts["topics"] + texts["kinds"]
