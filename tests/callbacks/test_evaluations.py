"""The evaluating callbacks on a nano stage: when they run, what they log, and that work is shared without overlap."""

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE
from hyperbagel.bagel.branch_checkpoint import BranchInfo, base_hash, context_hash, save_branch
from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.bagel.shipped import WEIGHTS
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.callbacks import Fidelity, GEdit, GenEval, ImageGrid, Provenance, Report, Understanding
from hyperbagel.callbacks.evaluation import Evaluation, Findings, Row, Run
from hyperbagel.callbacks.fidelity import _generated_pictures
from hyperbagel.callbacks.gedit import GEditData, GEditRun
from hyperbagel.callbacks.geneval import GenEvalPrompts, GenEvalSettings
from hyperbagel.cli import main
from hyperbagel.datamodules.scenes import SceneSource
from hyperbagel.evaluation.fidelity import frechet_distance
from hyperbagel.evaluation.gedit.aggregate import SampleResult, aggregate
from hyperbagel.evaluation.gedit.judges.scene import SceneJudge
from hyperbagel.evaluation.gedit.report import GEditReport
from hyperbagel.evaluation.geneval.report import ImageResult, RunInfo, build_report
from hyperbagel.evaluation.geneval.scene_detector import SceneDetector
from hyperbagel.evaluation.reports import read_report, write_report
from hyperbagel.flow.guidance import Guidance
from hyperbagel.flow.sampler import Sampler
from hyperbagel.modules.pretraining import Pretraining
from hyperbagel.scenes.vocabulary import tokenizer_folder
from hyperbagel.training.networks import Training
from hyperbagel.training.stage import Compute, Samplers, StageSettings
from tests.runs import nano_folder, scenes, trainer

GUIDED = Guidance(interval=(0.0, 1.0))
SAMPLERS = Samplers(Sampler(2, 3.0, GUIDED), Sampler(1, 3.0, Guidance(image_scale=2.0, interval=(0.0, 1.0))))
PROMPTS = GenEvalPrompts(limit=8, size=(32, 32), shown=4)
SETTINGS = GenEvalSettings(images_per_prompt=2, batch_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return nano_folder(tmp_path_factory.mktemp("nano"))


@pytest.fixture
def stage(folder: str) -> Pretraining:
    return Pretraining(model=folder, settings=StageSettings(samplers=SAMPLERS))


def geneval(**options: object) -> GenEval:
    return GenEval(SceneDetector(), prompts=PROMPTS, settings=SETTINGS, **options)


class Shares:
    """Two processes, one after the other: their gathered results are those of both."""

    def __init__(self, stage: Pretraining, world: int) -> None:
        tokenizer = Tokenizer.from_pretrained(tokenizer_folder())
        self.runs = [Run(stage, tokenizer, rank, world) for rank in range(world)]


def test_test_logs_scores_costs_and_pictures_and_writes_a_report(stage: Pretraining, tmp_path: Path, capsys):
    callbacks = [
        geneval(rows={"teacher": None, "naive-1": Row(1, guidance=None)}),
        GEdit(SceneJudge(), GEditData(per_kind=1, shown=2), settings=GEditRun(batch_size=8)),
        Understanding(SceneSource("test", 6, weights={"caption": 1.0, "yes_no": 1.0}), max_tokens=4),
        ImageGrid(number=2),
        Report(),
        Provenance(),
    ]
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    runner = trainer(tmp_path, logger=logger, callbacks=callbacks)
    (metrics,) = runner.test(stage, scenes({"generation": 1.0, "caption": 1.0}), verbose=False)
    assert 0 <= metrics["geneval/overall"] <= 1
    assert metrics["naive-1/nfe"] == 1
    assert {"understanding/caption", "gedit/sc", "gedit/cn/o", "time/seconds_per_image"} <= metrics.keys()
    report = read_report(tmp_path / "run")
    assert set(report["results"]) == {"geneval", "gedit", "understanding", "loss"}
    assert report["results"]["loss"]["rows"]["model"].keys() == {"image", "text"}
    assert len(report["results"]["gedit"]["captions"]) == 2 and len(report["results"]["geneval"]["captions"]) == 4
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("data:image/png") == 2 * 4 + 2 * 2  # single pictures of two rows; edits beside their sources
    rows = report["results"]["geneval"]["rows"]
    assert rows["teacher"]["nfe"] == 4
    assert list(rows) == ["teacher", "naive-1"]
    assert len(report["results"]["geneval"]["details"]["teacher"]["images"]) == 16
    assert report["results"]["gedit"]["rows"]["model"]["nfe"] == 3
    assert "| teacher" in (tmp_path / "run" / "report.md").read_text()
    with Image.open(tmp_path / "run" / "geneval.png") as sheet, Image.open(tmp_path / "run" / "gedit.png") as edits:
        # A titled row of four pictures of each setting; two sources over their edits.
        assert sheet.size == (4 * 34 + 2, 2 * (34 + 2 + 16) + 8)
        assert edits.size == (2 * 66 + 2, 2 * 66 + 2 + 16)
    assert "### geneval" in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload()
    assert {"geneval/teacher", "geneval/naive-1", "gedit/model", "images/generated"} <= set(events.Tags()["images"])
    assert "geneval/overall" in events.Tags()["scalars"]
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["stage"].endswith("Pretraining")
    assert provenance["versions"]["torch"] in torch.__version__


def test_everything_is_measured_in_bfloat16_too(folder: str, tmp_path: Path):
    callbacks = [
        geneval(),
        GEdit(SceneJudge(), GEditData(per_kind=1, shown=2), settings=GEditRun(batch_size=8)),
        Understanding(SceneSource("test", 4, weights={"caption": 1.0, "yes_no": 1.0}), max_tokens=4),
        ImageGrid(number=2),
    ]
    settings = StageSettings(samplers=SAMPLERS, compute=Compute(dtype="bfloat16"))
    stage = Pretraining(model=folder, settings=settings)
    runner = trainer(tmp_path, callbacks=callbacks)
    (metrics,) = runner.test(stage, scenes({"generation": 1.0, "caption": 1.0}), verbose=False)
    assert {"geneval/overall", "gedit/sc", "understanding/caption", "nfe"} <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())


def test_results_do_not_depend_on_the_number_of_processes(stage: Pretraining, monkeypatch):
    """Every picture is drawn and judged exactly once, and comes out the same."""
    stage.eval()
    whole = geneval().evaluate(Shares(stage, 1).runs[0])
    collected: list[list[object]] = []
    monkeypatch.setattr(Run, "gather", lambda self, items: collected.append(list(items)) or list(items) * 1)
    parts: list[dict] = []
    for run in Shares(stage, 3).runs:
        parts += geneval().evaluate(run).details["model"]["images"]
    key = ("prompt_index", "image_index")
    ordered = sorted(parts, key=lambda image: [image[name] for name in key])
    assert ordered == whole.details["model"]["images"]


def test_in_fit_an_evaluation_runs_every_n_updates_on_averaged_weights(folder: str, tmp_path: Path):
    class Probe(Evaluation):
        steps: list[int] = []  # noqa: RUF012

        def evaluate(self, run: Run) -> Findings:
            assert not run.stage.training
            self.steps.append(int(run.stage.student_step))
            return Findings({"model": {"probe": float(len(self.steps))}})

    stage = Pretraining(model=folder, student=Training(accumulate=2))
    probe, logger = Probe(every_n_updates=2), CSVLogger(tmp_path, name="", version="run")
    runner = trainer(tmp_path, max_steps=5, logger=logger, callbacks=[probe])
    runner.fit(stage, scenes({"generation": 1.0}))
    assert probe.steps == [2, 4]
    assert stage.training
    rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()]
    column, step = rows[0].index("probe"), rows[0].index("step")
    assert [(row[step], row[column]) for row in rows[1:] if row[column]] == [("2", "1.0"), ("4", "2.0")]


def test_no_evaluation_is_missed_where_batches_have_several_updates(stage: Pretraining, monkeypatch):
    """And none comes twice when a run is resumed behind it."""
    probe, ran = ImageGrid(every_n_updates=4), list[int]()
    monkeypatch.setattr(probe, "_run", lambda trainer, module: ran.append(int(module.student_step)))
    runner = SimpleNamespace(loggers=[], global_step=0)
    stage.student_step = 5
    probe.on_train_start(runner, stage)
    for step in (5, 7, 9, 11, 12, 12, 13, 21):
        stage.student_step = step
        probe.on_train_batch_end(runner, stage, None, None, 0)
    assert ran == [9, 12, 21]


def test_fidelity_compares_features_with_real_and_saved_ones(stage: Pretraining, tmp_path: Path):
    stage.eval()
    (run,) = Shares(stage, 1).runs
    real = SceneSource("test", 100, weights={"generation": 1.0})
    findings = geneval(fidelity=Fidelity(real, save=str(tmp_path))).evaluate(run)
    metrics = findings.rows["model"]
    assert metrics["fidelity/real"] > 0
    assert metrics["diversity"] > 0
    assert load_file(tmp_path / "model.safetensors")["features"].shape == (16, 32)
    again = geneval(fidelity=Fidelity(teacher=str(tmp_path / "model.safetensors"))).evaluate(run)
    assert again.rows["model"]["fidelity/teacher"] == pytest.approx(0, abs=1e-3)
    # The same pictures, so their first half is as far from the teacher's second half as from their own.
    assert again.rows["model"]["fidelity/other_run"] == pytest.approx(metrics["fidelity/other_run"], rel=1e-4)
    saved = load_file(tmp_path / "model.safetensors")
    early = saved["keys"][:, 1] < 1
    between = frechet_distance(saved["features"][~early], saved["features"][early])
    assert metrics["fidelity/other_run"] == pytest.approx(between, rel=1e-4) and between > 0
    with pytest.raises(FileNotFoundError, match="no features of the teacher"):
        Fidelity(teacher=str(tmp_path / "nothing")).check()
    with pytest.raises(CheckpointError, match="no features of a teacher"):
        Fidelity(teacher=str(WEIGHTS / "scenes" / "branches" / "nfe1.safetensors")).check()


def test_bf16_mixed_precision_is_used_in_evaluation(stage: Pretraining, tmp_path: Path):
    runner = trainer(tmp_path, precision="bf16-mixed", callbacks=[geneval(), ImageGrid(number=1)])
    (metrics,) = runner.test(stage, scenes({"generation": 1.0}), verbose=False)
    assert "geneval/overall" in metrics


def test_choices_are_made_on_prompts_and_edits_apart_from_the_test():
    """The settings choose the split; by default it is the one that is reported."""
    prompts = {split: GenEvalPrompts(split=split, limit=60).read() for split in ("val", "test")}
    edits = {split: GEditData(split=split, per_kind=2).read()[0] for split in ("val", "test")}
    assert "scenes val" in prompts["val"].name and prompts["val"].sha256 != prompts["test"].sha256
    assert not {edit.key for edit in edits["val"]} & {edit.key for edit in edits["test"]}
    assert GenEvalPrompts(limit=60).read().sha256 == prompts["test"].sha256
    assert [edit.key for edit in GEditData(per_kind=2).read()[0]] == [edit.key for edit in edits["test"]]


def test_a_stage_that_cannot_be_evaluated_is_refused():
    class Other(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.branch = torch.nn.Linear(1, 1), None

    with pytest.raises(ValueError, match="GenEval evaluates stages that draw, which Other does not"):
        next(geneval().requirements(Other(), "test"))


def test_tables_put_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """In the terminal, and as a report that can be read again; rows have their own names beside that of the run."""

    def report(name: str, **rows: float) -> str:
        found = {"rows": {row: {"geneval/overall": value, "nfe": 6.0} for row, value in rows.items()}, "details": {}}
        write_report({"results": {"geneval": found}}, tmp_path / name)
        return str(tmp_path / name)

    runs = [report("one", model=0.25), report("two", model=0.5, naive=0.125)]
    main(["report", *runs, "--out", str(tmp_path / "all")])
    shown = capsys.readouterr().out
    assert (tmp_path / "all" / "report.md").read_text() == shown
    assert list(read_report(tmp_path / "all")["results"]["geneval"]["rows"]) == [*runs, f"{runs[1]}: naive"]
    assert f"| {runs[0]}        |   0.250 |   6 |" in shown
    assert f"| {runs[1]}: naive |   0.125 |   6 |" in shown


def test_tables_compare_geneval_on_the_same_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Two prompts with two pictures each: of four pairs one is lost. A run with other noise is no pair."""

    def report(name: str, seed: int, *wrong: tuple[int, int]) -> str:
        judged = [
            ImageResult(p, i, ("single_object", "counting")[p], f"prompt {p}", ("too few",) * ((p, i) in wrong))
            for p in range(2)
            for i in range(2)
        ]
        details = {"model": build_report(judged, RunInfo("prompts", "sha", 2, 2, seed)).to_dict()}
        write_report({"results": {"geneval": {"rows": {"model": {"nfe": 6.0}}, "details": details}}}, tmp_path / name)
        return str(tmp_path / name)

    main(["report", report("teacher", 0, (0, 0)), report("student", 0, (0, 0), (1, 1)), report("other", 1)])
    table = capsys.readouterr().out.partition("### geneval, difference")[2].splitlines()
    assert [cell.strip() for cell in table[2].split("|")[2:-1]] == ["pairs", "single_object", "counting", "overall"]
    cells = [cell.strip() for cell in table[4].split("|")[1:-1]]
    assert cells[0].endswith("student") and cells[1] == "4"
    assert [cell.split()[0] for cell in cells[2:]] == ["+0.000", "-0.500", "-0.250"]
    assert len(table) == 5


def test_tables_compare_gedit_on_the_same_edits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Of two edits in each language one loses six points in English; one without a score is no pair."""

    def report(name: str, seed: int, *scores: float | None) -> str:
        rows = [
            SampleResult(f"edit {i}", "remove", language, True, o, o, o)
            for language in ("en", "cn")
            for i, o in enumerate(scores if language == "en" else (4.0, 5.0))
        ]
        found = GEditReport("judge", "1", "2026-01-01", "", seed, aggregate(rows, ["remove"]), tuple(rows))
        results = {"gedit": {"rows": {"model": {"nfe": 6.0}}, "details": {"model": found.to_dict()}}}
        write_report({"results": results}, tmp_path / name)
        return str(tmp_path / name)

    runs = report("teacher", 0, 8.0, 8.0), report("student", 0, 2.0, 8.0), report("half", 0, None, 9.0)
    main(["report", *runs, report("other", 1, 8.0, 8.0)])
    table = capsys.readouterr().out.partition("### gedit, difference")[2].splitlines()
    lines = [[cell.strip().split(" ")[0] for cell in line.split("|")[2:-1]] for line in (table[2], *table[4:])]
    assert lines == [["pairs", "en/o", "cn/o"], ["4", "-3.000", "+0.000"], ["3", "+1.000", "+0.000"]]


def test_a_report_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no report"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text('{"results": 3}')
    with pytest.raises(ValueError, match="not a report"):
        read_report(tmp_path)


def test_callbacks_are_callbacks():
    assert all(issubclass(kind, Callback) for kind in (GenEval, GEdit, Understanding, ImageGrid, Report, Provenance))


def test_evaluations_see_the_picture_that_a_person_sees():
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (16, 8), (0, 0, 0, 0)).save(buffer, "PNG", exif=exif)
    sample = SceneSource("test", 1, weights={"caption": 1.0})[0]
    (name,) = [name for name in sample if name.endswith(".png")]
    (question, *_) = Understanding([sample | {name: buffer.getvalue()}]).questions
    document = {"segments": [{"type": "text", "text": "red"}, {"type": "image", "file": "0.png", "loss": True}]}
    real = _generated_pictures([{"__key__": "a", "json": document, "0.png": buffer.getvalue()}] * 2, 2)
    for picture in (question.picture, *real):
        assert (picture.size, picture.getpixel((0, 0))) == ((8, 16), (255, 255, 255))


def test_rows_tell_what_their_branch_was_not_made_for(
    stage: Pretraining, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    branch = stage.model.generation.copy()
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    info = BranchInfo("ADP", 1, base_hash(stage.model), image_scale=(2.0, 2.0), context=context_hash(stage.model))
    save_branch(branch, info, tmp_path / "one.safetensors")
    first, second = Shares(stage, 2).runs
    guidance = Guidance(image_scale=3.0)
    first.painter(Sampler(), Row(1, guidance=GUIDED, branch=str(tmp_path / "one.safetensors")))
    second.painter(Sampler(), Row(6, guidance=guidance, branch=str(tmp_path / "one.safetensors")))
    assert not caplog.records  # one process tells it
    first.painter(Sampler(), Row(6, guidance=guidance, branch=str(tmp_path / "one.safetensors")))
    assert "made for 1 step, which 6 is not" in caplog.text
    assert "made for image scales 2 to 2, which 3 is not" in caplog.text


def test_a_row_is_the_stages_sampler_but_for_what_it_says():
    own = Sampler(50, 2.0, GUIDED)
    assert Row().sampler(own) == own
    assert Row(6).sampler(own) == Sampler(6, 2.0, GUIDED)
    assert Row(shift=1.0, guidance=None).sampler(own) == Sampler(50, 1.0, None)
    assert Row(guidance=Guidance(2.0)).sampler(own) == Sampler(50, 2.0, Guidance(2.0))
    with pytest.raises(ValueError, match="steps >= 1"):
        Row(0)
