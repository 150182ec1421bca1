"""Pictures with captions in every form that `folder` takes, on real photographs."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image, ImageCms

from hyperbagel.bagel.images import load_image
from hyperbagel.datamodules.convert import CaptionFields, FormatError, convert_folder
from hyperbagel.datamodules.interleaved import Batching, InterleavedDataModule
from hyperbagel.datamodules.loader import ReaderSettings
from hyperbagel.datamodules.pipeline import CondDropout, Formatting
from hyperbagel.datamodules.sources import Source
from tests.datamodules.convert.datasets import SERIAL, picture, write, write_jsonl
from tests.datamodules.convert.shards import outline, read_back

PHOTOGRAPHS = {
    "astronaut.png": "Eileen Collins, an astronaut, in an orange suit",
    "camera.png": "a photographer with a camera on a tripod",
    "chelsea.png": 'a tabby cat, "Chelsea", looking up',
    "coffee.png": "a cup of coffee\nwith a spoon",
    "retina.jpg": "une rétine, 视网膜",
    "rocket.jpg": "a rocket on its launch pad",
}
FLAT = {name: " ".join(text.split()) for name, text in PHOTOGRAPHS.items()}


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Real photographs, one of them in a subfolder."""
    folder = tmp_path / "photographs"
    (folder / "more").mkdir(parents=True)
    for name in PHOTOGRAPHS:
        shutil.copy(Path(skimage.__file__).parent / "data" / name, folder / where(name))
    return folder


def where(name: str) -> str:
    return f"more/{name}" if name.startswith("r") else name


def write_csv(folder: Path, delimiter: str = ",", name: str = "captions.csv") -> dict[str, str]:
    with (folder / name).open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["file_name", "caption", "source"])
        writer.writerows([where(name), text, "scikit-image"] for name, text in PHOTOGRAPHS.items())
    return PHOTOGRAPHS


def write_metadata(folder: Path) -> dict[str, str]:
    write_jsonl(folder / "metadata.jsonl", [{"file_name": where(n), "text": t} for n, t in PHOTOGRAPHS.items()])
    return PHOTOGRAPHS


def write_text_files(folder: Path) -> dict[str, str]:
    for name, text in PHOTOGRAPHS.items():
        write((folder / where(name)).with_suffix(".txt"), text)
    return PHOTOGRAPHS


def write_pairs(folder: Path) -> dict[str, str]:
    write(folder / "captions.txt", "".join(f"{where(name)}\t{text}\n" for name, text in FLAT.items()))
    return FLAT


def write_lines(folder: Path) -> dict[str, str]:
    write(folder / "captions.txt", "\n".join(FLAT[name] for name in sorted(FLAT, key=where)))
    return FLAT


@pytest.mark.parametrize(
    "write_captions",
    [
        write_csv,
        lambda folder: write_csv(folder, "\t", "captions.tsv"),
        write_metadata,
        write_text_files,
        write_pairs,
        write_lines,
    ],
    ids=["csv", "tsv", "jsonl", "txt-per-image", "pairs", "lines"],
)
def test_real_photographs_with_captions(photographs: Path, tmp_path: Path, write_captions: Callable):
    captions = write_captions(photographs)
    options = replace(SERIAL, shard_size=2)
    summary = convert_folder(str(photographs), str(tmp_path / "out"), options=options)
    assert (summary.rows, summary.written, summary.shards, summary.skipped) == (6, 6, 3, {})
    documents = {document.meta["file_name"]: (document, images) for document, images in read_back(tmp_path / "out")}
    for name, caption in captions.items():
        document, images = documents[where(name)]
        assert outline(document) == [(caption, False), ("image", True)]
        assert images == {f"0.{name[-3:]}": (photographs / where(name)).read_bytes()}
        original = Image.open(photographs / where(name)).convert("RGB")
        if profile := original.info.get("icc_profile"):  # the rocket is in Adobe RGB
            stored = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            ImageCms.profileToProfile(original, stored, ImageCms.createProfile("sRGB"), inPlace=True)
        assert np.array_equal(load_image(next(iter(images.values()))), original)


def test_photographs_reach_the_model(photographs: Path, tmp_path: Path, formatting: Formatting):
    write_csv(photographs)
    convert_folder(str(photographs), str(tmp_path / "out"), options=SERIAL)
    module = InterleavedDataModule(
        formatting,
        train=[Source("photographs", str(tmp_path / "out"))],
        batching=Batching(batch_size=2),
        dropout=CondDropout(0, 0, 0),
        reader=ReaderSettings(0, max_skipped=0, cache_dir=str(tmp_path / "cache")),
    )
    module.prepare_data()
    module.setup("fit")
    batches = list(module.train_dataloader())
    assert sorted(key for batch in batches for key in batch.keys) == [
        f"folder-{i // 4:06d}-{i % 4:08d}" for i in range(6)
    ]
    for batch in batches:
        for text, image in batch.documents:
            assert text.ids.numel() > 20 and image.loss and image.pixels.shape[0] == 3 and image.pixels.std() > 0.1


def test_names_of_columns_and_further_wordings(tmp_path: Path):
    write(tmp_path / "src/a.jpg", picture(0))
    rows = [{"picture": "a.jpg", "short": "a", "long": "a long text", "score": 0.5}]
    file = write_jsonl(tmp_path / "elsewhere.jsonl", rows)
    with pytest.raises(FormatError, match=r"elsewhere\.jsonl, line 1: no key .*file_name.*set `fields\.image`"):
        convert_folder(str(tmp_path / "src"), str(tmp_path / "out"), str(file), options=SERIAL)
    for text in ("short", "long"):
        fields = CaptionFields("picture", text)
        convert_folder(str(tmp_path / "src"), str(tmp_path / text), str(file), fields, SERIAL)
        document, _ = read_back(tmp_path / text)[0]
        assert outline(document)[0][0] == rows[0][text]
        assert document.meta == {key: value for key, value in rows[0].items() if key != text}


def test_bad_rows_are_counted_by_cause(tmp_path: Path):
    src = tmp_path / "src"
    write(src / "a.png", picture(0, "PNG"))
    write(src / "b.png", b"\x89PNG nothing")
    write(src / "secret.txt", "not a picture")
    lines = [
        "file_name,text",
        "a.png,good",
        "b.png,unreadable",
        "c.png,missing",
        "../src/a.png,outside",
        "secret.txt,no picture",
        "a.png,",
        "a.png,too,many",
        "",
        "a.png,caf\udce9",
        'a.png,"good, and ""quoted""',
        'over two lines"',
        'a.png,"never closed',
        "a.png,a row of its own",
    ]
    write(src / "captions.csv", "\r\n".join(lines).encode("utf-8", "surrogateescape"))
    options = replace(SERIAL, shard_size=3, max_skipped=1)
    summary = convert_folder(str(src), str(tmp_path / "out"), options=options)
    texts = [outline(document)[0][0] for document, _ in read_back(tmp_path / "out")]
    assert texts == ["good", 'good, and "quoted"\r\nover two lines', "a row of its own"]
    assert summary.skipped == {
        "bad_schema": 2, "empty_text": 1, "missing_image": 1, "not_utf8": 1, "unreadable_image": 2, "unsafe_name": 1,
    }  # fmt: skip
    places = [example.partition(": ")[0] for example in summary.examples["bad_schema"]]
    assert places == [f"{src}/captions.csv, line 8", f"{src}/captions.csv, line 13"]
    assert "a quotation mark does not close where a row ends" in summary.examples["bad_schema"][1]


def test_pictures_and_texts_without_each_other_are_counted(tmp_path: Path):
    for name in ("a.jpg", "b.jpg"):
        write(tmp_path / "src" / name, picture(0))
    write(tmp_path / "src/a.txt", "\ufeffa caption\n")
    write(tmp_path / "src/c.txt", "whose?")
    summary = convert_folder(str(tmp_path / "src"), str(tmp_path / "out"), options=replace(SERIAL, max_skipped=1))
    assert summary.skipped == {"missing_caption": 1, "missing_image": 1}
    assert [outline(document)[0][0] for document, _ in read_back(tmp_path / "out")] == ["a caption"]


def test_missing_and_wrong_things_are_named(tmp_path: Path):
    src, out = tmp_path / "src", str(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no folder"):
        convert_folder(str(src), out)
    write(src / "a.jpg", picture(0))
    with pytest.raises(FileNotFoundError, match=r"nor a \.txt file beside any of its 1 pictures"):
        convert_folder(str(src), out)
    with pytest.raises(FileNotFoundError, match=r"no file .*b\.csv"):
        convert_folder(str(src), out, str(tmp_path / "b.csv"))
    with pytest.raises(FormatError, match="2 lines for 1 pictures"):
        convert_folder(str(src), out, str(write(tmp_path / "b.txt", "a\nb\n")))
    with pytest.raises(FormatError, match=r"b\.xml: captions must be a \.csv"):
        convert_folder(str(src), out, str(write(tmp_path / "b.xml", "<a/>")))
    with pytest.raises(FormatError, match=r"b\.csv has no rows"):
        convert_folder(str(src), out, str(write(tmp_path / "b.csv", "file_name,text\n")))
    with pytest.raises(
        FormatError, match=r"line 1: no key 'body' for the text, only file_name, text; set `fields\.text`"
    ):
        file = write(tmp_path / "c.jsonl", json.dumps({"file_name": "a.jpg", "text": "b"}))
        convert_folder(str(src), out, str(file), CaptionFields(text="body"))
