"""Speed of a distilled branch against the guided teacher, on the same contexts and noise.

    python benchmarks/generation.py [--model scenes] [--branch FILE] [--batches 1 32] [--threads 2] [--repeats 5]

Teacher and branch are timed in turn in one run. Denoising is measured alone, to be held against the ratio of network
evaluations, and from prompt to pixels; the last columns say where the time of the latter goes. Without `--branch`, the
model's own generation side with guidance embedders stands for a branch: the same cost, meaningless pictures.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE, GenerationBranch
from hyperbagel.bagel.branch_checkpoint import load_branch
from hyperbagel.bagel.images import to_pixels
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, ImageSegment, TextSegment, ViTSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.evaluation.gedit.scene_world import scene_edit_samples
from hyperbagel.flow.guidance import PAPER_EDITING, PAPER_GENERATION, Guidance
from hyperbagel.flow.sampler import Sample, Sampler
from hyperbagel.pipeline.device import Device
from hyperbagel.pipeline.loading import load_model
from hyperbagel.scenes.prompts import geneval_prompts

PARTS = ("prefill", "denoise", "decode")
STEPS = (6, 1)
COLUMNS = {"passes": 40, "ratio": 9, "denoise": 11, "ratio ": 10, "to pixels": 11, " ratio": 10}


@dataclass
class Way:
    """One way of making pictures, and the seconds of its parts in each repeat."""

    sampler: Sampler
    branch: GenerationBranch | None
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    nfe: int = 0

    def draw(self, model: Bagel, documents: Sequence[Document], noise: Tensor) -> None:
        """From documents to pixels, once."""
        guidance = self.sampler.guidance
        assert guidance is not None
        grid = model.latent_grid([(model.config.vae_transform.max_size,) * 2] * len(documents))
        marks = [time.perf_counter()]
        contexts = model.prefill_guided(
            documents, text=self.branch is None, image=self.branch is None and guidance.uses_image
        )
        marks.append(time.perf_counter())
        sample: Sample = self.sampler.sample(model, contexts, grid, noise, self.branch)
        marks.append(time.perf_counter())
        model.decode_latents(sample.latents, grid)
        marks.append(time.perf_counter())
        self.nfe = sample.nfe
        for part, start, end in zip(PARTS, marks, marks[1:], strict=False):
            self.seconds[part].append(end - start)

    def median(self, *parts: str) -> float:
        """Seconds of some parts together, without the first repeat, which warms up."""
        return statistics.median([sum(times) for times in zip(*(self.seconds[p] for p in parts), strict=True)][1:])


def documents_of(task: str, model: Bagel, tokenizer: Tokenizer, number: int) -> list[Document]:
    """The contexts of pictures: one prompt, or one edit, `number` times."""
    if task == "generation":
        prompt = geneval_prompts()[-1]["prompt"]
        return [[TextSegment(tokenizer.encode(prompt))] for _ in range(number)]
    sample = scene_edit_samples(1)[0]
    source, ids = model.config.vae_transform.resize(sample.source.convert("RGB")), tokenizer.encode(sample.instruction)
    vit = model.config.vit_transform(source)
    return [[ImageSegment(to_pixels(source)), ViTSegment(vit), TextSegment(ids)] for _ in range(number)]


def compare(
    task: str, guidance: Guidance, model: Bagel, documents: Sequence[Document], branch: GenerationBranch, repeats: int
) -> None:
    """Time the teacher and the branch in turn, and print a line each."""
    torch.manual_seed(0)
    tokens = (model.config.vae_transform.max_size // model.config.latent_stride) ** 2
    noise = torch.randn(len(documents), tokens, model.config.latent_token_dim)
    shift = model.config.timestep_shift
    ways = {"teacher": Way(Sampler(50, shift, guidance), None)}
    ways |= {f"branch, {steps} steps": Way(Sampler(steps, shift, guidance), branch) for steps in STEPS}
    for _ in tqdm(range(repeats + 1), f"{task}, {len(documents)} at once", leave=False):
        for way in ways.values():
            way.draw(model, documents, noise)
    teacher = ways["teacher"]
    for name, way in ways.items():
        alone, whole = way.median("denoise"), way.median(*PARTS)
        shares = "".join(f"{way.median(part) / whole:9.0%}" for part in PARTS)
        print(
            f"{task:11}{len(documents):6}  {name:16}{way.nfe:5}{teacher.nfe / way.nfe:8.2f}x"
            f"{1e3 * alone / len(documents):11.2f}{teacher.median('denoise') / alone:9.2f}x"
            f"{1e3 * whole / len(documents):11.2f}{teacher.median(*PARTS) / whole:9.2f}x{shares}"
        )


def main() -> None:
    """Print a table of generation and editing: passes, and milliseconds an image for denoising alone and in all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scenes", help="shipped name or folder (default: %(default)s)")
    parser.add_argument("--branch", help="file of a CFG-distilled branch")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="pictures at once (default: 1 32)")
    parser.add_argument("--threads", type=int, default=2, help="threads of one operator (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of every measurement (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = load_model(arguments.model, Device(device="cpu", dtype="float32"))
    if arguments.branch:
        branch = load_branch(arguments.branch, model)[0]
    else:
        branch = model.generation.copy()
        branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    print("".join(f"{name:>{width}}" for name, width in (COLUMNS | dict.fromkeys(PARTS, 9)).items()))
    with torch.inference_mode():
        for task, guidance in {"generation": PAPER_GENERATION, "editing": PAPER_EDITING}.items():
            for size in arguments.batches:
                documents = documents_of(task, model, tokenizer, size)
                compare(task, guidance, model, documents, branch, arguments.repeats)


if __name__ == "__main__":
    main()
