"""Real photographs, in the formats of the data sets that the paper names, go through every stage and come out."""

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import skimage
import yaml
from PIL import Image

from hyperbagel.cli import main
from hyperbagel.evaluation.reports import read_report
from tests.datamodules.convert import datasets
from tests.runs import nano_folder
from tests.stages import STAGES as ROWS

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[1] / "configs" / "nano"
PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "retina.jpg",
    "rocket.jpg",
    "motorcycle_left.png",
)
DATA_SETS = ("folder", "journeydb", "llava-onevision", "seed-data-edit")
UNDERSTANDING, DRAWING = ("llava-onevision",), ("folder", "journeydb", "seed-data-edit")
SOURCES = {"answers": UNDERSTANDING, "pictures": DRAWING, "both": DATA_SETS}
STAGES = {config: SOURCES[learnt] for row in ROWS.values() for config, learnt in row.configs.items()}
"""Configuration -> the data sets that its stage learns from, in the order of the stages."""


def photograph(seed: int, kind: str = "JPEG", size: tuple[int, int] = (0, 0)) -> bytes:
    """A file of one of them, no larger than 96 pixels; `size` is that of the noise that it stands for."""
    buffer = io.BytesIO()
    with Image.open(Path(skimage.__file__).parent / "data" / PHOTOGRAPHS[seed % len(PHOTOGRAPHS)]) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((96, 96))
        picture.save(buffer, kind)
    return buffer.getvalue()


def write_data_sets(raw: Path) -> None:
    """Each data set as it is published, with photographs for pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "picture", photograph)
        datasets.write_parquet(raw / "llava-onevision" / "train.parquet", [datasets.llava_row(i) for i in range(12)])
        datasets.write_journeydb(raw / "journeydb", rows=12)
        datasets.write_seed(raw / "seed-data-edit")
    for name in PHOTOGRAPHS:
        (raw / "folder").mkdir(exist_ok=True)
        shutil.copy(Path(skimage.__file__).parent / "data" / name, raw / "folder")
        datasets.write((raw / "folder" / name).with_suffix(".txt"), f"a photograph: {Path(name).stem}")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a nano model and the shards of every data set, converted by the command line."""
    root = tmp_path_factory.mktemp("photographs")
    nano_folder(root / "fresh" / "nano")
    write_data_sets(root / "raw")
    for name in DATA_SETS:
        main(["data", name, str(root / "raw" / name), str(root / "shards" / name), "--options.workers", "1"])
    return root


def overlay(root: Path, names: tuple[str, ...]) -> str:
    """A file with the sources of these data sets, laid over a stage's configuration."""
    sources: list[dict[str, Any]] = [{"name": name, "shards": f"shards/{name}", "samples": None} for name in names]
    path = root / "photographs.yaml"
    path.write_text(yaml.safe_dump({"data": {"init_args": {"train": sources, "val": sources, "test": sources}}}))
    return str(path)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_learns_from_photographs(stage: str, work: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(work)
    main(["fit", "--config", str(CONFIGS / f"{stage}.yaml"), "--config", overlay(work, STAGES[stage])])


def test_models_are_measured_with_photographs(work: Path, monkeypatch: pytest.MonkeyPatch):
    """The losses on held-out documents, and the benchmarks."""
    monkeypatch.chdir(work)
    main(["test", "--config", str(CONFIGS / "pretrain.yaml"), "--config", overlay(work, DATA_SETS)])
    (report,) = (work / "runs" / "nano" / "pretrain").rglob("report.json")
    assert {"geneval", "gedit"} <= read_report(report.parent)["results"].keys()


def test_photographs_are_drawn_edited_and_described(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """By the model as exported, at full cost and with both distilled branches."""
    monkeypatch.chdir(work)
    model = ("--model", "fresh/nano")
    for steps, branch in ((2, ()), (6, ("--branch", "runs/nano/branches/nfe6.safetensors")),
                          (1, ("--branch", "runs/nano/branches/nfe1.safetensors"))):  # fmt: skip
        options = (*model, *branch, "--steps", str(steps))
        main(["generate", "a cup of coffee", "--out", f"drawn-{steps}.png", *options])
        main(["edit", "raw/folder/coffee.png", "Empty the cup.", "--out", f"edited-{steps}.png", *options])
        with Image.open(f"drawn-{steps}.png") as drawn, Image.open(f"edited-{steps}.png") as edited:
            assert drawn.mode == edited.mode == "RGB"
            assert edited.width > edited.height  # as the photograph is
    capsys.readouterr()
    main(["chat", "raw/folder/coffee.png", "What is it?", *model, "--draft", "runs/nano/draft/draft.safetensors"])
    assert "tokens/s" in capsys.readouterr().err
