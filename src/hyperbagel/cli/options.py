"""The options of commands. Modules of options import nothing slow, not even for type checkers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hyperbagel.pipeline.device import Runtime


@dataclass(frozen=True)
class Generate:
    """Make pictures from prompts.

    Args:
        prompt: what the picture should show; several prompts make several pictures.
        prompts: file of more prompts, one a line, or JSONL of which each line has a key "prompt".
        number: pictures of each prompt, of seeds that count up.
        model: checkpoint folder, or the name of a model that comes with the package.
        branch: file of a distilled generation branch; only denoising uses it, the context is prefilled on the model.
        steps: denoising steps; default as many as the branch was made for, and 50 without one. With guidance each
            costs two evaluations of the network (one on a distilled branch).
        text_scale: strength of the text guidance, 1 switches it off.
        seed: of the noise; equal seeds give equal pictures.
        think: whether the model first writes a thought about what it draws, for models that learnt it.
        width: of the picture in pixels, a multiple of the model's latent stride; default the model's largest.
        height: likewise.
        batch_size: most pictures that are drawn at once.
        out: picture file to write; several are numbered before its ending.
        device: where and how to compute.
    """

    prompt: list[str]
    prompts: Path | None = None
    number: int = 1
    model: str = "scenes"
    branch: str | None = None
    steps: int | None = None
    text_scale: float = 4.0
    seed: int = 0
    think: bool = False
    width: int | None = None
    height: int | None = None
    batch_size: int = 16
    out: Path = Path("out.png")
    device: Runtime = field(default_factory=Runtime)


@dataclass(frozen=True)
class Edit:
    """Change a picture as an instruction says.

    Args:
        image: picture file to start from.
        instruction: what should change.
        model: checkpoint folder, or the name of a model that comes with the package.
        branch: file of a distilled generation branch, for denoising.
        steps: denoising steps; default as many as the branch was made for, and 50 without one. With guidance each
            costs up to three evaluations of the network (one on a distilled branch).
        text_scale: strength of the text guidance, 1 switches all guidance off.
        image_scale: strength of the guidance by the source picture, 1 switches it off.
        context: which branch reads the source picture, original or student; default what the branch was made for.
        seed: of the noise; equal seeds give equal pictures.
        think: whether the model first writes a thought about the change, for models that learnt it.
        out: picture file to write.
        device: where and how to compute.
    """

    image: Path
    instruction: str
    model: str = "scenes"
    branch: str | None = None
    steps: int | None = None
    text_scale: float = 4.0
    image_scale: float = 2.0
    context: Literal["original", "student"] | None = None
    seed: int = 0
    think: bool = False
    out: Path = Path("out.png")
    device: Runtime = field(default_factory=Runtime)


@dataclass(frozen=True)
class Chat:
    """Answer questions about a picture, or without one. A single answer appears as it is written.

    Args:
        image: picture file the questions are about, or - for none.
        questions: what to ask; several are answered together. Without any, each line of the standard input is one,
            and those before it are remembered.
        model: checkpoint folder, or the name of a model that comes with the package.
        draft: file of a draft head, or of phrases, which speeds answers up without changing them.
        answer_prefix: what the model is made to begin its answers with, as chat models expect; it is not shown.
        max_tokens: longest answer.
        temperature: 0 always takes the likeliest token; higher values vary more.
        top_p: sample among the likeliest tokens that together have this probability.
        seed: of the sampling.
        think: whether the model writes a thought before each answer, for models that learnt it.
        device: where and how to compute.
    """

    image: str
    questions: list[str]
    model: str = "scenes"
    draft: str | None = None
    answer_prefix: str = ""
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    think: bool = False
    device: Runtime = field(default_factory=Runtime)


@dataclass(frozen=True)
class App:
    """Open an interactive page: pictures from prompts, edits, and answers. It listens on this machine only.

    Args:
        model: checkpoint folder, or the name of a model that comes with the package.
        nfe6: branch file for 6 network evaluations; default branches/nfe6.safetensors of the model's folder, if
            it is there.
        nfe1: branch file for 1 evaluation, which also draws while a prompt is typed; default likewise
            branches/nfe1.safetensors.
        draft: file of a draft head, or of phrases, which speeds answers up; default likewise
            branches/draft.safetensors.
        steps: denoising steps of the teacher; with guidance each costs two or three evaluations.
        port: of the page.
        max_upload_mb: largest picture file that is taken, in megabytes.
        device: where and how to compute.
    """

    model: str = "scenes"
    nfe6: str | None = None
    nfe1: str | None = None
    draft: str | None = None
    steps: int = 50
    port: int = 7860
    max_upload_mb: int = 10
    device: Runtime = field(default_factory=Runtime)


@dataclass(frozen=True)
class Bench:
    """Measure speed and memory of a model on the device at hand, each beside its limit; minutes for 7B on a GPU.

    Args:
        preset: random weights of these sizes are measured, as speed does not depend on values.
        model: checkpoint folder, or the name of a model that comes with the package, to measure instead.
        only: what to measure, such as pass,answers; default all of pass, pictures, edits, answers, updates.
        quick: whether to repeat less, and to measure a few steps of what has many.
        out: file for all figures, as JSON.
        device: where and how to compute.
    """

    preset: Literal["7b", "scenes", "nano"] = "7b"
    model: str | None = None
    only: str = ""
    quick: bool = False
    out: Path = Path("bench.json")
    device: Runtime = field(default_factory=Runtime)


@dataclass(frozen=True)
class PlanOptions:
    """Memory of a training stage on each device, from shapes alone, and the largest batch that fits; or, with
    --inference and without a stage, of drawing and answering on one device.

    Args:
        devices: how many; default those of the configuration.
        sharding: fsdp or none; default the strategy of the configuration.
        lora: rank of adapters to train instead of whole branches; default what the configuration says.
        memory: of a device, in GiB.
        side: of the pictures, in pixels.
        text: tokens of a prompt.
        editing: whether documents are edits, with a picture of the same size before the prompt.
        inference: whether drawing and answering are planned, rounded and offloaded in all ways.
        model: checkpoint folder, or the name of a model, to plan them for; default BAGEL-7B-MoT.
    """

    devices: int | None = None
    sharding: Literal["fsdp", "none"] | None = None
    lora: int | None = None
    memory: float = 80
    side: int = 1024
    text: int = 128
    editing: bool = True
    inference: bool = False
    model: str | None = None
