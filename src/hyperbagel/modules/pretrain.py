"""BAGEL's own training objective: flow matching on images, cross-entropy on text, in interleaved documents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.context import GuidedContext
from hyperbagel.bagel.fresh import restart_generation
from hyperbagel.bagel.layout import IGNORED
from hyperbagel.bagel.segments import Document, DocumentBatch, LatentSegment, Segment, TextSegment
from hyperbagel.flow.schedule import velocity_target
from hyperbagel.losses.flow_matching import flow_matching_loss, squared_velocity_error
from hyperbagel.losses.term import LossTerm, Step
from hyperbagel.losses.text import answer_weights, text_loss, token_cross_entropy
from hyperbagel.modules.loss_terms import TakesLossTerms
from hyperbagel.modules.noising import noisy_latents, noisy_pictures
from hyperbagel.modules.randomness import step_generator
from hyperbagel.modules.schedules import WarmupStableDecay
from hyperbagel.modules.stage import Compute, LearnsFrom, Samplers, Stage

Part = Literal["both", "understanding", "generation"]


@dataclass(frozen=True)
class PretrainingLoss:
    """Weights and times of the objective."""

    ce_weight: float = 1.0
    """Weight of the text term."""
    mse_weight: float = 1.0
    """Weight of the image term."""
    timestep_shift: float = 3.0
    """Timestep shift of the logit-normal training times."""
    reweight_answers: bool = False
    """Weight an answer's tokens by 1 / sqrt(length), so that long answers do not drown short ones."""
    draws: int = 1
    """Noisy versions of a picture per update, where documents end with the only one to be drawn: each is another
    sample, for the cost of the picture's tokens alone."""

    def __post_init__(self) -> None:
        """Refuse to draw nothing."""
        if self.draws < 1:
            raise ValueError(f"loss.draws is {self.draws}: a picture needs at least one noisy version")


@dataclass(frozen=True)
class Term:
    """One term of the objective on this rank, unreduced: `total` of `count` tokens (or weights)."""

    total: Tensor
    count: Tensor


_LEARNS_FROM: dict[Part, tuple[LearnsFrom, ...]] = {
    "both": ("text", "image"),
    "understanding": ("text",),
    "generation": ("image",),
}
_LOSS, _SAMPLERS, _COMPUTE = PretrainingLoss(), Samplers(), Compute()


class Pretraining(Stage, TakesLossTerms):
    """Trains a whole BAGEL, or one side of it with the other frozen.

    Args:
        model: checkpoint folder to start from.
        optimizer: of the named parameters that train.
        scheduler: learning-rate schedule, stepped every update.
        train: which side trains; the autoencoder and the position tables never do.
        start: what the generation side starts as: as it is in `model`, fresh, or as BAGEL's authors began, with copies
            of the understanding experts.
        loss: weights and times of the objective.
        samplers: how pictures are drawn for evaluation.
        compute: speed, memory and type of the weights.
        seed: of noise, times and fresh weights.
    """

    branch: GenerationBranch | None = None

    def __init__(
        self,
        model: str,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable = WarmupStableDecay,
        train: Part = "both",
        start: Literal["own", "fresh", "understanding"] = "own",
        loss: PretrainingLoss = _LOSS,
        samplers: Samplers = _SAMPLERS,
        compute: Compute = _COMPUTE,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.folder = model
        self.model = compute.load(model)
        if start != "own":
            restart_generation(self.model, seed, copies=start == "understanding")
        self.train_part: Part = train
        self.learns_from = _LEARNS_FROM[train]
        self.loss, self.seed = loss, seed
        self.sampler, self.editing_sampler = samplers.generation, samplers.editing
        self._optimizer, self._scheduler = optimizer, scheduler
        self.model.autoencoder.requires_grad_(False)
        self.model.understanding.requires_grad_(train != "generation")
        self.model.generation.requires_grad_(train != "understanding")
        self.leave_out_frozen_parts()

    def add_loss(self, term: LossTerm) -> None:
        """Add a loss term on batches of documents that end with the only picture to be drawn; others go without it.

        Raises ValueError unless only generation trains, and for a taken name.
        """
        if self.train_part != "generation" or term.name in ("text", "image"):
            raise ValueError(f"loss term {term.name!r}: Pretraining takes terms of other names, with train: generation")
        super().add_loss(term)
        term.attach(self.model, self.folder)

    def objective(self, batch: DocumentBatch, generator: torch.Generator) -> dict[str, Term]:
        """The terms `text` and `image` of those sides that train, unreduced; a batch without one has a count of 0."""
        with torch.no_grad():
            documents = self.model.encode_documents(batch.documents)
        if self._only_draws(documents):
            return self._denoising_terms(batch, documents, generator)
        layout = self.model.layout(documents)
        layout = replace(layout, latents=layout.latents.float())  # noise is added in full precision
        x_t, t, noise = noisy_latents(layout, self.loss.timestep_shift, generator)
        output = self.model(layout, x_t, t)
        terms = {}
        if self.train_part != "generation":
            terms["text"] = self._text_term(output.und, layout.labels)
        if self.train_part != "understanding":
            error, generated = squared_velocity_error(output.velocity, layout.latents, noise), layout.generated
            terms["image"] = Term(_flow_sum(error, generated), generated.sum())
        return terms

    def _only_draws(self, documents: list[list[Segment]]) -> bool:
        """Whether there is nothing to learn from but the picture that ends each document."""
        texts = any(isinstance(segment, TextSegment) and segment.loss for document in documents for segment in document)
        learnt = {"both": not texts, "generation": True, "understanding": False}[self.train_part]
        return learnt and all(_draws_last(document) for document in documents)

    def _text_term(self, hidden: Tensor, labels: Tensor) -> Term:
        """Cross-entropy of the labelled tokens. hidden: (B, N, D) after the final norm, labels: (B, N)."""
        labelled = labels != IGNORED
        weights = answer_weights(labels) if self.loss.reweight_answers else labelled.float()
        cross_entropy = token_cross_entropy(self.model.logits(hidden[labelled]), labels[labelled])
        weights = weights[labelled]
        return Term(text_loss(cross_entropy, weights, total=torch.ones((), device=weights.device)), weights.sum())

    def _denoising_terms(
        self, batch: DocumentBatch, documents: list[list[Segment]], generator: torch.Generator
    ) -> dict[str, Term]:
        """The image term of documents that end with the picture to be drawn, equal to that of the whole forward.

        Nothing sees that picture, so its tokens run against a cache of what is before. Where understanding is frozen,
        only clean latents in there depend on what trains; without them, the cache needs no gradient. Added loss terms
        follow.

        In training, all noisy versions of a picture share the cache.
        """
        model, draws = self.model, self.loss.draws if self.training else 1
        targets = [last.latent for *_, last in documents if isinstance(last, LatentSegment)]
        pictures = noisy_pictures(model, targets, draws, self.loss.timestep_shift, generator)
        conditions: list[Document] = [document[:-1] for document in documents]
        clean = any(isinstance(segment, LatentSegment) for document in conditions for segment in document)
        learns = clean or self.train_part == "both"
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            context = model.prefill(conditions)
            if draws > 1:
                context = context.rows(torch.arange(len(documents), device=model.device).repeat(draws))
        output = model.denoise_streams(
            pictures.x_t, pictures.t, context, pictures.grid, model.generation, record_layers=bool(self.loss_terms)
        )
        velocity, generated = model.generation.velocity_head(output.streams.gen), pictures.generated
        error, count = squared_velocity_error(velocity, pictures.x_0, pictures.noise), generated.sum()
        terms = {"image": Term(_flow_sum(error, generated), count)}
        if self.training and self.loss_terms:
            step = Step(
                model=model,
                batch=batch.repeat(draws),
                contexts=GuidedContext(context),
                grid=pictures.grid,
                student_step=int(self.student_step),
                scales=None,
                x_t=pictures.x_t,
                t=pictures.t,
                velocity=velocity * generated[..., None],
                output=velocity,
                target=velocity_target(pictures.x_0, pictures.noise),
                layers=tuple(streams.gen for streams in output.layers[1:]),
            )
            terms |= {term.name: Term(term(step) * count, count) for term in self.loss_terms}
        return terms

    def _reduced(self, terms: dict[str, Term]) -> dict[str, Tensor]:
        """Means over the tokens of all ranks. Ranks' gradients are averaged, hence the mean count and not the sum."""
        counts = torch.stack([term.count.float() for term in terms.values()])
        counts = self.trainer.strategy.reduce(counts, reduce_op="mean") if self.trainer.world_size > 1 else counts
        pairs = zip(terms.items(), counts, strict=True)
        return {name: term.total / count for (name, term), count in pairs if count > 0}

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> Tensor:
        """One update on a batch of documents of any kind. Raises ValueError for one without anything to learn."""
        step = int(self.student_step)
        generator = step_generator(self.seed, self.global_rank, step, purpose=str(batch_idx))
        means = self._reduced(self.objective(batch, generator))
        if not means:
            raise ValueError(
                f"the batch of source {batch.source!r} ({batch.keys[0]}, ...) has nothing to learn with "
                f"train={self.train_part!r}: choose sources with text or image losses that fit"
            )
        for name, value in means.items():
            self.log(f"loss/{name}", value, prog_bar=True, batch_size=len(batch), sync_dist=True)
        weights = {"text": self.loss.ce_weight, "image": self.loss.mse_weight}
        weights |= {term.name: term.weight for term in self.loss_terms}
        return torch.stack([weights[name] * value for name, value in means.items()]).sum()

    def validation_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """The same losses, at the same noise and times in every validation."""
        generator = step_generator(self.seed, self.global_rank, batch_idx, purpose="validation")
        for name, term in self.objective(batch, generator).items():
            count = int(term.count)
            if count:
                self.log(f"val/loss/{name}", term.total / term.count, batch_size=count, sync_dist=True)

    def test_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One optimizer over the named parameters that train, those of added loss terms among them."""
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        optimizer = self._optimizer(named + self.term_parameters("student"))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._scheduler(optimizer), "interval": "step"}}


def _draws_last(document: Document) -> bool:
    """Whether the last segment is the only picture to be generated."""
    drawn = [isinstance(segment, LatentSegment) and segment.loss for segment in document]
    return bool(drawn) and drawn[-1] and sum(drawn) == 1


def _flow_sum(squared_error: Tensor, generated: Tensor) -> Tensor:
    """Flow-matching loss summed over tokens instead of averaged."""
    return flow_matching_loss(squared_error, generated, count=generated.new_ones((), dtype=torch.float32))
