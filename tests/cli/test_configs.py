"""Configurations by name: found, listed, copied, and in the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hyperbagel.bagel import shipped
from hyperbagel.bagel.build.assemble import NANO
from hyperbagel.bagel.checkpoint import read_config as model_config
from hyperbagel.cli import configs, main
from hyperbagel.cli.bases import content
from hyperbagel.cli.trainer import read_arguments, read_config
from tests.wheel import unpack_wheel

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_configuration_is_found_by_its_name(elsewhere: Path) -> None:
    """Also as the repository calls its file, with or without the suffix; a file of the user's goes first."""
    expected = CONFIGS / "scenes" / "cfg_distillation.yaml"
    for name in ("scenes/cfg_distillation", "scenes/cfg_distillation.yaml", "configs/scenes/cfg_distillation.yaml"):
        assert configs.find_config(name).samefile(expected)
    assert configs.find_config("examples/drift.yaml").samefile(ROOT / "examples" / "drift.yaml")
    (elsewhere / "scenes").mkdir()
    (elsewhere / "scenes" / "cfg_distillation").write_text("seed_everything: 1")
    assert configs.find_config("scenes/cfg_distillation") == Path("scenes/cfg_distillation")


def test_an_unknown_name_is_told_what_is_near(elsewhere: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"scenes/cfg_distilation: no such file.*did you mean scenes/cfg_distillation.*hyperbagel confi",
    ):
        configs.find_config("scenes/cfg_distilation")


def test_names_are_replaced_where_they_are_configurations_only(elsewhere: Path) -> None:
    cfg, draft = configs.find_config("scenes/cfg_distillation"), configs.find_config("demo/draft_head")
    given = [
        "fit",
        "--config",
        "scenes/cfg_distillation",
        "--config=demo/draft_head",
        "--model.init_args.init_from",
        "scenes/nfe6",
    ]
    expected = ["fit", "--config", str(cfg), f"--config={draft}", "--model.init_args.init_from", "scenes/nfe6"]
    assert configs.with_found_configs(given) == expected


def test_every_configuration_is_listed_with_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs"])
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert len(lines) == len([*CONFIGS.rglob("[!_]*.yaml"), *(ROOT / "examples").glob("*.yaml")])
    assert (
        lines["scenes/cfg_distillation"].strip().startswith("Stage 1, CFG distillation: the guided teacher in one pass")
    )
    for name, what in lines.items():
        assert len(what.split()) >= 4 and "hyperbagel " not in what, name


def test_a_copy_lies_as_in_the_repository(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs", "copy", "scenes/cfg_distillation"])
    assert capsys.readouterr().out.split() == ["configs/scenes/cfg_distillation.yaml"]
    assert (
        Path("configs/scenes/cfg_distillation.yaml").read_bytes()
        == (CONFIGS / "scenes" / "cfg_distillation.yaml").read_bytes()
    )
    with pytest.raises(SystemExit, match=r"configs/scenes/cfg_distillation.yaml: already exists; name another place"):
        main(["configs", "copy", "scenes/cfg_distillation"])
    main(["configs", "copy", "scenes/cfg_distillation", "mine.yaml"])
    assert Path("mine.yaml").is_file()


@pytest.mark.parametrize("former", ["scenes/cfg", "nano/tuning.yaml", "configs/bagel7b/lora/cfg.yaml", "demo/draft"])
def test_former_names_are_found_with_a_warning(former: str, elsewhere: Path) -> None:
    with pytest.warns(FutureWarning, match=f"configuration {former} is now "):
        found = configs.find_config(former)
    now = {"cfg": "cfg_distillation", "tuning": "reward_tuning", "draft": "draft_head"}[Path(former).stem]
    assert found.is_file() and (found.parent.name, found.stem) == (Path(former).parent.name, now)


def test_folders_and_code_are_copied_too(elsewhere: Path) -> None:
    main(["configs", "copy", "examples/drift", "mine"])
    assert sorted(path.name for path in Path("mine").iterdir()) == ["drift.py", "drift.yaml"]
    main(["configs", "copy", "examples"])
    assert Path("examples/instructions.py").is_file() and Path("examples/prompts.jsonl").is_file()
    main(["configs", "copy", "bagel7b"])
    assert Path("configs/bagel7b/lora/cfg_distillation.yaml").is_file()


@pytest.mark.parametrize("config", ["demo/dmdo1", "bagel7b/lora/dmdo"])
def test_what_is_laid_over_a_recipe_may_name_it_or_not(config: str) -> None:
    """Both `--config scenes/dmdo1 --config demo/dmdo1` and the latter alone."""
    recipe = {"demo/dmdo1": "scenes/dmdo1", "bagel7b/lora/dmdo": "bagel7b/dmdo"}[config]
    laid, alone = read_config([recipe, config]), read_config([config])
    del laid["config"], alone["config"]
    assert laid == alone


def trainings(*given: str) -> list[list[str]]:
    """The arguments of `hyperbagel` in each training that `make` would run."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "-n", "-C", CONFIGS.parent, *given]
    # A `make` that these tests run under hands its settings on, as variables of any name.
    shown = subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True)
    return [line.split()[1:] for line in shown.stdout.splitlines() if " fit --config " in line]


@pytest.mark.parametrize(("target", "stages"), [("pretrain", 6), ("distill", 8)])
def test_stages_that_make_runs_start_from_what_those_before_them_leave(target: str, stages: int) -> None:
    """All but the first, which starts from what the package has."""
    commands = trainings(target)
    made = {"fresh/scenes", "scenes"}
    for command in commands:
        settings = read_arguments(command)
        model, named = settings.model.init_args, settings.callbacks
        branches = [model.get(key) for key in ("model", "init_from", "settings.teacher", "method.fake_from")]
        branches.append(named.get("added_loss.init_args.term.init_args.branch"))
        assert made.issuperset(filter(None, branches)), command
        made.add(named.export.init_args.folder if named.export else model.settings.export)
    assert len(commands) == stages and len(made) == stages + 2


def test_stages_are_distilled_by_as_many_processes_as_asked_for() -> None:
    spread = "--trainer.devices 2 --trainer.strategy ddp_find_unused_parameters_true --ckpt_path last"
    assert [" ".join(command).endswith(spread) for command in trainings("distill", "PROCESSES=2")] == [True] * 8


@pytest.mark.parametrize("path", (CONFIGS / "scenes").glob("*.yaml"), ids=lambda path: path.stem)
def test_recipes_of_the_scenes_size_start_from_what_is_shipped(path: Path) -> None:
    """All but the tests of the stages that `make distill` runs."""
    settings = content(path).get("model", {}).get("init_args", {})
    assert settings.get("model", "scenes") in ("scenes", "fresh/scenes")
    used = [settings.get("init_from"), settings.get("settings", {}).get("teacher")]
    used.append(settings.get("method", {}).get("fake_from"))
    for name in filter(None, used):
        assert shipped.resolve(name, ".safetensors").is_file(), name


def test_a_fresh_model_is_made_once_when_it_is_asked_for(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(elsewhere / "cache"))
    folder = shipped.resolve("fresh/nano")
    assert folder.is_relative_to(elsewhere / "cache") and model_config(folder) == NANO
    made = (folder / "ema.safetensors").stat().st_mtime_ns
    assert shipped.resolve("fresh/nano") == folder and (folder / "ema.safetensors").stat().st_mtime_ns == made
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert shipped.resolve("fresh/huge") == Path("fresh/huge")


@pytest.mark.slow
def test_the_wheel_has_them(tmp_path: Path) -> None:
    """As built and unpacked, away from the repository."""
    unpack_wheel(tmp_path / "site")
    script = "from hyperbagel.cli import configs, main; main(['configs']); print(configs.find_config('scenes/tscd'))"
    shown = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path / "site"), "HOME": str(tmp_path)},
    ).stdout.splitlines()
    assert len(shown) == len([path for path in configs.shipped_configs().values() if not path.name.startswith("_")]) + 1
    assert (tmp_path / "site/hyperbagel/configs/scenes/_distillation.yaml").is_file()
    assert Path(shown[-1]) == tmp_path / "site" / "hyperbagel" / "configs" / "scenes" / "tscd.yaml"
