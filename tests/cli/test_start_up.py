"""Commands start without what they do not use."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from hyperbagel.cli.uncollected import uncollected

QUICK = """
import sys
from hyperbagel.cli import main
for arguments in (
    ["generate", "--help"],
    ["edit", "--help"],
    ["chat", "--help"],
    ["app", "--help"],
    ["data", "--help"],
    ["data"],
    ["data", "scenes", "--help"],
    ["export", "draft", "--help"],
    ["plan", "--help"],
    ["bench", "--help"],
    ["report", "--help"],
    ["report", "--uot", "x", "y"],
    ["fit", "--help"],
    ["fit", "--config", "nano/cgf"],
    ["fit", "--config", "nano/cfg_distillation", "--trainr.max_steps", "3"],
    ["fit", "--config", "nano/cfg_distillation", "--model.init_args.settings.max_update", "3"],
    ["fit", "--config", "nano/cfg_distillation", "--print_config", "--data.init_args.batchin.seed=1"],
    ["generate", "a red circle", "--setps", "6"],
    ["generate"],
):
    try:
        main(arguments)
    except SystemExit as end:
        print(end.code, file=sys.stderr)
    slow = {"torch", "diffusers", "transformers", "lightning"} & set(sys.modules)
    assert not slow, (arguments, slow)
"""

FRUGAL = """
import sys
from hyperbagel.cli import main
folder, picture = sys.argv[1:]
main(["chat", "-", "What is a circle?", "--model", folder, "--max-tokens", "2"])
assert "diffusers" not in sys.modules
main(["generate", "a red circle", "--model", folder, "--steps", "1", "--out", picture])
assert "diffusers.models.autoencoders.vae" in sys.modules
assert not {"diffusers.loaders", "diffusers.models.unets.unet_2d_condition", "lightning", "peft"} & set(sys.modules)
"""


def test_options_are_read_before_anything_heavy_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "usage: hyperbagel fit --config NAME" in done.stdout
    assert "  folder           convert a folder of pictures with captions to shards\n" in done.stdout
    told = done.stderr.splitlines()
    assert "hyperbagel fit: no option --trainr.max_steps; did you mean --trainer?" in told
    wrong, meant = (f"--model.init_args.settings.{name}" for name in ("max_update", "max_updates"))
    assert f"hyperbagel fit: no option {wrong}; did you mean {meant}?" in told
    assert any("did you mean --data.init_args.batching?" in line for line in told)
    missing = "hyperbagel fit: nano/cgf: no such file, and no configuration of that name"
    assert any(line.startswith(missing) for line in told)


def test_a_conversation_needs_no_diffusers_and_a_picture_little_of_it(nano_folder: str, tmp_path: Path) -> None:
    script = [sys.executable, "-c", FRUGAL, nano_folder, str(tmp_path / "a.png")]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "a.png").is_file()


@pytest.mark.slow
def test_diffusers_is_whole_for_who_imports_it_afterwards() -> None:
    script = """
from hyperbagel.bagel.diffusers_blocks import blocks
encoder = blocks().Encoder
import pickle
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import is_accelerate_available, is_transformers_available
assert type(AutoencoderKL().encoder) is encoder and UNet2DConditionModel is not None
assert hasattr(StableDiffusionPipeline, "load_textual_inversion")  # no stand-in that asks for transformers
assert is_transformers_available() and is_accelerate_available()
assert isinstance(pickle.loads(pickle.dumps(AutoencoderKL().encoder)), encoder)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("collects", [True, False])
def test_the_garbage_collector_is_as_before_after_imports_and_errors(collects: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        with pytest.raises(FileNotFoundError), uncollected():
            assert not gc.isenabled()
            raise FileNotFoundError
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()
