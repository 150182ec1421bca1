"""The plug-ins of `examples/` run through the command line, from YAML alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from hyperbagel.bagel.branch import DURATION, IMAGE_SCALE, TEXT_SCALE
from hyperbagel.bagel.branch_checkpoint import load_branch
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import TextSegment
from hyperbagel.cli import main
from hyperbagel.cli.trainer import read_config
from hyperbagel.flow.guidance import GENERATION
from hyperbagel.flow.sampler import Sampler
from hyperbagel.flow.trajectory import branch_velocity
from tests.nano import nano_bagel
from tests.runs import nano_folder

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.yaml"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command at the head of an example's YAML, in a folder of its own; returns what it logged."""
    nano_folder(tmp_path / "fresh" / "nano")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    logged: dict[str, Any] = {}
    inner = Trainer._teardown

    def keep(self: Trainer) -> None:
        logged.update(self.callback_metrics)
        inner(self)

    monkeypatch.setattr(Trainer, "_teardown", keep)

    def command(example: str) -> dict[str, Any]:
        second = (ROOT / "examples" / f"{example}.yaml").read_text().splitlines()[1]
        main(re.fullmatch(r"#   PYTHONPATH=examples hyperbagel (.*)", second)[1].split())  # type: ignore[index]
        return {name: float(value) for name, value in logged.items()}

    return command


def report(folder: Path, benchmark: str) -> dict[str, Any]:
    (path,) = folder.rglob("report.json")
    found: dict[str, Any] = json.loads(path.read_text())["results"][benchmark]
    return found


LENGTHS = {
    "blobs": 45,
    "drift": 45,
    "mean_flow": 100,
    "pixel_judge": 45,
    "saturation": 45,
    "stripes": 45,
    "total_variation": 45,
}
"""Lines that an example may have; a stage has more to say than a loss."""
OVERLAYS = {"mean_flow_scenes"}
"""Settings of larger runs of an example, which are parsed here and not run."""


def test_every_example_is_short_and_tested() -> None:
    assert set(EXAMPLES) == LENGTHS.keys() | OVERLAYS
    for name, lines in LENGTHS.items():
        assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) <= lines


def test_the_guide_to_stages_shows_the_whole_example() -> None:
    """Its excerpts follow each other, begin and end where paragraphs do, and leave nothing out."""
    example = (ROOT / "examples" / "mean_flow.py").read_text()
    guide = (ROOT / "docs" / "add-a-stage.md").read_text()
    excerpts = re.findall(r"<!-- examples/mean_flow\.py -->\n```python\n(.*?)^```", guide, re.M | re.S)
    paragraphs = [part.strip("\n") for part in re.split(r"\n\n+", example)]
    shown = [part.strip("\n") for excerpt in excerpts for part in re.split(r"\n\n+", excerpt)]
    assert shown == paragraphs


def test_a_loss(run: Any) -> None:
    logged = run("total_variation")
    assert logged["loss/total_variation"] > 0
    assert "loss/cfg_distillation" in logged


def test_a_reward(run: Any) -> None:
    logged = run("saturation")
    assert logged["loss/refl"] == pytest.approx(max(0.0, 1.5 - logged["reward/refl"]), abs=0.5)


def test_a_detector(run: Any, tmp_path: Path) -> None:
    logged = run("blobs")
    assert {"geneval/single_object", "geneval/two_object", "geneval/colors", "geneval/overall"} <= logged.keys()
    from blobs import Blobs

    image = np.full((3, 32, 32), 255, np.uint8)
    image[:2, 4:12, 4:12] = 0
    picture = torch.from_numpy(image)
    (found,) = Blobs().detect([picture])
    assert found["square"].boxes.tolist() == [[4, 4, 12, 12]] and not len(found["circle"])
    assert Blobs().classify(picture, "square", found["square"]) == ["blue"]


def test_a_judge(run: Any, tmp_path: Path) -> None:
    logged = run("pixel_judge")
    assert 0 <= logged["gedit/o"] <= 10
    assert "pixel-judge" in json.dumps(report(tmp_path, "gedit"))


def test_a_data_source(run: Any) -> None:
    assert run("stripes")["loss/image"] > 0
    from stripes import Stripes

    picture = Stripes(side=8)[0]["0.png"]
    assert picture[0, :, 1].tolist() == [40, 40, 255, 255, 40, 40, 255, 255]


def test_a_callback(run: Any) -> None:
    assert 0 < run("drift")["drift"] < 1


def test_a_stage(run: Any, tmp_path: Path) -> None:
    logged = run("mean_flow")
    assert logged["loss/mean_flow"] > 0 and logged["step"] == 2
    model = Bagel.from_pretrained(tmp_path / "fresh" / "nano")
    branch, info = load_branch(tmp_path / "runs" / "mean_flow" / "branch.safetensors", model)
    assert set(branch.conditions) == {TEXT_SCALE, IMAGE_SCALE, DURATION}
    assert (info.stage, info.nfe) == ("MeanFlow", 1)
    for parameter in branch.embedder(DURATION).mlp[2].parameters():
        assert parameter.abs().max() > 0  # trained, as it starts at zero
    with torch.no_grad():
        contexts = model.prefill_guided([[TextSegment(torch.tensor([3, 4, 5]))]], text=False)
        grid = model.latent_grid([(32, 32)])
        noise = torch.randn(*grid.position_ids.shape, model.config.latent_token_dim)
        sample = Sampler(1, guidance=GENERATION).sample(model, contexts, grid, noise, branch)
        scales = {TEXT_SCALE: torch.tensor([GENERATION.text_scale]), IMAGE_SCALE: torch.zeros(1)}
        velocity = branch_velocity(model, contexts, grid, branch, scales)
        jump = noise - velocity(noise, torch.ones(1), torch.zeros(1))
    assert sample.nfe == 1
    torch.testing.assert_close(sample.latents, jump)
    assert not torch.equal(jump, noise - velocity(noise, torch.ones(1)))  # the duration counts


def test_a_stage_for_the_embedded_model_reads_its_settings(run: Any) -> None:
    """The command at its head, up to where objects would be made."""
    found = read_config(["examples/mean_flow_scenes"])
    assert found.model.class_path == "mean_flow.MeanFlow"
    assert (found.model.init_args.model, found.model.init_args.settings.steps) == ("scenes", 1)
    assert [source.name for source in found.data.init_args.train] == ["generation", "editing"]


def test_the_average_velocity_is_its_own_target(run: Any) -> None:
    """Along dx/dt = x, x_s = x_t e^-(t - s), so that u = x_t (1 - e^-(t - s)) / (t - s)."""
    from mean_flow import average_velocity_target

    def average(x_t: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        h = (t - s)[:, None, None]
        return x_t * torch.where(h > 0, -torch.expm1(-h) / h.clamp(min=1e-9), torch.ones_like(h))

    x_t = torch.randn(3, 4, 2)
    t, s = torch.tensor([1.0, 0.8, 0.5]), torch.tensor([0.0, 0.6, 0.5])
    torch.testing.assert_close(average_velocity_target(average, x_t, x_t, t, s), average(x_t, t, s))
    # A student that says v everywhere is told of the curve: u = v - (t - s) dv/dt, and dv/dt = v here.
    now = average_velocity_target(lambda x, t, s=None: x, x_t, x_t, t, s)
    torch.testing.assert_close(now, x_t * (1 - (t - s))[:, None, None])


def test_the_derivative_of_a_network_is_that_of_small_differences(run: Any) -> None:
    from mean_flow import average_velocity_target

    model = nano_bagel().double()
    model.generation.add_condition(DURATION)
    for parameter in model.generation.embedder(DURATION).parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        contexts = model.prefill_guided([[TextSegment(torch.tensor([3, 4, 5]))], [TextSegment(torch.tensor([6]))]])
    grid = model.latent_grid([(32, 32), (16, 32)])
    student = branch_velocity(model, contexts, grid, model.generation, {})
    x_t, v = torch.randn(2, *grid.position_ids.shape, model.config.latent_token_dim, dtype=torch.double)
    t, s, small = torch.tensor([0.9, 0.7]).double(), torch.tensor([0.2, 0.7]).double(), 1e-3
    with torch.no_grad():
        later, earlier = student(x_t + small * v, t + small, s), student(x_t - small * v, t - small, s)
    target = average_velocity_target(student, v, x_t, t, s)
    torch.testing.assert_close(target[0], (v - 0.7 * (later - earlier) / (2 * small))[0], atol=1e-3, rtol=1e-3)
    assert torch.equal(target[1], v[1])  # s = t: the teacher's velocity itself
