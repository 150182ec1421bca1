"""Parts of shards: which samples a source reads, by a hash of their keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.datamodules.index import index_shard
from hyperbagel.datamodules.interleaved import Batching, InterleavedDataModule
from hyperbagel.datamodules.loader import ReaderSettings
from hyperbagel.datamodules.pipeline import Formatting
from hyperbagel.datamodules.scenes import SceneSource
from hyperbagel.datamodules.sources import Source, open_source
from hyperbagel.datamodules.vocabulary import source_words, spelled_words
from hyperbagel.scenes.vocabulary import tokenizer_folder
from tests.datamodules.samples import epoch, write_shards
from tests.runs import PICTURES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty samples in six shards."""
    folder = tmp_path_factory.mktemp("parts")
    write_shards(folder, "generation", 60)
    return folder


def keys(folder: Path, cache: Path, *part: float) -> list[str]:
    opened = open_source(Source("mine", shards=str(folder), part=part or (0, 1)), cache, with_loss=True)
    return [opened.read(index).key for index in range(len(opened))]


def test_parts_share_nothing_and_leave_nothing_out(folder: Path, tmp_path: Path) -> None:
    parts = [keys(folder, tmp_path, *part) for part in ((0, 0.5), (0.5, 0.9), (0.9, 1))]
    assert sorted(key for part in parts for key in part) == keys(folder, tmp_path)
    assert 20 <= len(parts[0]) <= 40 and 1 <= len(parts[2]) <= 12


def test_a_sample_stays_on_its_side_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "other", "generation", 60, per_shard=7)
    assert keys(folder, tmp_path, 0, 0.8) == keys(tmp_path / "other", tmp_path, 0, 0.8)


def test_lots_are_spread_evenly(folder: Path) -> None:
    lots = [float(lot) for path in sorted(folder.iterdir()) for lot in index_shard(path).lots]
    assert len(set(lots)) == 60 and min(lots) >= 0 and max(lots) < 1 and 0.4 < sum(lots) / 60 < 0.6


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"shards": "x", "part": (0.5, 0.5)}, "`part` needs two limits from 0 to 1 in order"),
        ({"shards": "x", "part": (0.5, 1.5)}, "`part` needs two limits from 0 to 1 in order"),
        ({"samples": SceneSource(), "part": (0.5, 1)}, "`part` is for shards; `samples` need a split of their own"),
    ],
)
def test_impossible_parts_are_refused(options: dict, told: str) -> None:
    with pytest.raises(ValueError, match=f"source 'mine': {told}"):
        Source("mine", **options)


def test_an_empty_part_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no usable sample \(none lies in its part \[0, 1e-09\]; widen it\)"):
        keys(folder, tmp_path, 0, 1e-9)


def module(folder: Path, *part: float) -> InterleavedDataModule:
    return InterleavedDataModule(
        Formatting(str(tokenizer_folder()), latent=PICTURES, vit=PICTURES),
        train=[Source("mine", shards=str(folder), part=part or (0, 1))],
        batching=Batching(batch_size=4),
        reader=ReaderSettings(num_workers=0, cache_dir=str(folder.parent / "cache")),
    )


def test_a_resume_with_another_part_is_refused(folder: Path) -> None:
    data = module(folder, 0, 0.5)
    assert 20 <= sum(len(batch.keys) for batch in epoch(data)) <= 40
    state = data.state_dict()
    assert state["data"]["sources"][0]["part"] == [0, 0.5]
    other = module(folder, 0.5, 1)
    other.load_state_dict(state)
    other.setup()
    with pytest.raises(ValueError, match="the data is not that of the checkpoint"):
        other.train_dataloader()
    whole = module(folder)
    epoch(whole)
    assert "part" not in whole.state_dict()["data"]["sources"][0]  # as checkpoints of before have it


def test_words_without_a_token_are_counted() -> None:
    tokenizer = Tokenizer.from_pretrained(tokenizer_folder())
    found = spelled_words({"red": 3, "unicorn": 2, "circle": 1, "zebra": 1}, tokenizer)
    assert (found.known, found.spelled) == ({"red": 3, "circle": 1}, {"unicorn": 2, "zebra": 1})
    assert str(found) == "2 of 4 words are spelled in bytes: unicorn (2 texts), zebra"
    many = spelled_words({f"unicorn{letter}": 1 for letter in "abcdefghijklmnopq"}, tokenizer)
    assert str(many).endswith("unicornl and 5 more")
    assert str(spelled_words({"red": 3}, tokenizer)) == "0 of 1 words are spelled in bytes"


def test_a_large_tokenizer_spells_nothing_and_nothing_is_read_for_it(folder: Path, monkeypatch) -> None:
    opened = open_source(Source("mine", shards=str(folder)), folder.parent / "cache", with_loss=True)
    tokenizer = Tokenizer.from_pretrained(tokenizer_folder())
    assert source_words(opened, tokenizer).spelled == {"word": 60}
    tokenizer.knows = ""
    monkeypatch.setattr(type(opened), "read", None)
    assert not source_words(opened, tokenizer).spelled
