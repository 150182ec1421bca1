from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE
from hyperbagel.bagel.branch_checkpoint import BranchInfo, base_hash, context_hash, save_branch
from hyperbagel.bagel.build.initial import restart_generation
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.shipped import WEIGHTS
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.cli import main
from hyperbagel.cli.commands import with_short_device, with_short_names, with_underscores
from hyperbagel.cli.options import Generate
from hyperbagel.pipeline.device import Device


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
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_ends_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_help_and_reports_load_no_more_than_they_need(tmp_path: Path) -> None:
    rows = {"rows": {"model": {"geneval/overall": 0.5}}, "details": {}}
    (tmp_path / "report.json").write_text(json.dumps({"results": {"geneval": rows}}))
    script = f"""
import sys
from hyperbagel.cli import main
main(["--help"])
assert "torch" not in sys.modules
main(["report", {str(tmp_path)!r}])
assert "lightning" not in sys.modules
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "  generate    pictures from prompts\n" in shown
    assert "| model |   0.500 |" in shown


def test_average_of_a_shipped_branch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "mean.safetensors"
    main(["average", str(out), "{scenes/nfe1: 2}", "--dtype", "bfloat16"])
    assert "mean of 1 branches, NFE 1, bfloat16" in capsys.readouterr().out
    shipped, mean = load_file(WEIGHTS / "scenes/branches/nfe1.safetensors"), load_file(out)
    assert mean.keys() == shipped.keys() and all(torch.equal(mean[key], shipped[key]) for key in mean)
    with pytest.raises(SystemExit, match=r"ae\.safetensors: not a generation branch"):
        main(["average", str(out), f"{{{WEIGHTS / 'scenes/ae.safetensors'}: 1}}"])


def test_data_scenes_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "scenes", str(tmp_path / "shards"), "--size", "8"])
    main(["data", "inspect", str(tmp_path / "shards"), "--out", str(tmp_path / "sheet.png")])
    assert "samples          8" in capsys.readouterr().out


@pytest.fixture(scope="module")
def branches(studio_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of 2 steps at text scale 4 and image scale 2, and one of any number of steps and scales."""
    model = Bagel.from_pretrained(studio_folder)
    branch = model.generation.copy()
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    infos = {
        "two": BranchInfo("ADP", 2, base_hash(model), text_scale=(4.0, 4.0), image_scale=(2.0, 2.0)),
        "any": BranchInfo("CFGDistillation", 0, base_hash(model)),
    }
    infos = {name: replace(info, context=context_hash(model)) for name, info in infos.items()}
    folder = tmp_path_factory.mktemp("branches")
    for name, info in infos.items():
        save_branch(branch, info, folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in infos}


@pytest.mark.parametrize(
    ("branch", "options", "nfe", "warnings"),
    [
        ("two", [], 2, []),
        ("two", ["--steps", "3"], 3, ["made for 2 steps, which 3 is not"]),
        ("two", ["--text-scale", "6"], 2, ["made for text scales 4 to 4, which 6 is not"]),
        ("any", [], 50, []),
        ("any", ["--steps", "3"], 3, []),
        (None, [], 100, []),
    ],
)
def test_a_branch_takes_the_steps_it_was_made_for(
    studio_folder: Path,
    branches: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    branch: str | None,
    options: list[str],
    nfe: int,
    warnings: list[str],
) -> None:
    common = ["--model", str(studio_folder), *([] if branch is None else ["--branch", branches[branch]]), *options]
    size = ["--width", "16", "--height", "16", "--out", str(tmp_path / "a.png")]
    main(["generate", "a red circle", *common, *size])
    assert f" {nfe} NFE" in capsys.readouterr().out
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == warnings


def test_edits_too_and_warn_of_image_scales(
    studio_folder: Path,
    branches: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, out = tmp_path / "source.png", tmp_path / "a.png"
    Image.new("RGB", (16, 16), "red").save(source)
    edit = ["edit", str(source), "Remove the circle.", "--model", str(studio_folder), "--branch", branches["two"]]
    main([*edit, "--out", str(out)])
    assert " 2 NFE" in capsys.readouterr().out and not caplog.records
    main([*edit, "--out", str(out), "--image-scale", "3"])
    assert "made for image scales 2 to 2, which 3 is not" in caplog.text


def test_missing_branches_and_draft_heads_are_told_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bagel, "from_pretrained", None)
    picture, file, out = str(tmp_path / "a.png"), "nope.safetensors", str(tmp_path / "out")
    Image.new("RGB", (16, 16), "red").save(picture)
    branch = r"nope\.safetensors: no such file; give a branch file; .* scenes/nfe1, scenes/nfe6$"
    draft = r"nope\.safetensors: no such file; give a draft head"
    for command, message in (
        (["generate", "a", "--branch", file, "--out", f"{out}.png"], branch),
        (["edit", picture, "a", "--branch", file, "--out", f"{out}.png"], branch),
        (["app", "--nfe6", file], branch),
        (["app", "--draft", file], draft),
        (["chat", picture, "what?", "--draft", file], draft),
        (["export", "draft", file, out], draft),
        (["chat", "-", "what?", "--draft", "scenes/nfe6"], "not a draft head"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(command)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cdua", "device cdua: no such device; use cpu, cuda or cuda:1, or leave it out"),
        ("gpu", "device gpu: no such device; "),
        ("cuda", "device cuda: no GPU here; use --device cpu or leave it out"),
        ("meta", "device meta: no meta here; "),
        ("cuda:7", "device cuda:7: the last one here is cuda:1; "),
    ],
)
def test_devices_that_are_not_here_are_told_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda:7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(Bagel, "from_pretrained", None)
    shards, out = str(tmp_path / "shards"), str(tmp_path / "out")
    for command in (
        ["generate", "a", "--out", f"{out}.png"],
        ["chat", "-", "what?"],
        ["app"],
        ["data", "regenerate", shards, out],
        ["data", "features", shards, out],
    ):
        for option in (["--device", device], [f"--device={device}"], ["--device.device", device]):
            with pytest.raises(SystemExit, match=f"^hyperbagel [a-z ]+: {message}"):
                main([*command, *option])


def test_the_type_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, place, dtype in ((False, "cpu", torch.float32), (True, "cuda", torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=available: found)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        assert Device().resolve() == (torch.device(place), dtype)
        assert Device("cpu").resolve() == (torch.device("cpu"), torch.float32)
        assert Device(dtype="float32").resolve() == (torch.device(place), torch.float32)
    assert Device("cpu", "bfloat16").resolve() == (torch.device("cpu"), torch.bfloat16)


def test_settings_of_a_device_are_short_and_what_is_true_or_false_needs_no_value() -> None:
    given = ["--think", "--dtype", "bfloat16", "--offload", "--steps", "3", "--quantize=int8", "--device", "cpu"]
    assert with_short_names(Generate, given) == [
        "--think=true", "--device.dtype", "bfloat16", "--device.offload=true", "--steps", "3",
        "--device.quantize=int8", "--device", "cpu",
    ]  # fmt: skip
    for other in (["--think", "false"], ["--think=true"], ["--device.offload", "true"], ["a --think", "--out", "b"]):
        assert with_short_names(Generate, other) == other

    def own(dtype: str, device: Device) -> None: ...

    assert with_short_names(own, ["--dtype", "float32"]) == ["--dtype", "float32"]


def test_only_the_name_of_a_device_is_short() -> None:
    assert with_short_device(["--device", "cuda", "--device=cpu"]) == ["--device.device", "cuda", "--device.device=cpu"]
    for other in (
        ["--device", "{dtype: bfloat16}"],
        ["--device=device.yaml"],
        ["--device"],
        ["--device.dtype", "auto"],
    ):
        assert with_short_device(other) == other


def test_a_checkpoint_is_split_and_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    content = {"state_dict": {"weight": torch.arange(3.0)}, "loops": {"step": 2}}
    torch.save(content, tmp_path / "last.ckpt")
    main(["checkpoint", "split", str(tmp_path / "last.ckpt"), str(tmp_path / "state")])
    assert "state: 1 files" in capsys.readouterr().out
    main(["checkpoint", "join", str(tmp_path / "state"), str(tmp_path / "new" / "last.ckpt")])
    joined = torch.load(tmp_path / "new" / "last.ckpt", weights_only=True)
    assert joined["loops"] == content["loops"] and torch.equal(joined["state_dict"]["weight"], torch.arange(3.0))
    with pytest.raises(SystemExit, match=r"hyperbagel checkpoint split: .*none\.ckpt: no such file"):
        main(["checkpoint", "split", str(tmp_path / "none.ckpt"), str(tmp_path / "state")])


@pytest.mark.parametrize(
    ("command", "left_out"),
    [
        (["generate", "a red circle"], set()),
        (["generate", "a red circle", "--branch", "BRANCH"], {"generation"}),
        (["edit", "PICTURE", "Remove it.", "--branch", "BRANCH"], set()),
        (["chat", "PICTURE", "what?", "--max-tokens", "2"], {"generation", "autoencoder"}),
        (["export", "draft", "DRAFT", "OUT"], {"generation", "autoencoder"}),
    ],
)
def test_commands_load_what_they_use(
    studio_folder: Path,
    branches: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    left_out: set[str],
) -> None:
    """Edits read their picture through the model's own generation experts, whatever denoises."""
    loaded: list[Bagel] = []
    load = Bagel.from_pretrained

    def noted(*arguments: object) -> Bagel:
        loaded.append(load(*arguments))  # type: ignore[arg-type]
        return loaded[-1]

    monkeypatch.setattr(Bagel, "from_pretrained", noted)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    places = {
        "BRANCH": branches["two"],
        "PICTURE": str(tmp_path / "a.png"),
        "DRAFT": str(studio_folder / "branches" / "draft.safetensors"),
        "OUT": str(tmp_path / "out"),
    }
    picture = ["--steps", "2", "--out", str(tmp_path / "b.png")] if command[0] in ("generate", "edit") else []
    main([places.get(word, word) for word in command] + [*picture, "--model", str(studio_folder)])
    (model,) = loaded
    weights = {name.partition(".")[0] for name in model.state_dict()}
    assert weights == {"understanding", "generation", "autoencoder"} - left_out


def test_a_shipped_branch_is_refused_by_another_teacher_over_its_understanding(tmp_path: Path) -> None:
    """Which would draw as the shipped one does; also where the teacher's own generation experts are not loaded."""
    teacher = Bagel.from_pretrained("scenes")
    restart_generation(teacher)
    teacher.save_pretrained(tmp_path / "mine")
    Tokenizer.from_pretrained("scenes").save_pretrained(tmp_path / "mine")
    command = ["generate", "a", "--model", str(tmp_path / "mine"), "--out", str(tmp_path / "a.png")]
    with pytest.raises(SystemExit, match=r"nfe1\.safetensors: made for another generation branch .*mine has"):
        main([*command, "--branch", "scenes/nfe1"])


def test_shipped_branches_draw_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    main(["generate", "a photo of a red circle", "--branch", "scenes/nfe1", "--out", str(tmp_path / "a.png")])
    assert not caplog.records
