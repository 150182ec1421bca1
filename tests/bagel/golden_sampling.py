"""What a golden file expects of whole samplings, and of an editing call from a raw picture on."""

from __future__ import annotations

import torch
from PIL import Image

from hyperbagel.bagel.images import ImageTransform, to_pixels, to_uint8
from hyperbagel.bagel.segments import ImageSegment, TextSegment, ViTSegment
from hyperbagel.bagel.vision import unpatchify
from hyperbagel.flow.guidance import Guidance, GuidedPass
from hyperbagel.flow.sampler import Sample, Sampler
from hyperbagel.flow.schedule import timesteps

from .golden import Golden, Results, Subject, group
from .golden_inference import IMAGE_SCALE, TEXT_SCALE, contexts_of

SHIFT, STEPS = 3.0, 7
"""Sampling shift, and steps (the reference's num_timesteps - 1) where a file records no trajectory."""
T2I = Guidance(TEXT_SCALE, renorm="global")
EDIT = Guidance(TEXT_SCALE, IMAGE_SCALE, renorm="text_channel")
EDIT_GLOBAL = Guidance(TEXT_SCALE, IMAGE_SCALE, renorm="global")


def sampler_of(golden: Golden, guidance: Guidance | None) -> Sampler:
    """The file's sampler: `Sampler(steps=N - 1)` is the reference's num_timesteps = N."""
    recorded = [name for name in ("sample.t2i.trajectory", "sample.edit.trajectory") if name in golden.cases]
    return Sampler(len(golden[recorded[0]]) if recorded else STEPS, SHIFT, guidance)


def sample(subject: Subject, kind: str, guidance: Guidance | None) -> Sample:
    """Sample `t2i` or `edit` from the file's noise."""
    golden = subject.golden
    grid = subject.model.latent_grid([tuple(golden[f"{kind}.size"].tolist())])
    contexts = contexts_of(subject, kind)
    return sampler_of(golden, guidance).sample(subject.model, contexts, grid, golden[f"{kind}.x_t"][None])


def maps_of(subject: Subject, kind: str, sampled: Sample) -> Results:
    """What follows from a sample: its trajectory, tokens, latent and picture."""
    model = subject.model
    grid = model.latent_grid([tuple(subject.golden[f"{kind}.size"].tolist())])
    yield f"sample.{kind}.trajectory", sampled.trajectory[:-1, 0]
    yield f"sample.{kind}.tokens", sampled.latents[0]
    yield f"sample.{kind}.latent", unpatchify(sampled.latents[0], grid.sizes[0], model.config.latent_patch_size)
    yield f"sample.{kind}.image", model.decode_latents(sampled.latents, grid)[0]


@group("sample.t2i", "t2i.text_ids", "t2i.x_t", "t2i.size")
def sample_text_to_image(subject: Subject) -> Results:
    model, golden = subject.model, subject.golden
    sampler, sampled = sampler_of(golden, T2I), sample(subject, "t2i", T2I)
    times = timesteps(sampler.steps, SHIFT)[:-1]
    yield "sample.t2i.timesteps", times
    active = [T2I.active(float(t)) for t in times]
    yield "sample.t2i.cfg_scale_used", torch.tensor([TEXT_SCALE if on else 1.0 for on in active])
    grid, contexts = model.latent_grid([tuple(golden["t2i.size"].tolist())]), contexts_of(subject, "t2i")
    guided = GuidedPass.of(contexts, grid, T2I)
    velocities = [
        guided.velocity(model, x, t[None], T2I) if on else model.velocity(x, t[None], contexts.full, grid)
        for x, t, on in zip(sampled.trajectory, times, active, strict=False)
    ]
    yield "sample.t2i.velocity", torch.cat(velocities)
    yield from maps_of(subject, "t2i", sampled)
    yield "sample.t2i_nocfg.tokens", sample(subject, "t2i", None).latents[0]


@group("sample.edit", "edit.vae_latent", "edit.vit_image", "edit.text_ids", "edit.x_t", "edit.size")
def sample_edit(subject: Subject) -> Results:
    yield from maps_of(subject, "edit", sample(subject, "edit", EDIT))
    yield "sample.edit_global.tokens", sample(subject, "edit", EDIT_GLOBAL).latents[0]


@group("e2e.edit", "edit.raw_rgb", "edit.text_ids", "edit.x_t")
def edit_end_to_end(subject: Subject) -> Results:
    model, golden = subject.model, subject.golden
    resized = model.config.vae_transform.resize(Image.fromarray(golden["edit.raw_rgb"].numpy()))
    pixels, vit_pixels = to_pixels(resized), model.config.vit_transform(resized)
    yield "edit.vae_image", pixels
    yield "edit.vit_image", vit_pixels
    document = [ImageSegment(pixels), ViTSegment(vit_pixels), TextSegment(golden["edit.text_ids"])]
    grid = model.latent_grid([tuple(pixels.shape[1:])])
    contexts = model.prefill_guided([document], image=True)
    sampled = sampler_of(golden, EDIT).sample(model, contexts, grid, golden["edit.x_t"][None])
    yield "e2e.edit.rgb", to_uint8(model.decode_latents(sampled.latents, grid)[0]).permute(1, 2, 0)


@group("resize")
def resize(subject: Subject) -> Results:
    for number, example in enumerate(subject.golden.meta.get("resize_examples", [])):
        transform = ImageTransform(*example["max_min_stride"])  # some have a limit of pixels as fourth
        yield f"resize.{number}", torch.tensor(transform.size(*example["in_wh"]))


GROUPS = [sample_text_to_image, sample_edit, edit_end_to_end, resize]
