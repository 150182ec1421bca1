from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hyperbagel.bagel.branch_checkpoint import BranchInfo, base_hash, save_branch
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.shipped import WEIGHTS
from hyperbagel.cli import main
from hyperbagel.cli.loading import load_branch_for
from hyperbagel.cli.main import with_underscores


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "nano"
    main(["init", str(folder), "--preset", "nano"])
    return folder


def test_options_may_be_written_with_dashes_but_values_keep_theirs() -> None:
    assert with_underscores(["a-b", "--text-scale", "-1", "--out=x-y.png"]) == [
        "a-b", "--text_scale", "-1", "--out=x-y.png"
    ]  # fmt: skip


def test_generate_then_edit_then_chat(nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = (str(tmp_path / name) for name in ("a.png", "b.png", "c.png"))
    common = ["--model", str(nano), "--steps", "5"]
    main(["generate", "a photo of a red circle", *common, "--text-scale", "3", "--seed", "4", "--out", first])
    assert "10 NFE" in capsys.readouterr().out
    main(["generate", "a photo of a red circle", *common, "--text-scale", "3", "--seed", "4", "--out", second])
    assert Path(first).read_bytes() == Path(second).read_bytes()
    main(["edit", first, "Remove it.", *common, "--out", third])
    assert Image.open(third).size == (64, 64)
    main(["chat", first, "What is it?", "--model", str(nano), "--max-tokens", "4"])
    assert "tokens/s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "a", "--model", "nowhere"], "nowhere: no such folder"),
        (["chat", "missing.png", "what?"], "missing.png"),
        (["frobnicate"], "no command 'frobnicate'"),
        (["data"], "usage: hyperbagel data"),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_ends_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_average_of_a_shipped_branch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "mean.safetensors"
    main(["average", str(out), "{scenes/nfe1: 2}", "--dtype", "bfloat16"])
    assert "mean of 1 branches, NFE 1, bfloat16" in capsys.readouterr().out
    shipped, mean = load_file(WEIGHTS / "scenes/nfe1.safetensors"), load_file(out)
    assert mean.keys() == shipped.keys() and all(torch.equal(mean[key], shipped[key]) for key in mean)
    with pytest.raises(SystemExit, match=r"ae\.safetensors: not a generation branch"):
        main(["average", str(out), f"{{{WEIGHTS / 'scenes/ae.safetensors'}: 1}}"])


def test_data_scenes_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "scenes", str(tmp_path / "shards"), "--size", "8"])
    main(["data", "inspect", str(tmp_path / "shards"), "--out", str(tmp_path / "sheet.png")])
    assert "samples          8" in capsys.readouterr().out


def test_a_scale_that_a_branch_was_not_made_for_is_told(
    studio_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Bagel.from_pretrained(studio_folder)
    branch = str(tmp_path / "one.safetensors")
    save_branch(model.generation, BranchInfo("ADP", 1, base_hash(model), text_scale=(4.0, 4.0)), branch)
    load_branch_for(model, branch, 4.0)
    assert not caplog.records
    load_branch_for(model, branch, 6.0)
    assert "text scales 4 to 4, which 6 is not" in caplog.text
