"""What a golden file expects of single forwards: tables, text, ViT, autoencoder, contexts and guided velocities."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from hyperbagel.bagel.context import Context, DecodeCache, GuidedContext
from hyperbagel.bagel.embeddings import sincos_position_table
from hyperbagel.bagel.layout import Layout
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.mot import Streams
from hyperbagel.bagel.segments import Document, LatentSegment, TextSegment, ViTSegment
from hyperbagel.bagel.vision import patchify, unpatchify
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.flow.guidance import Guidance, GuidedPass

from .golden import Golden, Results, Subject, group

TIME = 0.7
"""Time of every single velocity."""
TEXT_SCALE, IMAGE_SCALE = 4.0, 1.5
"""Guidance scales, where the name of a case gives no other."""
VELOCITY = re.compile(
    r"(?P<kind>t2i|edit)\.v_cfg_text(?P<image>_img)?(_(?P<scale>\d+p\d+))?"
    r"\.(?P<renorm>global|channel|text_channel)(_min(?P<minimum>\d+(p\d+)?))?"
)


def sequence_order(layout: Layout) -> list[Tensor]:
    """For each document, where its tokens stand in [understanding, generation], in the order of the sequence."""
    order = layout.und.cat(layout.gen)
    keys = order.block * (1 << 32) + order.offset
    indices = []
    for blocks, key in zip(order.block, keys, strict=True):
        tokens = (blocks >= 0).nonzero().flatten()
        indices.append(tokens[key[tokens].argsort()])
    return indices


def final_hidden(model: Bagel, streams: Streams) -> Tensor:
    """Streams through their final norms, understanding tokens first: (B, Nu + Ng, D)."""
    return torch.cat([model.understanding.norm(streams.und), model.generation.norm(streams.gen)], 1)


def hidden_of_blocks(model: Bagel, document: Document) -> list[Tensor]:
    """Final hidden states of each block of a document, tokens in sequence order."""
    layout = model.layout([document])
    order = sequence_order(layout)[0]
    hidden = final_hidden(model, model.run(layout).streams)[0, order]
    blocks = layout.und.cat(layout.gen).block[0, order]
    return [hidden[blocks == block] for block in range(len(document))]


@group("tables", "tables.t")
def tables(subject: Subject) -> Results:
    config, golden = subject.model.config, subject.golden
    yield "tables.latent_pos", sincos_position_table(config.max_latent_size, config.llm.hidden_size)
    yield "tables.vit_pos", sincos_position_table(config.vit.patches_per_side, config.llm.hidden_size)
    embedder = subject.model.generation.time_embedder
    yield "tables.t_sinusoid", embedder.sinusoid(golden["tables.t"])
    yield "tables.t_embed", embedder(golden["tables.t"])


@group("prefill", "prefill.text_ids")
def prefill(subject: Subject) -> Results:
    model = subject.model
    output = model.run(model.layout([[TextSegment(subject.golden["prefill.text_ids"])]]), record_layers=True)
    for i, layer in enumerate(output.layers[1:]):
        yield f"prefill.layer{i}", layer.und[0]
    hidden = model.understanding.norm(output.streams.und[0])
    yield "prefill.hidden", hidden
    yield "prefill.logits", model.logits(hidden)


@group("und", "und.image", "und.text_ids", "und.decode_tokens")
def understanding(subject: Subject) -> Results:
    model, golden = subject.model, subject.golden
    document = [ViTSegment(golden["und.image"]), TextSegment(golden["und.text_ids"])]
    hidden = hidden_of_blocks(model, document)
    yield "und.vit_block_hidden", hidden[0]
    yield "und.text_hidden", hidden[1]
    context, steps = model.prefill([document]), len(golden["und.decode_tokens"])
    tokens = decode_text(model, context, DecodingSettings(max_tokens=steps, stop=()))[0]
    yield "und.decode_tokens", torch.tensor(tokens)
    cache = DecodeCache(context, steps)
    fed = [model.config.tokens.bos, *tokens[:-1]]
    streams = [model.decode(torch.tensor([[token]]), cache).streams.und[0] for token in fed]
    yield "und.decode_logits", model.next_logits(torch.cat(streams))


@group("vit", "vit.image0")
def vit(subject: Subject) -> Results:
    und = subject.model.understanding
    images = subject.golden.numbered("vit.image")
    batch = subject.model.layout([[ViTSegment(image)] for image in images]).vit
    assert batch is not None
    yield "vit.patches", batch.patches[batch.valid]
    yield "vit.position_ids", batch.position_ids[batch.valid]
    yield "vit.seqlens", batch.valid.sum(1)
    tower = und.vision(batch.patches, batch.position_ids, batch.valid)
    yield "vit.tower", tower[batch.valid]
    yield "vit.connector", und.connector(tower)[batch.valid]
    yield "vit.embeds", und.embed_vit(batch)[batch.valid]


@group("ae", "ae.image", "ae.noise")
def autoencoder(subject: Subject) -> Results:
    golden, network = subject.golden, subject.model.autoencoder
    yield "ae.moments", torch.cat(network.moments(golden["ae.image"][None]), 1)[0]
    (mean,) = subject.model.encode([golden["ae.image"]])
    yield "ae.encode_mean", mean
    yield "ae.encode_sample", subject.model.encode([golden["ae.image"]], [golden["ae.noise"]])[0]
    yield "ae.decode", network.decode(golden.cases.get("ae.encode_mean", mean)[None])[0]


def edit_document(golden: Golden) -> list[LatentSegment | ViTSegment | TextSegment]:
    """The editing context: clean latent, ViT image, instruction."""
    return [
        LatentSegment(golden["edit.vae_latent"]),
        ViTSegment(golden["edit.vit_image"]),
        TextSegment(golden["edit.text_ids"]),
    ]


def contexts_of(subject: Subject, kind: str) -> GuidedContext:
    """The prefilled contexts of `t2i` or `edit`, with both guidance variants."""
    golden = subject.golden
    document = [TextSegment(golden["t2i.text_ids"])] if kind == "t2i" else edit_document(golden)
    return subject.model.prefill_guided([document], text=True, image=True)


def guided_velocities(subject: Subject, kind: str, contexts: GuidedContext) -> Results:
    """Every guided velocity of `t2i` or `edit`; scales, renorm and its minimum are read off the names."""
    model, golden = subject.model, subject.golden
    x_t, grid = golden[f"{kind}.x_t"][None], model.latent_grid([tuple(golden[f"{kind}.size"].tolist())])
    for name in golden.cases:
        match = VELOCITY.fullmatch(name)
        if match and match["kind"] == kind:
            scale = float(match["scale"].replace("p", ".")) if match["scale"] else TEXT_SCALE
            minimum = float(match["minimum"].replace("p", ".")) if match["minimum"] else 0.0
            guidance = Guidance(scale, IMAGE_SCALE if match["image"] else 1.0, match["renorm"], minimum)
            guided = GuidedPass.of(contexts, grid, guidance)
            yield name, guided.velocity(model, x_t, torch.tensor([TIME]), guidance)[0]


@group("t2i", "t2i.text_ids", "t2i.x_t", "t2i.size")
def text_to_image(subject: Subject) -> Results:
    model, golden = subject.model, subject.golden
    contexts = contexts_of(subject, "t2i")
    x_t, t = golden["t2i.x_t"][None], torch.tensor([TIME])
    grid = model.latent_grid([tuple(golden["t2i.size"].tolist())])
    yield "t2i.x_t_latent", unpatchify(x_t[0], grid.sizes[0], model.config.latent_patch_size)
    if "t2i.x_t_latent" in golden.cases:
        yield "t2i.x_t", patchify(golden["t2i.x_t_latent"], model.config.latent_patch_size)
    yield "t2i.v_cond", model.velocity(x_t, t, contexts.full, grid)[0]
    assert contexts.no_text is not None
    yield "t2i.v_uncond", model.velocity(x_t, t, contexts.no_text, grid)[0]
    output = model.denoise_streams(x_t, t, contexts.full, grid, model.generation, record_layers=True)
    for i, layer in enumerate(output.layers[1:]):
        yield f"t2i.layer{i}", _query_block(torch.cat(layer, 1))
    yield "t2i.hidden", _query_block(final_hidden(model, output.streams))
    yield from guided_velocities(subject, "t2i", contexts)


def _query_block(tokens: Tensor) -> Tensor:
    """[start, end, latents] of one image -> [start, latents, end]."""
    return torch.cat([tokens[0, :1], tokens[0, 2:], tokens[0, 1:2]])


@group("edit", "edit.vae_latent", "edit.vit_image", "edit.text_ids", "edit.x_t", "edit.size")
def editing(subject: Subject) -> Results:
    model, golden = subject.model, subject.golden
    if "edit.vae_image" in golden.cases:
        yield "edit.vae_latent", model.encode([golden["edit.vae_image"]])[0]
        yield "edit.size", torch.tensor(golden["edit.vae_image"].shape[1:])
    for name, hidden in zip(
        ("vae_block", "vit_block", "text"), hidden_of_blocks(model, edit_document(golden)), strict=True
    ):
        yield f"edit.{name}_hidden", hidden
    contexts = contexts_of(subject, "edit")
    variants: list[Context] = [c for c in (contexts.full, contexts.no_text, contexts.no_image) if c is not None]
    lengths = [[int(c.valid_mask().sum()), int(c.next_position)] for c in variants]
    yield "edit.context_lens", torch.tensor(lengths)
    grid = model.latent_grid([tuple(golden["edit.size"].tolist())])
    for name, context in zip(("v_cond", "v_text_uncond", "v_img_uncond"), variants, strict=True):
        yield f"edit.{name}", model.velocity(golden["edit.x_t"][None], torch.tensor([TIME]), context, grid)[0]
    yield from guided_velocities(subject, "edit", contexts)


GROUPS = [tables, prefill, understanding, vit, autoencoder, text_to_image, editing]
INPUTS = {
    "tables.t",
    *("prefill.text_ids", "und.image", "und.text_ids", "ae.image", "ae.noise"),
    *("t2i.text_ids", "t2i.size", "edit.text_ids", "edit.x_t", "edit.raw_rgb"),
}
"""Inputs that nothing computes (pictures of `vit` and of the training cases are numbered)."""
