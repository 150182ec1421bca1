"""What people type wrong most often, and the one line that each gets.

Others of the kind are in `test_errors` (configurations), `test_refused_settings` (what cannot be written or read),
`test_many` (words, texts) and `test_commands` (devices).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from hyperbagel.bagel.branch_checkpoint import BranchInfo, base_hash, context_hash, save_branch
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.shipped import WEIGHTS
from hyperbagel.cli import main

SETTINGS = "model.init_args.settings"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, nano_folder: str) -> Path:
    """A folder with what people have lying about: a nano model, one with another generation side, and pictures."""
    folder = tmp_path_factory.mktemp("mistakes")
    shutil.copytree(nano_folder, folder / "nano")
    model = Bagel.from_pretrained(nano_folder)
    info = BranchInfo("DMDO", 6, base_hash(model), context=context_hash(model))
    model.generation.vae2llm.weight.data.add_(1)
    model.save_pretrained(folder / "other")
    shutil.copy(folder / "nano" / "tokenizer.json", folder / "other")
    shutil.copy(folder / "nano" / "tokenizer_config.json", folder / "other")
    save_branch(model.generation, info, folder / "branch.safetensors")
    Image.new("RGB", (32, 32)).save(folder / "picture.png")
    (folder / "text.png").write_text("no picture")
    (folder / "stage.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"settings": {"max_update": 10}}}}))
    (folder / "callback.yaml").write_text(yaml.safe_dump({"callbacks": {"geneval": {"every_n_update": 5}}}))
    (folder / "data.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"train": [{"name": "a", "shard": "x"}]}}}))
    return folder


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line in which a command ends."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    line = str(end.value.code) if isinstance(end.value.code, str) else capsys.readouterr().err.splitlines()[-1]
    assert "\n" not in line and "object at 0x" not in line and "Namespace" not in line
    return line


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("generate x --branch nope.safetensors", "nope.safetensors: no such"),
        ("generate x --branch scenes/draft", "not a generation branch"),
        ("generate x --branch picture.png", "picture.png: "),
        ("generate x --model scenes --branch branch.safetensors", "branch.safetensors: "),
        ("generate x --model other --branch branch.safetensors", "made for another generation branch or autoencoder"),
        ("generate x --setps 6", "no option --setps; did you mean --steps?"),
        ("generate x --model nano --width 65", "65"),
        ("generate x --model nano --width 4096", "at most"),
        ("edit missing.png x", "missing.png: "),
        ("edit text.png x", "text.png: "),
        ("chat hi", "hi: no such picture; name one, or - for none"),
        ("report nowhere", "nowhere: no report; `hyperbagel test` with the Report callback writes one"),
        ("data inspect nowhere", "nowhere"),
        (
            "fit --config nano/cfg_distillation --config stage.yaml",
            "stage.yaml: model.settings.max_update is no setting; ",
        ),
        ("fit --config nano/cfg_distillation --config callback.yaml", "callbacks.geneval.every_n_update is no setting"),
        ("fit --config nano/cfg_distillation --config data.yaml", "data.train[0].shard is no setting; did you"),
        (f"fit --config nano/cfg_distillation --{SETTINGS}.max_update 10", f"did you mean --{SETTINGS}.max_updates?"),
        ("fit --config nano/cfg_distillation --data.init_args.train [{name:a,shards:nowhere}]", "nowhere"),
        (
            "fit --config nano/cfg_distillation --model.init_args.init_from nope.safetensors",
            "nope.safetensors: no such",
        ),
        ("test --config nano/cfg_distillation", "CFGDistillation has no `test_step`"),
    ],
)
def test_a_mistake_gets_one_line(
    arguments: str, answer: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    line = told([word.replace(":", ": ") if word.startswith("[") else word for word in arguments.split()], capsys)
    assert line.startswith(f"hyperbagel {arguments.split()[0]}") and answer in line, line


def test_a_branch_takes_the_steps_that_it_was_made_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """And a warning tells of others."""
    assert (WEIGHTS / "scenes").is_dir()
    out = ["--out", str(tmp_path / "a.png"), "--width", "16", "--height", "16"]
    main(["generate", "a photo of a red circle", "--branch", "scenes/nfe6", *out])
    assert "6 NFE" in capsys.readouterr().out and not caplog.records
    main(["generate", "a photo of a red circle", "--branch", "scenes/nfe1", "--steps", "6", *out])
    assert any("scenes/nfe1: " in record.getMessage() for record in caplog.records)
