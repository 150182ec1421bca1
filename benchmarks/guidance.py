"""Whether guidance still controls a distilled branch, as it does the teacher.

    python benchmarks/guidance.py [--model scenes] [--branch scenes/nfe6] [--steps 6] [--prompts 120] [--edits 8]

GenEval at a row of text scales says how well prompts are followed. At a row of image scales, what an edit of the scenes
world shall leave alone is held against the source picture, as a peak signal-to-noise ratio in dB.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio
from tqdm import tqdm

from hyperbagel.bagel.branch_checkpoint import load_branch
from hyperbagel.callbacks.geneval import GenEvalPrompts
from hyperbagel.evaluation.gedit.runner import sample_seed
from hyperbagel.evaluation.gedit.samples import EditSample
from hyperbagel.evaluation.gedit.scene_world import scene_edit_samples
from hyperbagel.evaluation.geneval import RunSettings, evaluate
from hyperbagel.evaluation.geneval.scene_detector import SceneDetector
from hyperbagel.flow.guidance import PAPER_EDITING, PAPER_GENERATION
from hyperbagel.flow.sampler import Sampler
from hyperbagel.pipeline.device import Device
from hyperbagel.pipeline.loading import load_model
from hyperbagel.pipeline.painter import Painter
from hyperbagel.scenes.drawing import draw
from hyperbagel.scenes.edits import Edit
from hyperbagel.scenes.world import Scene

TEXT_SCALES = (1.0, 2.0, 3.0, 4.0, 5.0)
IMAGE_SCALES = (1.0, 1.5, 2.0, 2.5)
BATCH = 32


def adherence(painter: Painter, prompts: int) -> float:
    """GenEval of one picture for each of some prompts."""
    settings = RunSettings(images_per_prompt=1, batch_size=BATCH)
    report = evaluate(painter.generate, GenEvalPrompts(limit=prompts).read(), SceneDetector(), settings)
    return report.overall.estimate


def preservation(painter: Painter, samples: Sequence[EditSample]) -> float:
    """Peak signal-to-noise ratio in dB of edits to their sources, where the edit asks for no change."""
    edited, sources, kept = [], [], []
    for start in range(0, len(samples), BATCH):
        batch = samples[start : start + BATCH]
        seeds = [sample_seed(0, sample.key) for sample in batch]
        edited += painter.edit([s.source for s in batch], [s.instruction for s in batch], seeds)
        for sample in batch:
            edit = Edit.from_dict(dict(sample.meta))
            source, target = pixels(edit.source), pixels(edit.target)
            sources.append(source)
            kept.append((source == target).all(0).expand_as(source))
    mask = torch.stack(kept)
    return float(
        peak_signal_noise_ratio(torch.stack(edited)[mask].float(), torch.stack(sources)[mask].float(), data_range=255.0)
    )


def pixels(scene: Scene) -> Tensor:
    """A drawing as (3, H, W) uint8."""
    return torch.from_numpy(draw(scene)).permute(2, 0, 1)


def main() -> None:
    """Print a row of each, for the teacher and for the branch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scenes", help="shipped name or folder (default: %(default)s)")
    parser.add_argument("--branch", default="scenes/nfe6", help="a distilled branch (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="of the branch (default: %(default)s)")
    parser.add_argument("--teacher-steps", type=int, default=12, help="of the teacher (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=120, help="of GenEval (default: %(default)s)")
    parser.add_argument("--edits", type=int, default=8, help="of each kind (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of one operator (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = load_model(arguments.model, Device(device="cpu", dtype="float32"))
    distilled = load_branch(arguments.branch, model)[0]
    ways = {"teacher": (arguments.teacher_steps, None), "branch": (arguments.steps, distilled)}
    edits = [sample for sample in scene_edit_samples(arguments.edits) if sample.language == "en"]
    shift = model.config.timestep_shift
    print(f"{'':10}GenEval at text scales {TEXT_SCALES}, likeness to the source in dB at image scales {IMAGE_SCALES}")
    with torch.inference_mode():
        for name, (steps, branch) in ways.items():
            row = ""
            for scale in tqdm(TEXT_SCALES, f"{name}, text", leave=False):
                sampler = Sampler(steps, shift, replace(PAPER_GENERATION, text_scale=scale))
                row += f"{adherence(Painter(model, tokenizer, sampler, branch), arguments.prompts):8.3f}"
            for scale in tqdm(IMAGE_SCALES, f"{name}, image", leave=False):
                sampler = Sampler(steps, shift, replace(PAPER_EDITING, image_scale=scale))
                row += f"{preservation(Painter(model, tokenizer, sampler, branch), edits):8.2f}"
            print(f"{name:10}{row}", flush=True)


if __name__ == "__main__":
    main()
