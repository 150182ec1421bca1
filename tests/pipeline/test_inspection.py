"""`hyperbagel inspect` knows what a file or folder is, and whether it fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.shipped import WEIGHTS
from hyperbagel.cli import main
from hyperbagel.draft.checkpoint import save_draft
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.export import export_eagle3
from hyperbagel.draft.head import DraftHead
from hyperbagel.draft.phrases import count_phrases, save_phrases
from hyperbagel.pipeline.inspection import inspect

SCENES = WEIGHTS / "scenes"


def test_a_model_tells_its_sizes_and_types() -> None:
    facts = inspect("scenes", SCENES)
    assert facts["what"] == "model" and facts["sizes"].startswith("12 layers of 160")
    assert "bfloat16 in ema-00001-of-00002.safetensors, ema-00002" in facts["weights"]
    assert facts["fits"].endswith("the same weights") and "beside the weights" not in facts


def test_a_branch_tells_what_it_was_made_for() -> None:
    facts = inspect("scenes/nfe6", SCENES)
    assert facts["what"] == "generation branch" and facts["inputs"] == "time, text scale, image scale"
    assert (facts["last stage"], facts["steps"], facts["text scale"]) == ("RewardTuning", "6", "3 to 5")
    assert facts["made over"].startswith("scenes, understanding ") and facts["fits"] == str(SCENES)


def test_phrases_are_told(tmp_path: Path) -> None:
    save_phrases(count_phrases([[1, 2, 3, 4], [1, 2, 700]]), tmp_path / "phrases.safetensors")
    facts = inspect(tmp_path / "phrases.safetensors")
    assert facts["what"].startswith("phrases") and facts["sequences"] == "3, 2, 1 of 1, 2, ... tokens"
    with pytest.raises(CheckpointError, match="tokens beyond"):
        inspect(tmp_path / "phrases.safetensors", SCENES)


def test_draft_heads_are_told_before_and_after_export(nano_folder: str, tmp_path: Path) -> None:
    assert inspect("scenes/draft", SCENES)["what"].startswith("draft head of kind hyper")
    model = Bagel.from_pretrained(nano_folder)
    parallel = tmp_path / "parallel.safetensors"
    save_draft(DraftHead.from_target(DraftConfig(kind="parallel", layers=1, ahead=9), model), model, parallel)
    assert inspect(parallel)["what"] == "draft head of kind parallel, 1 layers, 3 features, 9 tokens in a pass"
    export_eagle3(DraftHead.from_target(DraftConfig(kind="eagle3", layers=1), model), model, tmp_path)
    facts = inspect(tmp_path)
    assert facts["what"] == "draft head for serving engines (LlamaForCausalLMEagle3)"


def test_the_command_tells_it_line_by_line(nano_folder: str, nano_branch: str, capsys: pytest.CaptureFixture) -> None:
    main(["inspect", nano_branch, "--model", nano_folder])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(maxsplit=1) == ["what", "generation branch"] and lines[-1].startswith("fits")


@pytest.mark.parametrize(
    ("path", "model", "message"),
    [
        ("nowhere", None, "nowhere: neither a model's folder"),
        ("EMPTY", None, "neither a model's folder"),
        ("PLAIN", None, "nothing tells what they are"),
        ("TORN", None, "not a whole safetensors file"),
        ("scenes/nfe6", "NANO", "made for another base model"),
        ("scenes/draft", "NANO", "made for another target"),
        ("NANO", "scenes", "another understanding stack"),
        ("HALF", None, "ae.safetensors: no such file"),
    ],
)
def test_each_bad_place_gets_one_line(
    nano_folder: str, tmp_path: Path, path: str, model: str | None, message: str
) -> None:
    places = {"NANO": nano_folder} | {name: str(tmp_path / name) for name in ("EMPTY", "HALF")}
    (tmp_path / "EMPTY").mkdir()
    Bagel.from_pretrained(nano_folder).save_pretrained(tmp_path / "HALF")
    (tmp_path / "HALF" / "ae.safetensors").unlink()
    places |= {name: str(tmp_path / f"{name}.safetensors") for name in ("PLAIN", "TORN")}
    save_file({"a": torch.zeros(1)}, places["PLAIN"])
    Path(places["TORN"]).write_bytes(b"torn")
    chosen = [] if model is None else ["--model", places.get(model, model)]
    with pytest.raises(SystemExit, match=message):
        main(["inspect", places.get(path, path), *chosen])
