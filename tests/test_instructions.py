"""The example that makes instructions for a chat model."""

import subprocess
import sys
from pathlib import Path

from hyperbagel.datamodules.shards import Sample, find_shards, read_samples

SCRIPT = Path(__file__).parents[1] / "examples" / "instructions.py"


def test_instructions_are_documents_that_ask_for_an_answer(tmp_path: Path):
    arguments = [str(tmp_path / "out"), "--train", "300", "--test", "20"]
    subprocess.run([sys.executable, SCRIPT, *arguments], check=True, capture_output=True)
    asked = {}
    for split, size in (("train", 300), ("test", 20)):
        samples = [s for path in find_shards(str(tmp_path / "out" / split), tmp_path) for s in read_samples(path)]
        assert len(samples) == size
        asked[split] = set()
        for sample in samples:
            assert isinstance(sample, Sample)
            document = sample.document()
            assert document.parts[0].text.startswith("system\n") and document.parts[1].text.startswith("user\n")
            assert [part.loss for part in document.parts] == [False, False, True]
            asked[split].add(document.parts[1].text)
        assert len(asked[split]) == size
    assert not asked["train"] & asked["test"]
