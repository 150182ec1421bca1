"""Random folders of pictures and random shards: what is there is read or counted, and read as it looks."""

import gzip
import io
import json
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from hyperbagel.bagel.images import ImageError, image_size, load_image
from hyperbagel.datamodules.convert import convert_folder
from hyperbagel.datamodules.index import index_shard
from hyperbagel.datamodules.inspect import inspect_shards
from hyperbagel.datamodules.shards import find_shards
from hyperbagel.datamodules.sources import ShardSamples
from tests.datamodules.convert.datasets import SERIAL
from tests.datamodules.convert.shards import read_back
from tests.datamodules.samples import make_png

MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "WEBP": ["L", "RGB", "RGBA"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "YCbCr"],
    "BMP": ["1", "L", "P", "RGB"],
    "GIF": ["L", "P", "RGB", "RGBA"],
    "JPEG": ["L", "RGB", "CMYK"],
    "AVIF": ["RGB", "RGBA"],
}
ENDINGS = {"JPEG": ".jfif", "TIFF": ".TIF"}


@dataclass(frozen=True)
class Picture:
    """A picture file to be made. cut: share of its bytes that is there."""

    kind: str
    mode: str
    size: tuple[int, int]
    orientation: int
    seed: int
    cut: float

    def encode(self) -> bytes:
        width, height = self.size
        samples = np.random.default_rng(self.seed).integers(0, 65536, (height, width, 4), dtype=np.uint16)
        if self.mode == "I;16":
            image = Image.fromarray(samples[..., 0])
        else:
            image = Image.fromarray((samples >> 8).astype(np.uint8))
            image = image.convert({"F": "L", "I": "L"}.get(self.mode, "RGB" if self.mode[-1] != "A" else self.mode))
            image = image.convert(self.mode)
        options = {"exif": Image.Exif()} if self.kind not in ("BMP", "GIF") else {}
        if options:
            options["exif"][0x0112] = self.orientation
        if self.kind == "WEBP":
            options["lossless"] = True
        buffer = io.BytesIO()
        image.save(buffer, self.kind, **options)
        return buffer.getvalue()[: round(len(buffer.getvalue()) * self.cut)]


def shown(data: bytes) -> Image.Image | None:
    """What Pillow shows upright and on white, None for samples without a known range."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode in ("I", "F"):
        return None
    if image.mode == "I;16":
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


@st.composite
def pictures(draw: st.DrawFn) -> Picture:
    kind = draw(st.sampled_from(sorted(MODES)))
    side = st.integers(1, 12)
    return Picture(
        kind=kind,
        mode=draw(st.sampled_from(MODES[kind])),
        size=(draw(side), draw(side)),
        orientation=draw(st.integers(0, 9)),
        seed=draw(st.integers(0, 99)),
        cut=draw(st.one_of(st.just(1.0), st.just(1.0), st.floats(0, 1))),
    )


@settings(max_examples=50, deadline=None, derandomize=True)
@given(pictures())
def test_pictures_are_what_pillow_shows_upright(picture: Picture):
    data = picture.encode()
    try:
        seen = load_image(data, name="a.png")
    except ImageError as error:
        assert picture.cut < 1 or shown(data) is None
        assert str(error).startswith("a.png: not a readable picture: ") and len(str(error)) <= 300
        return
    assert image_size(data) == seen.size
    if picture.cut == 1:
        expected = shown(data)
        assert expected is not None and seen.size == expected.size
        assert np.abs(np.asarray(seen).astype(int) - np.asarray(expected)).max() <= 1  # rounding of alpha


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(pictures(), max_size=5))
def test_folders_are_read_or_counted(others: list[Picture]):
    made = [Picture("PNG", "RGB", (4, 3), 1, 0, 1.0), *others]  # with no good one at all a conversion is an error
    with TemporaryDirectory() as name:
        source, out = Path(name) / "source", Path(name) / "out"
        source.mkdir()
        files = {}
        for number, picture in enumerate(made):
            file = f"{number}{ENDINGS.get(picture.kind, '.' + picture.kind.lower())}"
            files[file] = picture.encode()
            (source / file).write_bytes(files[file])
            (source / f"{number}.txt").write_text(f"picture {number}")
        summary = convert_folder(str(source), str(out), options=replace(SERIAL, max_skipped=1))
        assert summary.written + sum(summary.skipped.values()) == summary.rows == len(made)
        assert " at 0x" not in str(summary)
        written = (
            [(document.meta["file_name"], images) for document, images in read_back(out)] if summary.shards else []
        )
        assert len(written) == summary.written
        for file, images in written:
            assert list(images.values()) == [files[file]]


# Shards

PNG = make_png(0)
DOCUMENT = json.dumps(
    {"segments": [{"type": "text", "text": "red"}, {"type": "image", "file": "0.png", "loss": True}]}
).encode()
Entry = tuple[str, bytes | None]  # None: a link
GOOD = {
    "plain": lambda key: [(f"{key}.json", DOCUMENT), (f"{key}.0.png", PNG)],
    "upper": lambda key: [(f"{key}.0.PNG", PNG), (f"{key}.JSON", DOCUMENT)],
    "junk": lambda key: [
        (f"{key}.json", DOCUMENT),
        (f"._{key}.0.png", b"junk"),
        ("README", b""),
        (f"{key}.0.png", PNG),
    ],
    "folder": lambda key: [(f"a/{key}.json", DOCUMENT), (f"a/._{key}.json", b""), (f"a/{key}.0.png", PNG)],
    "dot": lambda key: [(f"./{key}.json", DOCUMENT), (f"./{key}.0.png", PNG), (f"./{key}.txt", None)],
    "latin": lambda key: [(f"{key}\udce9.json", DOCUMENT), (f"{key}\udce9.0.png", PNG)],
    "long": lambda key: [(f"{key * 70}.json", DOCUMENT), (f"{key * 70}.0.png", PNG)],
}
BAD = {
    "dotted": lambda key: [(f"v1.{key}.json", DOCUMENT), (f"v1.{key}.0.png", PNG)],
    "picture": lambda key: [(f"{key}.json", DOCUMENT), (f"{key}.0.png", PNG[:20])],
    "no picture": lambda key: [(f"{key}.json", DOCUMENT)],
    "no document": lambda key: [(f"{key}.0.png", PNG)],
    "link": lambda key: [(f"{key}.json", DOCUMENT), (f"{key}.0.png", None)],
    "links": lambda key: [(f"{key}.json", None), (f"{key}.0.png", None)],
    "json": lambda key: [(f"{key}.json", b"{"), (f"{key}.0.png", PNG)],
    "outside": lambda key: [(f"../{key}.json", DOCUMENT), (f"../{key}.0.png", PNG)],
}


def write(path: Path, entries: list[Entry], kind: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind, errors="surrogateescape") as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "elsewhere" * 20
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data or b""))
    path.write_bytes(gzip.compress(buffer.getvalue()) if path.suffix == ".gz" else buffer.getvalue())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([*GOOD, *GOOD, *BAD]), min_size=1, max_size=8),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.booleans(),
)
def test_shards_are_read_or_counted(kinds: list[str], format_: int, packed: bool):
    with TemporaryDirectory() as name:
        path = Path(name) / ("x.tar.gz" if packed else "x.tar")
        entries = [entry for number, kind in enumerate(kinds) for entry in (GOOD | BAD)[kind](f"s{number}")]
        write(path, entries, format_)
        (local,) = find_shards(str(path), Path(name) / "cache")
        index = index_shard(local)
        samples = ShardSamples([local], [index], with_loss=True)
        read = [samples.read(i) for i in range(len(samples))]
        assert len(read) == sum(kind in GOOD for kind in kinds)
        assert (
            len({record.sample for record in index.skipped}) == len(index.skipped) == sum(kind in BAD for kind in kinds)
        )
        assert all(sample.members["0.png"] == PNG for sample in read)
        library = {
            item["__key__"].removeprefix("./").encode(errors="surrogateescape"): item
            for item in (wds.WebDataset(str(path), shardshuffle=False) if read else ())
        }
        for sample in read:
            if "/" in sample.key:  # there the library takes `._` files for samples
                continue
            # Its keys may be any bytes, ours are texts.
            theirs = library.get(sample.key.encode()) or library[sample.key.encode("latin-1")]
            assert theirs["0.png"] == PNG and json.loads(theirs["json"]) == json.loads(DOCUMENT)


@pytest.mark.parametrize("seed", range(3))
def test_no_bytes_are_a_traceback(tmp_path: Path, seed: int):
    path = tmp_path / "noise.tar"
    path.write_bytes(np.random.default_rng(seed).bytes(5000))
    summary = inspect_shards(str(path), tmp_path / "sheet.png")
    assert summary.samples == 0 and summary.skipped.total() == 1
