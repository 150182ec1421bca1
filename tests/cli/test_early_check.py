"""Wrong names deep in settings are told from the source of the classes; right ones pass, however they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperbagel.cli.configs import shipped_configs
from hyperbagel.cli.early_check import SettingsCheck
from hyperbagel.cli.explanation import UsageError
from hyperbagel.cli.signatures import options
from hyperbagel.cli.training import check_names

CFG = "hyperbagel.modules.consistency.cfg_distillation.CFGDistillation"


@pytest.mark.parametrize("name", [name for name, path in shipped_configs().items() if not path.name.startswith("_")])
def test_all_shipped_configurations_pass(name: str) -> None:
    check_names(["--config", name])


def test_names_of_the_release_before_pass() -> None:
    for file in (Path(__file__).parent / "former").glob("*.yaml"):
        check_names(["--config", str(file)])
    check_names(["--config", "nano/generation", "--model.optimizer.init_args.lr", "1", "--trainer.max_steps=3"])


@pytest.mark.parametrize(
    ("path", "some", "absent"),
    [
        (CFG, {"model", "method", "student", "settings"}, {"self", "steps"}),
        ("hyperbagel.modules.CFGDistillation", {"model", "method"}, set()),
        ("hyperbagel.modules.adversarial_reward.adp.ADPMethod", {"pair_steps", "objective", "heads"}, {"nfe"}),
        ("hyperbagel.training.distillation.DistillationSettings", {"steps", "max_updates", "compute"}, {"step"}),
        ("lightning.pytorch.trainer.trainer.Trainer", {"max_steps", "callbacks"}, {"max_step"}),
        ("lightning.pytorch.callbacks.ModelCheckpoint", {"save_last"}, {"safe_last"}),
        ("torch.optim.AdamW", {"lr", "betas"}, {"learning_rate"}),
    ],
)
def test_what_a_class_takes_is_read_from_its_source(path: str, some: set[str], absent: set[str]) -> None:
    found = options(path)
    assert found is not None and some <= found.keys() and not absent & found.keys()


@pytest.mark.parametrize(
    "path",
    [
        "lightning.pytorch.loggers.TensorBoardLogger",  # any keyword
        "not.there.Class",
        "__main__.Class",
        "Class",
        "collections.abc.Sequence",
        "hyperbagel.scenes.documents.sample",  # a function
    ],
)
def test_what_cannot_be_told_is_left_to_the_parser(path: str) -> None:
    assert options(path) is None
    SettingsCheck().file({"model": {"class_path": path, "init_args": {"anything": {"deeper": 1}}}}, "a.yaml")


def test_a_broken_module_is_left_to_the_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_plug_in.py").write_text("class Mine:\n    def __init__(self, size: int) -> None\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert options("broken_plug_in.Mine") is None


def test_a_class_chosen_in_another_file_counts() -> None:
    check = SettingsCheck()
    check.file({"model": {"class_path": CFG}}, "base.yaml")
    check.file({"model": {"init_args": {"settings": {"compute": {"compile": True}}}}}, "good.yaml")
    wrong = {"model": {"init_args": {"settings": {"compute": {"compiled": True}}}}}
    with pytest.raises(UsageError) as error:
        check.file(wrong, "wrong.yaml")
    meant = "wrong.yaml: model.settings.compute.compiled is no setting; did you mean model.settings.compute.compile?"
    assert str(error.value) == meant
    check.file({"model": {"class_path": "hyperbagel.modules.dmdo.DMDO", "init_args": {"fake": {"clip": 1}}}}, "b.yaml")
    with pytest.raises(
        UsageError, match=r"no option --model\.init_args\.fake\.clp; did you mean --model\.init_args\.fake"
    ):
        check.option("--model.init_args.fake.clp", "1")


def test_lists_appended_lists_and_named_callbacks_are_looked_through() -> None:
    check = SettingsCheck()
    grid = {"class_path": "hyperbagel.callbacks.ImageGrid", "init_args": {"numbr": 3}}
    for settings, told in (
        ({"trainer": {"callbacks+": [grid]}}, r"trainer\.callbacks\[0\]\.numbr is no setting; did you mean"),
        ({"callbacks": {"ema": {"decy": 0.9}}}, r"callbacks\.ema\.decy is no setting"),
        ({"callbacks": {"geneval": {"prompts": {"limt": 6}}}}, r"callbacks\.geneval\.prompts\.limt is no setting"),
        ({"trainer": {"max_step": 3}}, r"trainer\.max_step is no setting; did you mean trainer\.max_steps\?"),
    ):
        with pytest.raises(UsageError, match=told):
            check.file(settings, "a.yaml")
    check.file({"callbacks": {"ema": None, "report": {}}, "trainer": {"callbacks+": []}}, "a.yaml")
