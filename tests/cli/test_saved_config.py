"""A run's copy of its settings is written whole, and gives the same run again."""

import resource
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from jsonargparse import ArgumentParser

from hyperbagel.cli.saved_config import WholeConfig
from hyperbagel.files import WriteError


def saver() -> WholeConfig:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--text", type=str | None, default=None)
    parser.add_argument("--number", type=int, default=3)
    return WholeConfig(parser, parser.parse_args(["--text", "红 " * 2000]))


def save(folder: Path) -> None:
    strategy = SimpleNamespace(broadcast=lambda value: value)
    trainer = SimpleNamespace(log_dir=str(folder), default_root_dir="", is_global_zero=True, strategy=strategy)
    saver().setup(trainer, None, "fit")  # type: ignore[arg-type]


def test_the_copy_is_complete_and_replaces_that_of_before(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("old")
    save(tmp_path)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8")) == {"text": "红 " * 2000, "number": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_full_disk_leaves_the_old_copy(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(WriteError, match=r"config\.yaml: not written"):
            save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "config.yaml").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
