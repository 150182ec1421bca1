"""Configurations that say only what differs from those under them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperbagel.cli.bases import BaseError, stage_of, with_bases
from hyperbagel.cli.configs import find_config
from hyperbagel.cli.main import main
from hyperbagel.cli.trainer import read_config


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_bases_lie_under_the_file_each_once(tmp_path: Path) -> None:
    """In the order of their names, with those of the whole command line."""
    (tmp_path / "in").mkdir()
    write(tmp_path, ground="a: 1", left="bases: ground.yaml", right="bases: [ground]")
    write(tmp_path / "in", top="bases: [../left.yaml, right]", other="bases: [ground.yaml]")
    given = ["fit", "--config", str(tmp_path / "in/top.yaml"), "-c", str(tmp_path / "in/other.yaml"), "--x", "1"]
    laid = with_bases(given)
    assert [Path(option.removeprefix("--config=")).stem for option in laid] == [
        "fit", "ground", "left", "right", "top", "other", "--x", "1"
    ]  # fmt: skip


def test_a_base_may_be_a_shipped_configuration(tmp_path: Path) -> None:
    write(tmp_path, mine="bases: [nano/cfg_distillation]\nmodel: {init_args: {method: {timestep_shift: 1}}}")
    config = read_config([tmp_path / "mine.yaml"])
    assert config.model.init_args.method.timestep_shift == 1
    assert (
        config.model.init_args.settings == read_config([find_config("nano/cfg_distillation")]).model.init_args.settings
    )
    assert stage_of(with_bases(["--config", str(tmp_path / "mine.yaml")])) == config.model.class_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bases: [nowhere]", r"top\.yaml: bases: nowhere: no such file, and no configuration of that name"),
        (
            "bases: [nano/cfg_distilation]",
            r"top\.yaml: bases: nano/cfg_distilation: .*did you mean nano/cfg_distillation\?",
        ),
        ("bases: [between.yaml]", r"between\.yaml: bases: .*top\.yaml -> .*top\.yaml: a file cannot lie under itself"),
        ("bases: {a: 1}", r"top\.yaml: bases: give a list of files or names"),
    ],
)
def test_bases_that_cannot_be(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, top=text, between="bases: [top.yaml]")
    with pytest.raises(BaseError, match=message):
        with_bases(["--config", str(tmp_path / "top.yaml")])


def test_a_mistake_in_a_base_is_told_with_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, top="bases: [ground.yaml]", ground="trainer: {max_steps: 1}\ntrainer: {max_steps: 2}")
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tmp_path / "top.yaml")])
    assert "ground.yaml, line 2: trainer was set before" in capsys.readouterr().err
