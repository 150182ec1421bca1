"""Stored features: the target's hidden states as safetensors shards, for training without running the target.

A shard holds the tokens of its documents end to end: `layer.<entry>` (T, D), `position` and `labels` (T,) int32, and
`start` (documents + 1,), the first token of each. A token takes (entries * D) * 2 bytes in bf16 and 8 more:
BAGEL-7B with all 29 entries takes 208 kB per token, an EAGLE-3 head's 5 entries 36 kB.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from hyperbagel.bagel.branch_checkpoint import base_hash
from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.bagel.layout import IGNORED
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.bagel.tensors import write_tensors
from hyperbagel.draft.batch import FeatureBatch, extract_features

_METADATA = "hyperbagel_features"


def write_features(
    model: Bagel,
    batches: Iterable[DocumentBatch],
    entries: Sequence[int],
    folder: str | Path,
    tokens_per_shard: int = 2**16,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """Run the target over batches and store what a head that reads `entries` needs; the number of tokens written.

    Documents without answers are left out. Shards are complete when they appear. Raises FileExistsError when the folder
    holds shards already.
    """
    folder = Path(folder)
    if any(folder.glob("features-*.safetensors")):
        raise FileExistsError(f"{folder}: holds feature shards already; remove them or write elsewhere")
    folder.mkdir(parents=True, exist_ok=True)
    pending: list[tuple[str, FeatureBatch, int]] = []
    shards = total = waiting = 0
    for batch in batches:
        features = extract_features(model, batch.documents, entries, batch.keys).cast(dtype).to("cpu")
        for row, key in enumerate(batch.keys):
            length = _used(features.labels[row])
            if length:
                pending.append((key, _row(features, row, length), length))
                waiting += length
        while waiting >= tokens_per_shard:
            count = _fitting(pending, tokens_per_shard)
            waiting -= _write(model, pending[:count], folder / f"features-{shards:06d}.safetensors")
            del pending[:count]
            shards += 1
        total += sum(_used(labels) for labels in features.labels)
    if pending:
        _write(model, pending, folder / f"features-{shards:06d}.safetensors")
    return total


def _used(labels: Tensor) -> int:
    """Tokens up to the last label: what is after them no row of an answer sees."""
    answered = (labels != IGNORED).nonzero()
    return int(answered.max()) + 1 if len(answered) else 0


def _row(features: FeatureBatch, row: int, length: int) -> FeatureBatch:
    layers = {entry: value[row, :length].clone() for entry, value in features.layers.items()}
    return FeatureBatch(layers, features.position[row, :length], features.labels[row, :length])


def _fitting(pending: list[tuple[str, FeatureBatch, int]], limit: int) -> int:
    """How many documents make a shard of at most `limit` tokens, at least one."""
    total = 0
    for count, (_, _, length) in enumerate(pending):
        total += length
        if total > limit:
            return max(count, 1)
    return len(pending)


def _write(model: Bagel, rows: list[tuple[str, FeatureBatch, int]], path: Path) -> int:
    keys, batches, lengths = zip(*rows, strict=True)
    tensors = {f"layer.{entry}": torch.cat([b.layers[entry] for b in batches]) for entry in batches[0].layers}
    tensors["position"] = torch.cat([b.position for b in batches]).int()
    tensors["labels"] = torch.cat([b.labels for b in batches]).int()
    tensors["start"] = torch.tensor([0, *lengths]).cumsum(0)
    metadata = {"base": base_hash(model), "keys": list(keys), "entries": sorted(batches[0].layers)}
    write_tensors(tensors, path, {_METADATA: json.dumps(metadata)})
    return sum(lengths)


class FeatureShards(Dataset[FeatureBatch]):
    """Documents of stored features, read at random; `collate` makes batches of them. lengths: tokens of each.

    base: fingerprint of the target that they have to be of (`base_hash`); None for any. entries: those that the head
    needs. Raises FileNotFoundError without shards, CheckpointError for shards of another target or without an entry.
    """

    def __init__(self, folder: str | Path, base: str | None = None, entries: Sequence[int] = ()) -> None:
        self.paths = sorted(Path(folder).glob("features-*.safetensors"))
        if not self.paths:
            raise FileNotFoundError(f"{folder}: holds no feature shards (features-*.safetensors)")
        self.places: list[tuple[int, int]] = []
        self.keys: list[str] = []
        self.lengths: list[int] = []
        for number, path in enumerate(self.paths):
            with safe_open(path, framework="pt") as file:
                metadata = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
                self.lengths += file.get_tensor("start").diff().tolist()
            if base is not None and metadata.get("base") != base:
                raise CheckpointError(
                    f"{path}: features of another target; extract them from the model that is trained for"
                )
            if missing := set(entries) - set(metadata.get("entries", ())):
                raise CheckpointError(
                    f"{path}: lacks the hidden states {sorted(missing)} that this head reads; extract anew"
                )
            self.keys += metadata["keys"]
            self.places += [(number, row) for row in range(len(metadata["keys"]))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> FeatureBatch:
        """One document, as a batch without padding."""
        number, row = self.places[index]
        with safe_open(self.paths[number], framework="pt") as file:
            first, end = (int(file.get_slice("start")[i : i + 1][0]) for i in (row, row + 1))
            names = [name for name in file.keys() if name.startswith("layer.")]
            layers = {int(n.removeprefix("layer.")): file.get_slice(n)[first:end][None] for n in names}
            position, labels = (file.get_slice(name)[first:end][None].long() for name in ("position", "labels"))
        return FeatureBatch(layers, position, labels, (self.keys[index],))


def collate(rows: Sequence[FeatureBatch]) -> FeatureBatch:
    """One padded batch of several documents."""

    def pad(values: Sequence[Tensor], filler: int) -> Tensor:
        return pad_sequence([value[0] for value in values], batch_first=True, padding_value=filler)

    return FeatureBatch(
        layers={entry: pad([row.layers[entry] for row in rows], 0) for entry in rows[0].layers},
        position=pad([row.position for row in rows], 0),
        labels=pad([row.labels for row in rows], IGNORED),
        keys=tuple(key for row in rows for key in row.keys),
    )
