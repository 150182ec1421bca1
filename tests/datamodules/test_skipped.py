"""Broken data costs exactly the broken samples, is counted by cause, and never goes unnoticed."""

import io
import json
import pickle
import random
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperbagel.datamodules.batch_order import OrderedBatch
from hyperbagel.datamodules.index import index_shard
from hyperbagel.datamodules.interleaved import Batching, InterleavedDataModule
from hyperbagel.datamodules.loader import BatchDataset, OpenSource
from hyperbagel.datamodules.pipeline import DocumentBuilder, Formatting
from hyperbagel.datamodules.shards import SampleSpan, find_samples
from hyperbagel.datamodules.skipped import Skip, SkipLog, SkipRecord, TooManySkippedError
from hyperbagel.datamodules.sources import ShardSamples, Source
from tests.datamodules.samples import make_png, sample_members, write_shards, write_tar

Make = Callable[..., InterleavedDataModule]


def document(text: str = "a cat", file: str = "1.png") -> bytes:
    segments = [{"type": "text", "text": text}, {"type": "image", "file": file, "loss": True}]
    return json.dumps({"segments": segments}).encode()


def bomb() -> bytes:
    """A PNG of a few bytes that claims 3.6 gigapixels."""
    data = bytearray(make_png(0, 1, 1))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def late_damage() -> bytes:
    """A PNG with a good header and broken pixels."""
    data = bytearray(make_png(1))
    data[-40] ^= 0xFF
    return bytes(data)


class Exploding:
    """Unpickling this would fail the test."""

    def __reduce__(self) -> tuple:
        return pytest.fail, ("a pickle was loaded",)


BAD_SAMPLES = {
    Skip.UNREADABLE_IMAGE: [("bad.json", document()), ("bad.1.png", b"not a picture")],
    Skip.IMAGE_TOO_LARGE: [("bad.json", document()), ("bad.1.png", bomb())],
    Skip.BAD_JSON: [("bad.json", b'{"segments": ['), ("bad.1.png", make_png(0))],
    Skip.BAD_SCHEMA: [("bad.json", b'{"segments": 3}'), ("bad.1.png", make_png(0))],
    Skip.MISSING_MEMBER: [("bad.json", document(file="2.png")), ("bad.1.png", make_png(0))],
    Skip.EMPTY_TEXT: [("bad.json", document(text="")), ("bad.1.png", make_png(0))],
    Skip.UNSAFE_NAME: [("../../bad.json", document()), ("../../bad.1.png", make_png(0))],
    Skip.DUPLICATE_KEY: sample_members(0),
    Skip.NO_LOSS: [("bad.json", b'{"segments": [{"type": "text", "text": "nothing to learn"}]}')],
    Skip.TOO_LONG: [("bad.json", document(text="word " * 4000)), ("bad.1.png", make_png(0))],
}


@pytest.mark.parametrize("cause", BAD_SAMPLES)
def test_a_bad_sample_is_skipped_and_counted(make_module: Make, tmp_path: Path, cause: Skip):
    members = [*sample_members(0), *BAD_SAMPLES[cause], *sample_members(1)]
    module = make_module({"source": [write_tar(tmp_path / "bad.tar", members)]}, max_skipped=1)
    module.setup()
    keys = {key for batch in module.train_dataloader() for key in batch.keys}
    assert keys == {"generation-00000", "generation-00001"}
    assert module.skips.counts == {cause: 1}


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_that_only_decoding_finds_reaches_the_main_process(make_module: Make, tmp_path: Path, workers: int):
    members = [*sample_members(0), ("late.json", document()), ("late.1.png", late_damage()), *sample_members(1)]
    path = write_tar(tmp_path / "late.tar", members)
    module = make_module({"source": [path]}, workers=workers, max_skipped=1, batching=Batching(batch_size=1))
    reports: list[dict[str, float]] = []
    module._report = reports.append
    for _ in range(2):  # met again in the next epoch, counted once
        module.setup()
        batches = list(module.train_dataloader())
        assert len(batches) == 3  # no rank may run out of batches: another takes the place of the lost one
        assert {key for batch in batches for key in batch.keys} == {"generation-00000", "generation-00001"}
    assert module.skips.counts == {Skip.UNREADABLE_IMAGE: 1}
    assert reports[-1]["data/skipped/unreadable_image"] == 1


def test_too_many_bad_samples_stop_the_run(make_module: Make, tmp_path: Path):
    members = [member for i in range(4) for member in ((f"bad{i}.json", b"{"), *sample_members(i))]
    path = write_tar(tmp_path / "bad.tar", members)
    make_module({"source": [path]}, max_skipped=4).setup()
    with pytest.raises(TooManySkippedError, match=r"4 samples \(4 bad_json\), over the limit of 3.*max_skipped"):
        make_module({"source": [path]}, max_skipped=3).setup()
    late = [m for i in range(4) for m in ((f"l{i}.json", document()), (f"l{i}.1.png", late_damage()))]
    module = make_module({"source": [write_tar(tmp_path / "late.tar", late)]}, max_skipped=3, workers=1)
    module.setup()
    with pytest.raises(TooManySkippedError, match="4 unreadable_image"):
        list(module.train_dataloader())


def test_a_source_without_a_good_sample_is_an_error(make_module: Make, tmp_path: Path):
    path = write_tar(tmp_path / "bad.tar", [("bad.json", b"{")])
    with pytest.raises(ValueError, match=r"'source' has no usable sample.*JSON"):
        make_module({"source": [path]}, max_skipped=9).setup()
    empty = tmp_path / "empty.tar"
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match="no usable sample"):
        make_module({"source": [empty]}, max_skipped=9).setup()


@pytest.mark.parametrize("cut", [512, 700, 1024, 5000, -10_240, -10_752, -1])
def test_a_truncated_tar_loses_its_end_only_and_says_so(tmp_path: Path, cut: int):
    members = [member for number in range(4) for member in sample_members(number)]
    path = write_tar(tmp_path / "cut.tar", members)
    whole = path.read_bytes()
    spans = samples_of(whole)
    path.write_bytes(whole[:cut])
    index = index_shard(path)
    left = cut % len(whole)
    assert len(index) == sum(end <= left for end in spans.values())
    if left < len(whole) - 9000:  # more than the rest of the end marker is gone
        assert [record.cause for record in index.skipped].count(Skip.DAMAGED_TAR) == 1


def test_pickles_links_and_odd_members_are_never_opened(tmp_path: Path, make_module: Make):
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes = b"", **fields: object) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))

        add("./", type=tarfile.DIRTYPE)
        add("README", b"no sample")
        for name, data in sample_members(0):
            add("./" + name, data)
        add("generation-00000.pkl", pickle.dumps(Exploding()))
        add("generation-00000.pth", pickle.dumps(Exploding()))
        add("link.json", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("link.1.png", make_png(0))
        add("pipe.json", b"", type=tarfile.FIFOTYPE)
    module = make_module({"source": [path]}, max_skipped=1)
    module.setup()
    assert [batch.keys for batch in module.train_dataloader()] == [("generation-00000",)]
    assert module.skips.counts == {Skip.MISSING_MEMBER: 1}  # the link is no document


def samples_of(data: bytes) -> dict[str, int]:
    """Key of each sample and the byte behind it."""
    found = find_samples(io.BytesIO(data), len(data), "shard")
    return {span.key: span.end for span in found if isinstance(span, SampleSpan)}


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One random injury."""
    at = rng.randrange(len(data))
    length = rng.choice([1, 3, 100, 512, 2000])
    noise = rng.randbytes(length)
    return {
        "flip": lambda: data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
        "overwrite": lambda: data[:at] + noise + data[at + length :],
        "zero": lambda: data[:at] + bytes(length) + data[at + length :],
        "insert": lambda: data[:at] + noise + data[at:],
        "delete": lambda: data[:at] + data[at + length :],
        "truncate": lambda: data[:at],
        "repeat": lambda: data[: at + length] + data[at:],
        "swap": lambda: data[at:] + data[:at],
    }[rng.choice(["flip", "overwrite", "zero", "insert", "delete", "truncate", "repeat", "swap"])]()


@pytest.fixture(scope="module")
def builder(formatting: Formatting) -> DocumentBuilder:
    return DocumentBuilder(formatting)


def test_fuzzed_shards_lose_no_good_sample(tmp_path: Path, builder: DocumentBuilder):
    whole = write_shards(tmp_path, "editing", 6)[0].read_bytes()
    ends = samples_of(whole)
    begins = dict(zip(ends, [0, *ends.values()], strict=False))
    silent = 0
    for seed in range(400):
        rng = random.Random(seed)
        data = mutate(whole, rng)
        if rng.random() < 0.3:
            data = mutate(data or whole, rng)
        path = tmp_path / f"fuzzed-{seed}.tar"
        path.write_bytes(data)
        index = index_shard(path)
        samples = ShardSamples([path], [index], with_loss=True)
        dataset = BatchDataset([OpenSource("fuzzed", samples)], builder, seed=0, dropout=None)
        batch = dataset[OrderedBatch(0, 0, 0, tuple(range(len(samples))))]
        good = {key for key, end in ends.items() if whole[begins[key] : end] in data}
        assert good <= set(batch.keys), f"mutation {seed} lost {good - set(batch.keys)}"
        assert len(set(batch.keys)) == len(batch.keys) <= 6
        lost = ends.keys() - set(batch.keys)
        silent += bool(lost) and not (samples.skipped or batch.skipped)
        path.unlink()
    assert silent == 0


def test_skip_log_counts_samples_once_and_survives_a_restart():
    log = SkipLog(limit=2)
    record = SkipRecord(Skip.BAD_JSON, "a.tar: 'x'", "broken")
    log.add([record, record])
    again = SkipLog(limit=2)
    again.load_state_dict(log.state_dict())
    again.add([record, SkipRecord(Skip.EMPTY_TEXT, "a.tar: 'y'", "empty")])
    assert again.counts == {Skip.BAD_JSON: 1, Skip.EMPTY_TEXT: 1}
    with pytest.raises(TooManySkippedError):
        again.add([SkipRecord(Skip.EMPTY_TEXT, "a.tar: 'z'", "empty")])


def test_shard_lists(make_module: Make, formatting: Formatting, tmp_path: Path):
    folder = tmp_path / "many"
    first, second = write_shards(folder, "generation", 12)
    cat = tmp_path / "copy.tar"
    cat.write_bytes(second.read_bytes())
    for shards, samples in [
        (str(folder), 12),
        (str(folder / "generation-{0000..0001}.tar"), 12),
        (f"file:{first}", 10),
        ([str(first), f"pipe:cat {cat}"], 12),
    ]:
        module = make_module({})
        module.sources["train"] = [Source("source", shards)]
        module.prepare_data()
        module.setup()
        assert sum(map(len, module.train_dataloader())) == samples
    cat.unlink()  # the copy stays
    again = make_module({})
    again.sources["train"] = [Source("source", f"pipe:cat {cat}")]
    again.setup()
    broken = make_module({})
    broken.sources["train"] = [Source("source", "pipe:cat /nowhere/at-all.tar")]
    with pytest.raises(OSError, match="at-all"):
        broken.setup()
    unknown = make_module({})
    unknown.sources["train"] = [Source("source", str(folder / "*.tar"))]
    with pytest.raises(FileNotFoundError, match="shards"):
        unknown.setup()


def test_a_changed_shard_is_scanned_again(make_module: Make, tmp_path: Path):
    path = write_shards(tmp_path, "generation", 5)[0]
    make_module({"source": [path]}).setup()
    data = write_shards(tmp_path / "more", "generation", 8)[0].read_bytes()
    path.write_bytes(data)
    module = make_module({"source": [path]})
    module.setup()
    loader = module.train_dataloader()
    path.write_bytes(data[:3000])  # and now behind our back
    module.skips.limit = 10
    keys = {key for batch in loader for key in batch.keys}
    assert len(keys) + sum(module.skips.counts.values()) == 8 and keys
