"""Reading converted shards back through the reader of the data module."""

import json
from pathlib import Path

from hyperbagel.datamodules.documents import InterleavedDocument, TextPart
from hyperbagel.datamodules.index import index_shard
from hyperbagel.datamodules.sources import ShardSamples


def read_back(out: Path) -> list[tuple[InterleavedDocument, dict[str, bytes]]]:
    """All documents with their pictures; nothing may be wrong with any of them, and keys must be unique."""
    paths = sorted(out.glob("*.tar"))
    reader = ShardSamples(paths, [index_shard(path) for path in paths], with_loss=True)
    assert not reader.skipped
    samples = [reader.read(index) for index in range(len(reader))]
    assert len({sample.key for sample in samples}) == len(samples)
    return [
        (sample.document(), {name: data for name, data in sample.members.items() if name != "json"})
        for sample in samples
    ]


def outline(document: InterleavedDocument) -> list[tuple[str, bool]]:
    """Texts, or "image", with their losses."""
    return [(part.text if isinstance(part, TextPart) else "image", part.loss) for part in document.parts]


def contents(out: Path) -> dict[str, bytes]:
    """Everything that a conversion leaves where a user sees it."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


def settings(out: Path) -> dict:
    return json.loads((out / "conversion.json").read_text())
