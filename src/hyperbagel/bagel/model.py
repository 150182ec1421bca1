"""BAGEL: a frozen, shared understanding stack and an exchangeable generation branch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperbagel.bagel.absent import Absent, Part
from hyperbagel.bagel.autoencoder import Autoencoder
from hyperbagel.bagel.branch import Conditions, GenerationBranch
from hyperbagel.bagel.branch_info import BranchInfo
from hyperbagel.bagel.checkpoint import Placement, load_bagel, save_bagel
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.context import Context, DecodeCache, GuidedContext, Known
from hyperbagel.bagel.embeddings import Rotation, rotation
from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.bagel.groups import in_groups, rows_of
from hyperbagel.bagel.layout import Layout
from hyperbagel.bagel.layout_builder import build_layout
from hyperbagel.bagel.mot import ExpertLayer, MoTOutput, Shapes, Streams, TrainingOutput, mot_forward
from hyperbagel.bagel.segments import Document, ImageSegment, LatentSegment, Segment, TextSegment, holds_image
from hyperbagel.bagel.transfer import moved
from hyperbagel.bagel.understanding import UnderstandingStack
from hyperbagel.bagel.vision import unpatchify


class Bagel(nn.Module):
    """BAGEL with official semantics. `generation` is the original branch; others are passed where they are used.

    checkpointing, compiled: of the layers, see `mot.mot_forward`; multiple: in training, of which the lengths of token
    streams are, by padding, so that layers meet few shapes; source: the folder it was loaded from, for messages;
    merged: what the branch says of itself that was merged into its generation weights, None where none was.

    Examples:
        >>> model = Bagel.from_pretrained(folder)
        >>> context = model.prefill([document])  # bos, three ids and eos
        >>> context.length
        5
    """

    def __init__(self, config: BagelConfig, without: Collection[Part] = ()) -> None:
        super().__init__()
        self.config = config
        self.understanding = UnderstandingStack(config)
        self.generation = GenerationBranch(config)
        # Built of parts of diffusers, which takes time to import, so not where nobody asks it.
        self.autoencoder: Autoencoder = (
            Absent("autoencoder", "") if "autoencoder" in without else Autoencoder(config.autoencoder)  # type: ignore[assignment]
        )
        self.checkpointing = False
        self.compiled: Shapes | None = None
        self.multiple = 1
        self.source: str | None = None
        self.merged: BranchInfo | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        without: Collection[Part] = (),
    ) -> Self:
        """Load an official checkpoint folder; see `checkpoint.load_bagel`."""
        return load_bagel(folder, Placement(dtype, torch.device(device), frozenset(without)), cls)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the official layout; see `checkpoint.save_bagel`."""
        save_bagel(self, folder)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.understanding.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.understanding.embed_tokens.weight.dtype

    # Images and latents

    def encode(self, images: Sequence[Tensor], noise: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Pictures (3, H, W) in [-1, 1] of any sizes to scaled latents (z, h, w), each independent of the others.

        noise: standard normal latents to sample the posterior with; None takes its mean.
        """

        def encode(members: list[int]) -> Tensor:
            stack = torch.stack([images[i] for i in members]).to(self.device, self.dtype)
            eps = None if noise is None else torch.stack([noise[i] for i in members]).to(stack)
            return self.autoencoder.encode(stack, eps)

        return in_groups([tuple(image.shape) for image in images], encode)

    def encode_documents(self, documents: Sequence[Document]) -> list[list[Segment]]:
        """The documents with every ImageSegment encoded to a LatentSegment (posterior mean)."""
        new = iter(self.latents([s for d in documents for s in d if isinstance(s, ImageSegment)]))
        return [[LatentSegment(next(new), s.loss) if isinstance(s, ImageSegment) else s for s in d] for d in documents]

    def latents(self, pictures: Sequence[ImageSegment]) -> list[Tensor]:
        """The latents (z, h, w) of pictures: those that are known, and of the others what `encode` makes of them."""
        encoded = iter(self.encode([p.pixels for p in pictures if p.latent is None]))
        return [next(encoded) if p.latent is None else p.latent.to(self.device, self.dtype) for p in pictures]

    def decode_latents(self, tokens: Tensor, grid: LatentGrid) -> list[Tensor]:
        """Denoised tokens (B, n, C) to pictures (3, H, W) in about [-1, 1]."""

        def decode(members: list[int]) -> Tensor:
            height, width = size = grid.sizes[members[0]]
            latent = unpatchify(rows_of(tokens, members)[:, : height * width], size, self.config.latent_patch_size)
            return self.autoencoder.decode(latent.to(self.dtype))

        return in_groups(grid.sizes, decode)

    def latent_grid(self, sizes: Sequence[tuple[int, int]]) -> LatentGrid:
        """The token grids for pictures of `sizes` (height, width) in pixels. Raises ValueError if one does not fit."""
        return LatentGrid.of_pictures(sizes, self.config, self.device)

    # Contexts, and passes through the layers

    def layout(self, documents: Sequence[Document], start: Tensor | None = None) -> Layout:
        """Token streams of documents without ImageSegments, on the model's device."""
        return build_layout(documents, self.config, start, self.multiple if self.training else 1).to(self.device)

    def run(
        self,
        layout: Layout,
        past: Context | None = None,
        branch: GenerationBranch | None = None,
        conditions: Conditions | None = None,
        *,
        record_layers: bool = False,
    ) -> MoTOutput:
        """The understanding stack and a generation branch (default: the original) over clean documents.

        Every latent is taken as clean (t = 0). `conditions`: those that the branch takes. With record_layers the result
        holds the residual streams that enter each layer and that leave the last one. Raises ValueError if the documents
        contain images to be generated.
        """
        if layout.generates:
            raise ValueError("a context must not contain images to be generated (loss=True)")
        t = torch.zeros_like(layout.image, dtype=torch.float32)
        return self._forward(layout, layout.latents, t, past, branch, conditions, record_layers=record_layers)

    def prefill(
        self,
        documents: Sequence[Document],
        past: Context | None = None,
        branch: GenerationBranch | None = None,
        conditions: Conditions | None = None,
    ) -> Context:
        """Key-value cache of documents (images are encoded on the way), appended to `past` where given.

        branch: what reads clean latents, the original by default; conditions: those that it takes.
        """
        layout = self.layout(self.encode_documents(documents), None if past is None else past.positions)
        return Context.of(layout, self.run(layout, past, branch, conditions), past)

    def prefill_guided(
        self,
        documents: Sequence[Document],
        *,
        text: bool = True,
        image: bool = False,
        branch: GenerationBranch | None = None,
        conditions: Conditions | None = None,
    ) -> GuidedContext:
        """Cache with the guidance variants that are asked for: without the last prompt, without images.

        The state before the last prompt is a restriction of the full cache, since nothing earlier depends on it.
        branch, conditions: as in `prefill`.
        """
        layout = self.layout(self.encode_documents(documents))
        full = Context.of(layout, self.run(layout, branch=branch, conditions=conditions))
        no_text = no_image = None
        if text:
            blocks = torch.cat([layout.und.block, layout.gen.block], 1)
            host = layout.host
            known = Known((host.block >= 0) & (host.block < host.text_cut[:, None]), host.cut_position)
            earlier = full.restrict(blocks < layout.text_cut[:, None], layout.cut_position, known)
            no_text = earlier.beginning(layout.cut_length, whole=layout.cut_whole)
        if image:
            no_image = self.prefill([[s for s in d if isinstance(s, TextSegment)] for d in documents])
        has_image = moved(torch.tensor([holds_image(document) for document in documents]), self.device)
        return GuidedContext(full, has_image, no_text, no_image)

    def velocity(
        self,
        x_t: Tensor,
        t: Tensor,
        context: Context,
        grid: LatentGrid,
        branch: GenerationBranch | None = None,
        conditions: Conditions | None = None,
    ) -> Tensor:
        """Velocity of noisy latents, one pass of `branch` (default: the original) against a context.

        x_t: (B, n, C) tokens, t: (B,) in [0, 1], grid: of the images -> v: (B, n, C), zero at padding. conditions:
        those that the branch takes. Gradients reach x_t and the branch (and the context, if it has any).
        """
        branch = branch or self.generation
        output = self.denoise_streams(x_t, t, context, grid, branch, conditions)
        velocity = branch.velocity_head(output.streams.gen)
        return velocity if grid.valid is None else velocity * grid.valid[..., None]

    def denoise_streams(
        self,
        x_t: Tensor,
        t: Tensor,
        context: Context,
        grid: LatentGrid,
        branch: GenerationBranch,
        conditions: Conditions | None = None,
        *,
        record_layers: bool = False,
    ) -> MoTOutput:
        """The layers behind `velocity`; streams: start and end of image (B, 2, D), latents (B, n, D)."""
        embeddings, tokens = self.understanding.embed_tokens.weight, self.config.tokens
        # Rows by number: ids that are brought to a device would wait for what it has to do before.
        markers = torch.stack([embeddings[tokens.start_of_image], embeddings[tokens.end_of_image]])
        gen = branch.embed(x_t, t[:, None], grid.position_ids, conditions)
        streams = Streams(markers.expand(len(x_t), -1, -1), gen)
        return mot_forward(
            self._experts(branch),
            streams,
            # One rope position for the whole image; broadcasts over its tokens.
            self._rope(context.next_position[:, None]),
            context.mask_with(grid),
            context.past if context.length else None,
            record_layers=record_layers,
            checkpointing=self.checkpointing,
            compiled=self._shapes,
        )

    @torch.no_grad()
    def decode(self, ids: Tensor, cache: DecodeCache, *, record_layers: bool = False) -> MoTOutput:
        """Append text tokens ids (B, n), causal, to the cache. `streams.und` (B, n, D) goes through `next_logits`."""
        position = cache.next_position[:, None] + torch.arange(ids.shape[1], device=ids.device)
        x = self.understanding.embed_tokens(ids)
        output = mot_forward(
            self._experts(None),
            Streams(x, x[:, :0]),
            self._rope(position),
            cache.mask(ids.shape[1]),
            cache,
            record_layers=record_layers,
        )
        cache.advance(ids.shape[1])
        return output

    def next_logits(self, stream: Tensor) -> Tensor:
        """Next-token logits of the residual stream after the last layer: (..., D) -> (..., vocabulary)."""
        return self.logits(self.understanding.norm(stream))

    def forward(self, layout: Layout, x_t: Tensor, t: Tensor) -> TrainingOutput:
        """The training forward over whole documents, noisy images included, without a cache.

        x_t: (B, Ng, C) latent tokens, t: (B, Ng) their time (0 for clean ones).
        """
        streams = self._forward(layout, x_t, t).streams
        velocity = self.generation.velocity_head(streams.gen)
        return TrainingOutput(self.understanding.norm(streams.und), self.generation.norm(streams.gen), velocity)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits of final hidden states (after the norm): (..., D) -> (..., vocabulary)."""
        output: Tensor = self.understanding.lm_head(hidden)
        return output

    def _forward(
        self,
        layout: Layout,
        latents: Tensor,
        t: Tensor,
        past: Context | None = None,
        branch: GenerationBranch | None = None,
        conditions: Conditions | None = None,
        *,
        record_layers: bool = False,
    ) -> MoTOutput:
        und = self.understanding.embed_tokens(layout.ids.clamp(min=0))
        if layout.vit is not None:
            vit, flat = self.understanding.embed_vit(layout.vit).flatten(0, 1), und.flatten(0, 1)
            if layout.vit.ragged:
                flat = F.pad(flat, (0, 0, 0, 1))  # where padding goes, to be left out
            filled = flat.index_copy(0, layout.vit.slots, vit.to(und.dtype))
            und = filled[: und.shape[0] * und.shape[1]].view_as(und)
        gen, branch = und[:, :0], (branch or self.generation) if layout.grid_ids.shape[1] else None
        if branch is not None:
            gen = branch.embed(latents, t, layout.grid_ids, conditions)
        order = layout.und.cat(layout.gen)
        mask = order.mask()
        if past is not None and past.length:
            mask = torch.cat([past.valid_mask()[:, None, None].expand(-1, -1, mask.shape[2], -1), mask], dim=-1)
        return mot_forward(
            self._experts(branch),
            Streams(und, gen),
            self._rope(order.position),
            mask,
            past.past if past is not None and past.length else None,
            record_layers=record_layers,
            checkpointing=self.checkpointing,
            compiled=None if self.compiled == "fixed" else self._shapes,  # documents are of all lengths
        )

    @property
    def _shapes(self) -> Shapes | None:
        """What layers are compiled for: graphs are of training alone, as nobody says when those of drawing end."""
        return None if self.compiled == "all layers" and not self.training else self.compiled

    def _experts(self, branch: GenerationBranch | None) -> list[tuple[ExpertLayer, ExpertLayer | None]]:
        """Both experts of all layers; branch: None where there are no latent tokens."""
        layers = self.understanding.layers
        return list(zip(layers, [None] * len(layers) if branch is None else branch.layers, strict=True))  # type: ignore[arg-type]

    def _rope(self, positions: Tensor) -> Rotation:
        llm = self.config.llm
        return rotation(positions, llm.head_dim, llm.rope_theta, self.dtype)
