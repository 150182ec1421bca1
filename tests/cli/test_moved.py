"""Names of the release before: its YAML files and command lines mean the same by the names of now."""

from __future__ import annotations

import dataclasses
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from lightning import LightningModule

from hyperbagel import modules
from hyperbagel.cli.configs import find_config
from hyperbagel.cli.moved import CLASSES, OF_TRAINER, SETTINGS, FormerNames
from hyperbagel.cli.trainer import read_config

FORMER = Path(__file__).parent / "former"
STAGES = [getattr(modules, name) for name in modules.__all__]
AUTOENCODER = "hyperbagel.modules.autoencoder.AutoencoderTraining"


def resolve(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("former", CLASSES)
def test_a_former_class_is_one_of_now(former: str) -> None:
    assert inspect.isclass(resolve(CLASSES[former]))
    with pytest.raises((ImportError, AttributeError)):
        resolve(former)


def places(stage: type[LightningModule]) -> set[str]:
    """The arguments of a stage, and the settings in those that are dataclasses: `method`, `method.train`."""
    hints = get_type_hints(stage.__init__)
    inside = {
        f"{key}.{field.name}"
        for key, t in hints.items()
        if dataclasses.is_dataclass(t)
        for field in dataclasses.fields(t)
    }
    return {*hints, *inside}


@pytest.mark.parametrize("place", sorted({*SETTINGS.values(), *OF_TRAINER.values()}))
def test_a_former_setting_is_one_of_now(place: str) -> None:
    assert any(place in places(stage) for stage in STAGES)


@pytest.mark.parametrize("former", sorted({*SETTINGS} - {"adp.echoes"}))
def test_no_stage_has_an_argument_of_a_former_name(former: str) -> None:
    assert not any(former in places(stage) for stage in STAGES)


@pytest.mark.parametrize(
    ("name", "now"),
    [("draft", FORMER / "draft_now.yaml"), ("tscd", "nano/tscd"), ("generation", "bagel7b/generation")],
)
def test_a_former_file_means_what_the_one_of_now_does(name: str, now: str | Path) -> None:
    with pytest.warns(FutureWarning, match=rf"^{name}\.yaml: .* is now ") as warned:
        former = read_config([FORMER / f"{name}.yaml"])
    assert len([w for w in warned if w.category is FutureWarning]) == 1
    current = read_config([find_config(now)])
    assert former.model == current.model and former.data == current.data
    assert former.trainer.max_steps == current.trainer.max_steps


def test_a_file_of_now_is_left_as_it_is() -> None:
    """Also a saved one, which has the trainer's defaults in it."""
    saved = {
        "model": {"class_path": "hyperbagel.modules.Pretraining", "init_args": {"student": {"clip": 1.0}}},
        "trainer": {"gradient_clip_val": None, "accumulate_grad_batches": 1},
    }
    assert FormerNames().in_settings(saved) == (saved, {})


def test_what_a_former_file_did_not_say_was_left_to_former_defaults() -> None:
    """No clipping, and a schedule that leaves the rate as it is."""
    saved = {
        "model": {"class_path": AUTOENCODER, "init_args": {"kl_weight": 0.1, "compute": {"dtype": "float32"}}},
        "trainer": {"gradient_clip_val": None, "accumulate_grad_batches": 1, "max_steps": 2},
    }
    settings, found = FormerNames().in_settings(saved)
    assert settings["model"]["init_args"] == {
        "method": {"kl_weight": 0.1},
        "settings": {"compute": {"dtype": "float32"}},
        "student": {
            "clip": 0,
            "accumulate": 1,
            "scheduler": {"class_path": "hyperbagel.training.schedules.WarmupStableDecay"},
        },
    }
    assert settings["trainer"] == {"max_steps": 2} and "model.init_args.kl_weight" in found


def test_a_file_that_is_laid_over_another_changes_only_what_it_names() -> None:
    former = {"trainer": {"gradient_clip_val": 0.5, "max_steps": 3}}
    settings, _ = FormerNames(AUTOENCODER).in_settings(former)
    assert settings == {"trainer": {"max_steps": 3}, "model": {"init_args": {"student": {"clip": 0.5}}}}
    assert FormerNames("hyperbagel.modules.consistency.tscd.TSCD").in_settings(former) == (former, {})
    own = {"model": {"class_path": "mine.Stage", "init_args": {"tuning": 1}}}
    assert FormerNames("mine.Stage").in_settings(own) == (own, {})


def test_options_of_the_command_line() -> None:
    given = ["fit", "--config", "x", "--model.init_args.adp.echoes=3", "--model.init_args.adp.pair_weight", "1"]
    given += ["--trainer.gradient_clip_val", "1", "--model", "hyperbagel.modules.pretrain.Pretraining"]
    expected = ["fit", "--config", "x", "--model.init_args.method.updates_per_batch=3"]
    expected += ["--model.init_args.method.pair_weight", "1", "--model.init_args.student.clip", "1"]
    expected += ["--model", "hyperbagel.modules.pretraining.Pretraining"]
    found, former = FormerNames().in_arguments(given)
    assert found == expected and len(former) == 4
    assert FormerNames().in_arguments(expected) == (expected, {})


def test_rows_that_said_nothing_were_of_fifty_steps_without_guidance() -> None:
    rows = {"teacher": None, "naive": {"steps": 6}, "guided": {"guidance": {"text_scale": 2}}}
    evaluation = {
        "class_path": "hyperbagel.callbacks.GenEval",
        "init_args": {"samplers": rows, "prompts": {"limit": 6}},
    }
    settings, found = FormerNames().in_settings({"trainer": {"callbacks": [evaluation]}})
    (moved,) = settings["trainer"]["callbacks"]
    assert list(found) == ["samplers of hyperbagel.callbacks.GenEval"]
    assert moved["init_args"] == {
        "prompts": {"limit": 6},
        "rows": {
            "teacher": None,
            "naive": {"steps": 6, "shift": 3.0, "guidance": None},
            "guided": {"steps": 50, "shift": 3.0, "guidance": {"text_scale": 2}},
        },
    }
    assert FormerNames().in_settings(settings) == (settings, {})
