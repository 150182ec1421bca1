"""`hyperbagel data ...` by a model: its answers to shards, its hidden states over them, their tokens and phrases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hyperbagel.draft.config import DraftConfig
from hyperbagel.files import check_file, check_folder
from hyperbagel.pipeline.device import Device
from hyperbagel.pipeline.loading import check_files, load_model, model_folder

if TYPE_CHECKING:
    from hyperbagel.bagel.model import Bagel
    from hyperbagel.datamodules.latent_writer import LatentSummary
    from hyperbagel.datamodules.pipeline import DocumentBuilder
    from hyperbagel.datamodules.regenerate import RegenerationSummary

_DEVICE, _DRAFT = Device(), DraftConfig()


def regenerate(
    shards: str,
    out: Path,
    model: str = "scenes",
    answer_prefix: str = "",
    batch_size: int = 16,
    max_tokens: int = 256,
    keep_long: bool = False,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    draft: str | None = None,
    device: Device = _DEVICE,
) -> RegenerationSummary:
    """Let a model answer the documents of shards anew: what its draft head learns from.

    A run that was stopped goes on when it is repeated: finished shards and answers that are there are kept.

    Args:
        shards: a brace pattern such as data/train-{000000..000009}.tar, one file, or a folder.
        out: folder for the new shards, which have the names of the old ones.
        model: checkpoint folder, or the name of a model that comes with the package.
        answer_prefix: what the model is made to begin its answers with; not part of the written ones.
        batch_size: documents answered at once; where one is finished, the next takes its place.
        max_tokens: longest answer; documents with a longer one are dropped, since its end is not the model's own.
        keep_long: keep the beginnings of longer answers instead; right for draft heads, wrong for pretraining.
        temperature: 0 always takes the likeliest token; higher values vary more.
        top_p: sample among the likeliest tokens that together have this probability.
        seed: of the sampling.
        draft: file or name of a draft head, such as scenes/draft, or of phrases, which makes it faster.
        device: where and how to compute.
    """
    from hyperbagel.datamodules import regenerate as answering
    from hyperbagel.decoding.loading import load_proposing

    check_folder(out)
    check_files(draft=draft)
    bagel, builder = _with_builder(model, answer_prefix, device)
    settings = answering.RegenerationSettings(batch_size, max_tokens, keep_long, temperature, top_p, seed)
    return answering.regenerate(bagel, builder, shards, out, settings, load_proposing(draft, bagel))


def features(
    shards: str,
    out: Path,
    model: str = "scenes",
    draft: DraftConfig = _DRAFT,
    answer_prefix: str = "",
    batch_size: int = 16,
    device: Device = _DEVICE,
) -> None:
    """Store a model's hidden states over the documents of shards: a draft head then trains without running the model.

    Pays where documents are read several times. They are stored in bfloat16, (entries * width) * 2 bytes per token.

    Args:
        shards: a brace pattern such as data/train-{000000..000009}.tar, one file, or a folder.
        out: folder for the feature shards, for the setting `train` of `FeatureDataModule`.
        model: checkpoint folder, or the name of a model that comes with the package.
        draft: the head that is to be trained, which decides what is stored.
        answer_prefix: what answers begin with, as it will be when decoding.
        batch_size: documents run at once.
        device: where and how to compute.
    """
    from hyperbagel.datamodules.features import DocumentReader
    from hyperbagel.draft.store import write_features

    check_folder(out)
    bagel, builder = _with_builder(model, answer_prefix, device)
    reader = DocumentReader(shards, builder, batch_size)
    tokens = write_features(bagel, reader, draft.entries(bagel.config.llm), out)
    print(
        f"{out}: {tokens:,} tokens of {reader.documents:,} documents written; left out: {reader.without_answers:,} "
        f"without answers, {reader.skipped:,} unusable"
    )


def latents(
    shards: str, out: Path, model: str = "scenes", batch_size: int = 16, device: Device = _DEVICE
) -> LatentSummary:
    """Store the latents of pictures beside them: stages that draw then train without running the autoencoder.

    They are used wherever they are found, and fit the autoencoder and the picture sizes of the model that made them;
    2 bytes a number, half a megabyte for 1,024 x 1,024 pixels of BAGEL-7B.

    Args:
        shards: a brace pattern such as data/train-{000000..000009}.tar, one file, or a folder.
        out: folder for the new shards, which have the names of the old ones and all that is in them.
        model: checkpoint folder, or the name of a model that comes with the package.
        batch_size: documents whose pictures are encoded at once.
        device: where and how to compute.
    """
    from hyperbagel.datamodules.latent_writer import write_latents

    check_folder(out)
    bagel, builder = _with_builder(model, "", device)
    return write_latents(bagel, builder, shards, out, batch_size)


def vocabulary(shards: str, out: Path, model: str = "scenes", size: int = 8192) -> None:
    """Choose the tokens that a draft head may propose: the most frequent ones in the answers of shards.

    Args:
        shards: a brace pattern such as data/train-{000000..000009}.tar, one file, or a folder.
        out: JSON file to write, for the setting `vocabulary` of a draft training.
        model: checkpoint folder, or the name of a model that comes with the package.
        size: number of tokens; with fewer a draft step is faster, and what is left out is never proposed.
    """
    from hyperbagel.bagel.tokenizer import Tokenizer
    from hyperbagel.datamodules.vocabulary import answer_vocabulary
    from hyperbagel.draft.vocabulary import write_vocabulary

    check_file(out)
    tokenizer = Tokenizer.from_pretrained(model_folder(model))
    ids, share = answer_vocabulary(shards, tokenizer, size)
    write_vocabulary(ids, out)
    print(f"{out}: {len(ids):,} of {tokenizer.size:,} tokens, which are {share:.2%} of those in the answers")


def phrases(shards: str, out: Path, model: str = "scenes", answer_prefix: str = "") -> None:
    """Count the phrases of answers: speculative decoding proposes them where it is told to look them up.

    Args:
        shards: a brace pattern such as data/train-{000000..000009}.tar, one file, or a folder.
        out: safetensors file to write, for the setting `lookup.phrases`.
        model: checkpoint folder, or the name of a model that comes with the package.
        answer_prefix: what answers begin with, as it will be when decoding.
    """
    from hyperbagel.bagel.tokenizer import Tokenizer
    from hyperbagel.datamodules.vocabulary import answer_phrases
    from hyperbagel.draft.phrases import save_phrases

    check_file(out)
    found = answer_phrases(shards, Tokenizer.from_pretrained(model_folder(model)), answer_prefix)
    save_phrases(found, out)
    print(f"{out}: what follows {len(found):,} sequences of tokens")


def _with_builder(model: str, answer_prefix: str, device: Device) -> tuple[Bagel, DocumentBuilder]:
    """A model, and what makes documents of samples as it reads them."""
    from hyperbagel.datamodules.pipeline import DocumentBuilder, Formatting

    bagel, _ = load_model(model, device)
    return bagel, DocumentBuilder(Formatting(answer_prefix=answer_prefix).for_model(model_folder(model)))
