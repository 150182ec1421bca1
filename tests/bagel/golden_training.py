"""What a golden file expects of packed training forwards: layouts, masks, losses and gradients."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperbagel.bagel.checkpoint import official_names
from hyperbagel.bagel.layout import IGNORED, VIT_TOKEN, Layout
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import LatentSegment, Segment, TextSegment, ViTSegment
from hyperbagel.bagel.vision import unpatchify
from hyperbagel.flow.schedule import interpolate, logit_normal
from hyperbagel.losses.flow_matching import flow_matching_loss, squared_velocity_error
from hyperbagel.losses.text import answer_weights, text_loss, token_cross_entropy

from .golden import Group, Results, Subject
from .golden_inference import sequence_order


@dataclass(frozen=True)
class Packed:
    """A training case as our layout, and how its tokens stand in the reference's one packed sequence.

    orders: `sequence_order` of the layout; raw_times: (B, Ng) draws before sigmoid and shift, -inf for clean latents.
    """

    layout: Layout
    orders: list[Tensor]
    raw_times: Tensor

    def pack(self, und: Tensor, gen: Tensor) -> Tensor:
        """Token values (B, Nu, ...) and (B, Ng, ...) -> (tokens, ...) of the packed sequence."""
        both = torch.cat([und, gen], 1)
        return torch.cat([row[order] for row, order in zip(both, self.orders, strict=True)])

    def where(self, und: Tensor, gen: Tensor) -> Tensor:
        """Places in the packed sequence of the tokens for which these (B, N) bools are true."""
        return self.pack(und, gen).nonzero().flatten()

    def latent_tokens(self, rows: Tensor) -> Tensor:
        """(tokens, ...) in packed order -> (B, Ng, ...), zero at padding. The generation stream keeps packed order."""
        valid = self.layout.gen.block >= 0
        spread = rows.new_zeros(*valid.shape, *rows.shape[1:])
        spread[valid] = rows
        return spread


def documents_of(subject: Subject, case: str) -> tuple[list[list[Segment]], list[float]]:
    """The documents of a packing plan, images from the packed tensors; the raw times of their latent images."""
    golden, config = subject.golden, subject.model.config
    patches = iter(golden[f"{case}.packed_vit_tokens"].split(golden[f"{case}.vit_token_seqlens"].tolist()))
    latents = iter(golden[f"{case}.padded_latent"])
    factor, patch = config.autoencoder.downsample, config.vit.patch_size
    documents: list[list[Segment]] = []
    raw_times = []
    for plan in golden.meta["packing_plan"][case]:
        documents.append([])
        for entry in plan:
            loss = bool(entry["loss"])
            if entry["type"] == "text":
                documents[-1].append(TextSegment(torch.tensor(entry["ids"], dtype=torch.long), loss))
                continue
            height, width = entry["hw_pixels"]
            if entry["type"] == "vit_image":
                documents[-1].append(ViTSegment(unpatchify(next(patches), (height // patch, width // patch), patch)))
            else:
                latent = next(latents)[:, : height // factor, : width // factor]
                documents[-1].append(LatentSegment(latent, loss))
                raw_times.append(float(entry["raw_timestep"]))
    return documents, raw_times


def pack(subject: Subject, case: str) -> Packed:
    """Lay a training case out."""
    documents, raw_times = documents_of(subject, case)
    layout = subject.model.layout(documents)
    # A file may lack images altogether; index -1 at padding then needs a value too.
    times = torch.tensor([*raw_times, -torch.inf])
    return Packed(layout, sequence_order(layout), times[layout.image])


def packed_integers(subject: Subject, case: str, packed: Packed) -> Results:
    """The reference's packed index tensors, rebuilt."""
    layout = packed.layout
    und, gen = layout.und, layout.gen
    no_und, no_gen = torch.zeros_like(und.block, dtype=torch.bool), torch.zeros_like(gen.block, dtype=torch.bool)
    ids = packed.pack(layout.ids, torch.full_like(layout.grid_ids, VIT_TOKEN))
    text_at = (ids != VIT_TOKEN).nonzero().flatten()
    yield "packed_text_ids", ids[text_at]
    yield "packed_text_indexes", text_at
    yield "packed_position_ids", packed.pack(und.position, gen.position)
    yield "packed_vit_token_indexes", packed.where(layout.ids == VIT_TOKEN, no_gen)
    if layout.vit is not None:
        yield "packed_vit_tokens", layout.vit.patches[layout.vit.valid]
        yield "packed_vit_position_ids", layout.vit.position_ids[layout.vit.valid]
        yield "vit_token_seqlens", layout.vit.valid.sum(1)
    latent = gen.block >= 0
    yield "packed_vae_token_indexes", packed.where(no_und, latent)
    yield "packed_latent_position_ids", layout.grid_ids[latent]
    yield "packed_timesteps", packed.raw_times[latent]
    yield "mse_loss_indexes", packed.where(no_und, layout.generated)
    labels = packed.pack(layout.labels, torch.full_like(layout.grid_ids, IGNORED))
    yield "ce_loss_indexes", (labels != IGNORED).nonzero().flatten()
    yield "packed_label_ids", labels[labels != IGNORED]
    weights = answer_weights(layout.labels)
    yield "ce_loss_weights", weights[weights > 0]
    yield "sample_lens", torch.tensor([len(order) for order in packed.orders])
    yield "sequence_length", torch.tensor(sum(len(order) for order in packed.orders))
    samples = torch.arange(len(packed.orders))[:, None] * (1 << 32)  # so that blocks of neighbours differ
    lengths = packed.pack(samples + und.block, samples + gen.block).unique_consecutive(return_counts=True)[1]
    yield "split_lens", lengths
    yield "attn_modes", packed.pack(und.mode, gen.mode)[lengths.cumsum(0) - 1]
    for sample, (mask, order) in enumerate(zip(und.cat(gen).mask()[:, 0], packed.orders, strict=True)):
        yield f"mask{sample}", mask[order][:, order]


def padded_latent(subject: Subject, case: str) -> Results:
    """All latent images of a case encoded as one zero-padded stack, as the reference's training does."""
    images = subject.golden.numbered(f"{case}.image")
    if images:
        height, width = (max(image.shape[side] for image in images) for side in (1, 2))
        padding = [(0, width - image.shape[2], 0, height - image.shape[1]) for image in images]
        stack = torch.stack([F.pad(image, pad) for image, pad in zip(images, padding, strict=True)])
        yield "padded_latent", subject.model.autoencoder.encode(stack)


def losses_and_gradients(subject: Subject, case: str, packed: Packed) -> Results:
    """One training forward and backward."""
    model, layout = subject.model, packed.layout
    noise = packed.latent_tokens(subject.golden[f"{case}.noise"])
    t = logit_normal(packed.raw_times, subject.shift)
    output = model(layout, interpolate(layout.latents, noise, t[..., None]), t)
    yield "hidden", packed.pack(output.und, output.gen)
    squared = squared_velocity_error(output.velocity, layout.latents, noise)
    yield "mse", squared[layout.generated]
    cross_entropy = token_cross_entropy(model.logits(output.und), layout.labels)
    labelled = layout.labels != IGNORED
    yield "ce", cross_entropy[labelled]
    text, flow = text_loss(cross_entropy, labelled), flow_matching_loss(squared, layout.generated)
    reweighted = text_loss(cross_entropy, answer_weights(layout.labels))
    yield "losses", torch.stack([text, flow, text + flow, reweighted])
    model.zero_grad()
    (text + flow).backward()
    gradients = gradients_of(model)
    model.zero_grad()
    for name, gradient in gradients.items():
        yield f"grad.{name}", gradient
        yield f"grad_norms.{name}", gradient.norm()
    yield "grad_global_norm", torch.stack([gradient.norm() for gradient in gradients.values()]).norm()


def gradients_of(model: Bagel) -> dict[str, Tensor]:
    """Gradients by official name, zero for what the loss did not reach."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {
        official: torch.zeros(()) if tensors[own].grad is None else tensors[own].grad.clone()
        for own, official in official_names(model).items()
    }


def training_group(case: str) -> Group:
    """The group of one packed training case."""

    def compute(subject: Subject) -> Results:
        packed = pack(subject, case)
        latent_sizes = [
            [side // subject.model.config.latent_stride for side in entry["hw_pixels"]]
            for plan in subject.golden.meta["packing_plan"][case]
            for entry in plan
            if entry["type"] == "vae_image"
        ]
        yield f"{case}.latent_shapes", torch.tensor(latent_sizes)
        with torch.enable_grad():
            gradients = losses_and_gradients(subject, case, packed)
            for name, tensor in chain(packed_integers(subject, case, packed), padded_latent(subject, case), gradients):
                yield f"{case}.{name}", tensor

    names = ("packed_vit_tokens", "vit_token_seqlens", "padded_latent", "noise")
    return Group(case, tuple(f"{case}.{name}" for name in names), compute)
