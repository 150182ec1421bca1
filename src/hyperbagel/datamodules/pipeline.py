"""From a raw sample to the segments the model reads: pictures resized, texts tokenised, conditions expanded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hyperbagel.bagel.checkpoint import read_config
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.images import ImageError, ImageTransform, load_image
from hyperbagel.bagel.shipped import resolve
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.datamodules.documents import ImagePart, InterleavedDocument
from hyperbagel.datamodules.latents import autoencoder_of, stored_latent
from hyperbagel.datamodules.shards import Member, Sample
from hyperbagel.datamodules.skipped import Skip, SkippedSampleError, image_skip

Kind: TypeAlias = Literal["text", "vit", "image", "dropped"]


@dataclass(frozen=True)
class CondDropout:
    """Probabilities with which a block without loss is dropped from a document that generates pictures.

    Independent for each block; a picture given as condition is two blocks.
    """

    text: float = 0.1
    """Probability for a text."""
    vit: float = 0.3
    """Probability for a picture as the ViT sees it."""
    image: float = 0.3
    """Probability for a picture as clean latent."""

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        if not all(0 <= p <= 1 for p in (self.text, self.vit, self.image)):
            raise ValueError(f"dropout probabilities must be in [0, 1], got {self}")


@dataclass(frozen=True)
class Formatting:
    """How documents become segments.

    Args:
        tokenizer: folder of a Hugging Face tokenizer; None for that of the model.
        latent: resize rules of the autoencoder's pictures; None for those of the model.
        vit: resize rules of the ViT's pictures; None for those of the model.
        max_tokens: longer documents are skipped (image blocks count with their two delimiters).
        answer_prefix: what the model is made to begin its answers with, as chat models expect (such as
            "assistant\\n"); it is put before texts with loss and not learnt.
        autoencoder: fingerprint of the autoencoder whose latents are used where they are stored beside pictures; None
            for that of the model.
    """

    tokenizer: str | None = None
    latent: ImageTransform | None = None
    vit: ImageTransform | None = None
    max_tokens: int = 16_384
    answer_prefix: str = ""
    autoencoder: str | None = None

    def for_model(self, folder: str | Path) -> Formatting:
        """The same for the model of a checkpoint folder, which decides what was left open.

        Raises ValueError for pictures or tokens that the model cannot read, CheckpointError for what is no such folder.
        """
        config = read_config(resolve(folder))
        if self.latent is not None:
            limit = config.max_latent_size * config.latent_stride
            check_pictures("formatting.latent", self.latent, config.latent_stride, limit)
        if self.vit is not None:
            check_vit_pictures("formatting.vit", self.vit, config)
        if self.tokenizer is not None:
            tokenizer = Tokenizer.from_pretrained(self.tokenizer)
            if tokenizer.tokens != config.tokens or tokenizer.size > config.llm.vocab_size:
                raise ValueError(
                    f"formatting.tokenizer: {self.tokenizer} has {tokenizer.size} tokens, {tokenizer.tokens}, but the "
                    f"model {folder} takes up to {config.llm.vocab_size}, {config.tokens}; leave the setting out for "
                    "the model's own"
                )
        return replace(
            self,
            tokenizer=self.tokenizer or str(folder),
            latent=self.latent or config.vae_transform,
            vit=self.vit or config.vit_transform,
            autoencoder=self.autoencoder or autoencoder_of(folder),
        )


def check_pictures(setting: str, transform: ImageTransform, stride: int, largest: int) -> None:
    """Refuse resize rules whose pictures a model cannot read.

    setting: where they come from; stride: sides are multiples of it; largest: longest side, in pixels.
    Raises ValueError that names all three.
    """
    if transform.stride % stride or transform.max_size > largest:
        raise ValueError(
            f"{setting}: max_size {transform.max_size} and stride {transform.stride} do not fit the model, which reads "
            f"pictures of at most {largest} pixels a side, in multiples of {stride}; leave the setting out for the "
            "model's own"
        )


def check_vit_pictures(setting: str, transform: ImageTransform, config: BagelConfig) -> None:
    """Refuse resize rules whose pictures a model's ViT cannot read; raises like `check_pictures`."""
    check_pictures(setting, transform, config.vit.patch_size, config.vit.patches_per_side * config.vit.patch_size)


@dataclass(frozen=True, slots=True)
class Block:
    """A segment before it is a tensor.

    data: (n,) int64 token ids of a text, (3, H, W) uint8 of a picture, None for a dropped picture; prefix: number of
    ids at the beginning of a text with loss that are not learnt; latent: (z, h, w) float16 of a picture, where stored.
    """

    kind: Kind
    data: NDArray[Any] | None = None
    loss: bool = False
    prefix: int = 0
    latent: NDArray[np.float16] | None = None


@dataclass(frozen=True, slots=True)
class BuiltDocument:
    """The blocks of one document. tokens: its length in the model, delimiters included.

    Examples:
        >>> [block.kind for block in built.blocks]
        ['text', 'image']
    """

    key: str
    blocks: tuple[Block, ...]
    meta: dict[str, Any]
    tokens: int


def keyed_random(seed: int, turn: int, key: str) -> Random:
    """Random numbers that depend on the sample and on how often its source was read, not on who reads it when."""
    return Random(int.from_bytes(blake2b(f"{seed}/{turn}/{key}".encode(errors="replace"), digest_size=8).digest()))


class DocumentBuilder:
    """Builds documents as BAGEL reads them.

    In a document that generates pictures, a given picture enters as clean latent image and then as ViT image (resized
    from the former), a picture to be generated as noisy image, followed by its clean copies if something learnt comes
    later. In a document for understanding every picture is a ViT image only.
    Raises ValueError for a formatting that leaves something open (`Formatting.for_model` closes it), FileNotFoundError
    or TokenizerError for a tokenizer that cannot be used.
    """

    def __init__(self, formatting: Formatting) -> None:
        if formatting.tokenizer is None or formatting.latent is None or formatting.vit is None:
            unset = [name for name in ("tokenizer", "latent", "vit") if getattr(formatting, name) is None]
            raise ValueError(
                f"formatting leaves {', '.join(unset)} open, and there is no stage with a model's folder to take it "
                "from; set it"
            )
        self.formatting, self.latent, self.vit = formatting, formatting.latent, formatting.vit
        self.tokenizer = Tokenizer.from_pretrained(formatting.tokenizer)
        self.answer_prefix = self.tokenizer.encode(formatting.answer_prefix, control=True).numpy()

    def build(
        self, sample: Sample, vit: ImageTransform | None = None, dropout: tuple[CondDropout, Random] | None = None
    ) -> BuiltDocument:
        """One document; vit: other rules than usual for ViT images; dropout: with its source of random numbers.

        Raises SkippedSampleError for a document that cannot be used.
        """
        document = sample.document()
        blocks = list(self._blocks(document, sample.members, vit or self.vit))
        if dropout is not None and document.generates:
            blocks = list(_drop(blocks, *dropout))
        tokens = sum(self._tokens(block, vit or self.vit) for block in blocks)
        if tokens > self.formatting.max_tokens:
            raise SkippedSampleError(Skip.TOO_LONG, f"{tokens} tokens, over the limit of {self.formatting.max_tokens}")
        return BuiltDocument(sample.key, tuple(blocks), document.meta, tokens)

    def _blocks(
        self, document: InterleavedDocument, members: Mapping[str, Member], vit: ImageTransform
    ) -> Iterator[Block]:
        pictures = {image.file: member_picture(image.file, members[image.file]) for image in document.images}
        last_loss = max((i for i, part in enumerate(document.parts) if part.loss), default=-1)
        for i, part in enumerate(document.parts):
            if not isinstance(part, ImagePart):
                ids = self.tokenizer.encode(part.text).numpy()
                # Encoded apart, as decoding continues the prefix: the two never share a token.
                yield self._answer(ids) if part.loss else Block("text", ids)
            elif not document.generates:
                yield Block("vit", pixels_of(vit.resize(pictures[part.file], images=len(document.images))))
            else:
                resized = self.latent.resize(pictures[part.file])
                pixels = pixels_of(resized)
                autoencoder, size = self.formatting.autoencoder, (resized.height, resized.width)
                latent = None if autoencoder is None else stored_latent(members, part.file, autoencoder, size)
                if part.loss:
                    yield Block("image", pixels, loss=True, latent=latent)
                if not part.loss or i < last_loss:
                    yield Block("image", pixels, latent=latent)
                    yield Block("vit", pixels_of(vit.resize(resized)))

    def _answer(self, ids: NDArray[np.int64]) -> Block:
        prefix = self.answer_prefix
        return Block("text", np.concatenate([prefix, ids]), loss=True, prefix=len(prefix))

    def _tokens(self, block: Block, vit: ImageTransform) -> int:
        if block.data is None:
            return 0
        if block.kind == "text":
            return len(block.data) + 2
        stride = vit.stride if block.kind == "vit" else self.latent.stride
        return (block.data.shape[1] // stride) * (block.data.shape[2] // stride) + 2


def _drop(blocks: list[Block], dropout: CondDropout, random: Random) -> Iterator[Block]:
    """A dropped text vanishes, of a dropped picture the step in rope position stays."""
    chances = {"text": dropout.text, "vit": dropout.vit, "image": dropout.image}
    for block in blocks:
        if block.loss or random.random() >= chances[block.kind]:
            yield block
        elif block.kind != "text":
            yield Block("dropped")


def member_picture(name: str, member: object) -> Image.Image:
    """A picture member of a sample, encoded or drawn, as RGB; name: for messages. Raises SkippedSampleError."""
    if isinstance(member, np.ndarray):
        if member.dtype != np.uint8 or member.ndim != 3 or member.shape[2] != 3:
            raise SkippedSampleError(Skip.BAD_SCHEMA, f"{name!r} must be (H, W, 3) uint8, not {member.shape}")
        return Image.fromarray(member)
    if not isinstance(member, bytes):
        raise SkippedSampleError(Skip.BAD_SCHEMA, f"{name!r} must be bytes or an array, not {type(member).__name__}")
    try:
        return load_image(member, name=repr(name))
    except ImageError as error:
        raise image_skip(error) from error


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """A picture as (3, H, W) uint8."""
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))
