"""What users get wrong is told in one line; what the program gets wrong keeps its traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from hyperbagel.cli import main
from hyperbagel.cli.errors import CommandParser, one_line_errors
from hyperbagel.cli.explanation import UsageError
from hyperbagel.cli.trainer import refuse_command
from hyperbagel.datamodules.convert import TooManyBadRowsError
from hyperbagel.datamodules.interleaved import InterleavedDataModule
from hyperbagel.datamodules.skipped import TooManySkippedError
from hyperbagel.evaluation.gedit.samples import ExactJudge, Judge, JudgeScore
from tests.runs import nano_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nano model, the configuration of one update of it, and files that are broken in some way."""
    place = tmp_path_factory.mktemp("errors")
    nano = nano_folder(place / "nano")
    adam = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}}
    scenes = {
        "class_path": "hyperbagel.datamodules.scenes.SceneSource",
        "init_args": {"size": 4, "weights": {"generation": 1}},
    }
    size = {"max_size": 32, "min_size": 16, "stride": 8}
    settings = {
        "model": {
            "class_path": "hyperbagel.modules.pretraining.Pretraining",
            "init_args": {"model": nano, "method": {"train": "generation"}, "student": {"optimizer": adam}},
        },
        "data": {
            "class_path": "hyperbagel.datamodules.interleaved.InterleavedDataModule",
            "init_args": {
                "formatting": {"tokenizer": nano, "latent": size, "vit": size},
                "train": [{"name": "scenes", "samples": scenes}],
                "reader": {"num_workers": 0},
            },
        },
        "trainer": {
            "max_steps": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "default_root_dir": str(place),
        },
    }
    text = yaml.safe_dump(settings)
    (place / "good.yaml").write_text(text)
    (place / "typo.yaml").write_text(text.replace("max_steps", "max_step"))
    (place / "class.yaml").write_text(text.replace("pretraining.Pretraining", "pretraining.Pretrainin"))
    (place / "latin.yaml").write_bytes(b"# entra\xeenement\n" + text.encode())
    (place / "broken.yaml").write_text("model: [\n")
    (place / "empty.yaml").write_text("")
    (place / "cut.ckpt").write_bytes((place / "nano" / "ema.safetensors").read_bytes()[:3000])
    torch.save({"weights": torch.ones(1)}, place / "other.ckpt")
    return place


@pytest.mark.parametrize(
    ("config", "options", "status", "told"),
    [
        ("typo", [], 2, "trainer.max_step is no setting; did you mean trainer.max_steps?"),
        (
            "class",
            [],
            2,
            "class.yaml: model (Pretrainin): hyperbagel.modules.pretraining has no Pretrainin; did you mean",
        ),
        ("latin", [], 2, "latin.yaml: not UTF-8 (byte 0xee at 7); save it as UTF-8"),
        ("broken", [], 2, "broken.yaml: while parsing a flow node"),
        ("empty", [], 2, "empty.yaml: holds no settings"),
        ("nowhere", [], 1, "nowhere.yaml: no such file"),
        (
            "good",
            ["--model.init_args.method.train", "al"],
            2,
            "model (Pretraining): method.train: 'al' is not one of 'both', 'under",
        ),
        ("good", ["--trainer.max_step", "3"], 2, "no option --trainer.max_step; did you mean --trainer.max_steps?"),
        ("good", ["--model.init_args.model", "nosuch"], 1, "nosuch: no such folder; give a BAGEL checkpoint folder"),
        ("good", ["--data.init_args.formatting.tokenizer", "nosuch"], 1, "nosuch: no such tokenizer folder"),
        ("good", ["--trainer.accelerator", "mps"], 1, "trainer.accelerator mps, trainer.devices auto: "),
        ("good", ["--ckpt_path", "nosuch.ckpt"], 1, "nosuch.ckpt: no such checkpoint"),
        ("good", ["--ckpt_path", "cut.ckpt"], 1, "cut.ckpt: not a whole checkpoint"),
        ("good", ["--ckpt_path", "other.ckpt"], 1, "other.ckpt: not a checkpoint of a run"),
    ],
)
def test_mistakes_of_a_training_are_told_in_one_line(
    config: str,
    options: list[str],
    status: int,
    told: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", f"{config}.yaml", *options])
    line = capsys.readouterr().err.splitlines()[-1] if status == 2 else end.value.code
    assert status == (2 if end.value.code == 2 else 1)
    assert isinstance(line, str) and line.startswith("hyperbagel fit: ") and told in line
    assert "\n" not in line and "Namespace" not in line


def test_a_missing_branch_of_a_row_is_told_before_data_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    rows = {"teacher": None, "student": {"branch": "student.safetensors"}}
    detector = {"class_path": "hyperbagel.evaluation.geneval.scene_detector.SceneDetector"}
    init = {"detector": detector, "prompts": {"limit": 6}, "rows": rows}
    callbacks = [{"class_path": "hyperbagel.callbacks.GenEval", "init_args": init}]
    (folder / "test.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    monkeypatch.setattr(InterleavedDataModule, "prepare_data", None)
    with pytest.raises(SystemExit, match=r"hyperbagel test: no such file: student\.safetensors; run what makes"):
        main(["test", "--config", "good.yaml", "--config", "test.yaml", "--trainer.max_steps", "-1"])


def test_commands_that_a_stage_has_nothing_for() -> None:
    with pytest.raises(ValueError, match=r"CFGDistillation has no `test_step`.*Pretraining with a row"):
        refuse_command("test", "hyperbagel.modules.CFGDistillation")
    with pytest.raises(ValueError, match=r"LightningModule has no `predict_step`.*derive it from"):
        refuse_command("predict", "lightning.LightningModule")
    refuse_command("predict", "hyperbagel.modules.CFGDistillation")
    refuse_command("test", "hyperbagel.modules.pretraining.Pretraining")
    refuse_command("fit", "hyperbagel.modules.CFGDistillation")


class Part:
    def __init__(self, size: int = 1) -> None:
        if size < 0:
            raise ValueError(f"size {size}: give 0 or more")


class Broken(Part):
    def __init__(self, size: int = 1) -> None:
        size.append(1)  # type: ignore[attr-defined]


def parser() -> CommandParser:
    made = CommandParser(prog="hyperbagel test")
    made.add_argument("--part", type=Part)
    made.add_argument("--parts", type=list[Part] | None)
    made.add_argument("--steps", type=int)
    return made


HERE = "tests.cli.test_errors"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--setps", "6"], "no option --setps; did you mean --steps?"),
        (["--step", "6"], "no option --step; did you mean --steps?"),  # no abbreviations
        (["six"], "unexpected argument 'six'"),
        (["--part=Prat"], "part: no class Prat: give its path, such as hyperbagel.modules.pretraining.Pretraining"),
        (["--steps", "six"], "steps: 'six' is not int"),
        ([f"--part={HERE}.Brokn"], f"part (Brokn): {HERE} has no Brokn; did you mean Broken?"),
        (["--part=tests.cli.test_erors.Part"], "part (Part): tests.cli has no test_erors; did you mean test_errors?"),
        (["--part=hyperbagle.Part"], "part (Part): no module named hyperbagle; did you mean hyperbagel?"),
        ([f"--part={HERE}.Part", "--part.siz=1"], "part (Part): siz is no setting; did you mean size?"),
        ([f"--parts=[{{class_path: {HERE}.Part, init_args: {{size: x}}}}]"], "parts (Part): size: 'x' is not int"),
    ],
)
def test_options_are_explained(arguments: list[str], told: str) -> None:
    with pytest.raises(UsageError) as error:
        parser().parse_args(arguments)
    assert str(error.value) == told


class Unhinted:
    def score(self, instruction, source, edited):  # type: ignore[no-untyped-def]
        pass


class Halfhinted:
    def score(self, instruction: str, source: Image.Image, edited: Image.Image):  # type: ignore[no-untyped-def]
        pass


class Misnamed:
    def score(self, prompt: str, source: Image.Image, edited: Image.Image) -> JudgeScore:
        return JudgeScore(1, 1)


class Misfit:
    def score(self, instruction: str, source: Tensor, edited: Tensor) -> JudgeScore:
        return JudgeScore(1, 1)


class Short:
    def score(self, instruction: str, edited: Image.Image) -> JudgeScore:
        return JudgeScore(1, 1)


class NoMethod:
    score = "mine"


class ElsewhereNamed:
    def judge(self, instruction: str, source: Image.Image, edited: Image.Image) -> JudgeScore:
        return JudgeScore(1, 1)


class Hinted:
    def score(self, instruction: str, source: Image.Image, edited: Image.Image) -> JudgeScore:
        return JudgeScore(1, 1)


WANTED = "score(self, instruction: str, source: Image, edited: Image) -> JudgeScore"


@pytest.mark.parametrize(
    ("judge", "told"),
    [
        (Unhinted, f"score(self, instruction, source, edited), which has to be {WANTED}, type hints included"),
        (Halfhinted, f"score(self, instruction: str, source: Image, edited: Image), which has to be {WANTED}, type"),
        (Misnamed, f"score(self, prompt: str, source: Image, edited: Image) -> JudgeScore, which has to be {WANTED}"),
        (Misfit, "score(self, instruction: str, source: Tensor, edited: Tensor) -> JudgeScore, which has to be score"),
        (Short, f"score(self, instruction: str, edited: Image) -> JudgeScore, which has to be {WANTED}"),
        (NoMethod, f"score that is no method, which has to be {WANTED}"),
        (ElsewhereNamed, f"no method {WANTED}"),
    ],
)
def test_what_a_plug_in_lacks_is_told(judge: type, told: str) -> None:
    made = CommandParser(prog="hyperbagel test")
    made.add_argument("--judge", type=Judge | ExactJudge)
    made.parse_args([f"--judge={HERE}.Hinted"])
    with pytest.raises(UsageError) as error:
        made.parse_args([f"--judge={HERE}.{judge.__name__}"])
    assert str(error.value).startswith(f"judge: {judge.__name__} is no Judge: it has {told}")
    assert len(str(error.value)) < 300


def test_the_error_of_an_object_is_told_without_what_was_made_of_it() -> None:
    options = parser().parse_args([f"--parts=[{{class_path: {HERE}.Part, init_args: {{size: -1}}}}]"])
    with pytest.raises(SystemExit) as end, one_line_errors("hyperbagel test"):
        parser().instantiate(options)
    assert end.value.code == "hyperbagel test: size -1: give 0 or more"


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    options = parser().parse_args([f"--part={HERE}.Broken"])
    with pytest.raises(ValueError) as error, one_line_errors("hyperbagel test"):
        parser().instantiate(options)
    assert isinstance(error.value.__cause__, AttributeError)
    with pytest.raises(TypeError), one_line_errors("hyperbagel test"):
        raise TypeError("a bug")
    monkeypatch.setenv("HYPERBAGEL_TRACEBACK", "1")
    with pytest.raises(ValueError), one_line_errors("hyperbagel test"):
        raise ValueError("anything")


def interrupted() -> None:
    """As the trainer ends when it is interrupted."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise SystemExit(1)  # noqa: B904


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (FileNotFoundError(2, "No such file or directory", "a.png"), "name: a.png: No such file or directory"),
        (ValueError("two\n  lines"), "name: two lines"),
        (TooManyBadRowsError("2 of 3 rows"), "name: 2 of 3 rows"),
        (TooManySkippedError("4 samples"), "name: 4 samples"),
        (FloatingPointError("the loss is nan"), "name: the loss is nan"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "name: DataLoader worker (pid 7)"),
        (KeyboardInterrupt(), 130),
        (interrupted, 130),
    ],
)
def test_what_ends_a_command(raised: Any, code: str | int) -> None:
    with pytest.raises(SystemExit) as end, one_line_errors("name"):
        if callable(raised):
            raised()
        raise raised
    assert str(end.value.code).startswith(str(code))


def test_a_conversion_of_mostly_bad_rows_ends_in_one_line(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("a caption")
    Image.new("RGB", (24, 24)).save(tmp_path / "0.png")
    with pytest.raises(SystemExit, match=r"hyperbagel data folder: .*missing_image"):
        main(["data", "folder", str(tmp_path), str(tmp_path / "shards")])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["genrate", "x"], "hyperbagel: no command 'genrate'; did you mean generate?"),
        (["data", "foldr"], "hyperbagel data: no command 'foldr'; did you mean folder?"),
        (["data"], "hyperbagel data: which command? (one of llava-onevision"),
        (["report", "--uot", "x", "y"], "hyperbagel report: no option --uot; did you mean --out?"),
        (["generate"], "hyperbagel generate: prompt is missing"),
    ],
)
def test_wrong_usage_has_status_2(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    shown = capsys.readouterr().err
    assert end.value.code == 2 and shown.startswith(told) and shown.count("\n") == 1
