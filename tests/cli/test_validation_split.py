"""`_validation` puts the validation split in the place of the test split, whatever it is laid over."""

from __future__ import annotations

import pytest

from hyperbagel.cli.trainer import read_config


@pytest.mark.parametrize("name", ["scenes/pretrain", "scenes/nfe6", "scenes/nfe1", "scenes/shipped"])
def test_nothing_of_the_test_split_is_left(name: str) -> None:
    measured, config = read_config([name], "test"), read_config([name, "_validation"], "test")
    callbacks, before = config.callbacks, measured.callbacks
    assert before.geneval.init_args.prompts.split == "test" and callbacks.geneval.init_args.prompts.split == "val"
    assert before.gedit.init_args.data.split == "test" and callbacks.gedit.init_args.data.split == "val"
    assert callbacks.geneval.init_args.rows == before.geneval.init_args.rows
    assert [source.samples.init_args.split for source in config.data.init_args.test] == ["val"]
    assert callbacks.understanding is None and callbacks.geneval.init_args.fidelity is None
    assert config.trainer.logger.init_args.save_dir != measured.trainer.logger.init_args.save_dir
