"""Evaluation by two real processes gives what one process finds."""

from pathlib import Path

import pytest
from lightning.pytorch.strategies import DDPStrategy

from hyperbagel.callbacks import GEdit, GenEval, Report, Understanding
from hyperbagel.callbacks.gedit import GEditData, GEditRun
from hyperbagel.callbacks.geneval import GenEvalPrompts, GenEvalSettings
from hyperbagel.datamodules.scenes import SceneSource
from hyperbagel.evaluation.gedit.judges.scene import SceneJudge
from hyperbagel.evaluation.geneval.scene_detector import SceneDetector
from hyperbagel.evaluation.reports import read_report
from hyperbagel.flow.sampler import Sampler
from hyperbagel.modules.pretraining import Pretraining
from hyperbagel.training.stage import Samplers, StageSettings
from tests.runs import nano_folder, scenes, trainer


@pytest.mark.slow
def test_two_processes_report_what_one_does(tmp_path: Path):
    folder = nano_folder(tmp_path / "nano")
    reports = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        callbacks = [
            GenEval(
                SceneDetector(),
                prompts=GenEvalPrompts(limit=6, size=(32, 32), shown=2),
                settings=GenEvalSettings(images_per_prompt=2, batch_size=4),
            ),
            GEdit(SceneJudge(), GEditData(per_kind=1, shown=1), settings=GEditRun(batch_size=4)),
            Understanding(SceneSource("test", 6, weights={"caption": 1.0, "yes_no": 1.0}), batch_size=2, max_tokens=4),
            Report(str(out)),
        ]
        strategy = DDPStrategy(start_method="fork", find_unused_parameters=True) if processes > 1 else "auto"
        runner = trainer(out, devices=processes, strategy=strategy, callbacks=callbacks)
        settings = StageSettings(samplers=Samplers(Sampler(1), Sampler(1)))
        module = Pretraining(model=folder, settings=settings)
        runner.test(module, scenes({"generation": 1.0}), verbose=False)
        reports.append(read_report(out)["results"])
    one, two = reports
    for benchmark, findings in one.items():
        for metric, value in findings["rows"]["model"].items():
            if not metric.startswith("time/"):
                assert two[benchmark]["rows"]["model"][metric] == pytest.approx(value, abs=1e-6), metric
    assert two["geneval"]["details"]["model"]["images"] == one["geneval"]["details"]["model"]["images"]
