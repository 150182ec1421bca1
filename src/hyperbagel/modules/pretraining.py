"""BAGEL's own training objective: flow matching on images, cross-entropy on text, in interleaved documents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hyperbagel.bagel.build.initial import restart_generation
from hyperbagel.bagel.context import GuidedContext
from hyperbagel.bagel.layout import Layout
from hyperbagel.bagel.segments import Document, DocumentBatch, LatentSegment, Segment, TextSegment
from hyperbagel.bagel.transfer import moved
from hyperbagel.flow.randomness import step_generator
from hyperbagel.flow.schedule import velocity_target
from hyperbagel.losses.base import LossTerm, Step
from hyperbagel.losses.flow_matching import flow_matching_loss, squared_velocity_error
from hyperbagel.losses.text import answer_weights, text_loss, token_cross_entropy
from hyperbagel.training.networks import Training
from hyperbagel.training.noisy_pictures import noisy_latents, noisy_pictures
from hyperbagel.training.stage import LearnsFrom, Stage, StageSettings

Part = Literal["both", "understanding", "generation"]


@dataclass(frozen=True, kw_only=True)
class PretrainingMethod:
    """What trains, from what, and the weights and times of the objective."""

    train: Part = "both"
    """Side that trains; the autoencoder and the position tables never do."""
    start: Literal["own", "fresh", "understanding"] = "own"
    """What the generation side starts as: as it is in `model`, fresh, or as BAGEL's authors began, with copies of the
    understanding experts."""
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
            raise ValueError(f"method.draws is {self.draws}: a picture needs at least one noisy version")


@dataclass(frozen=True)
class Term:
    """One term of the objective on this rank, unreduced: `total` of `count` tokens (or weights). present: whether there
    are any, told without asking the device."""

    total: Tensor
    count: Tensor
    present: bool = True


_LEARNS_FROM: dict[Part, tuple[LearnsFrom, ...]] = {
    "both": ("text", "image"),
    "understanding": ("text",),
    "generation": ("image",),
}


class Pretraining(Stage):
    """Trains a whole BAGEL, or one side of it with the other frozen.

    Args:
        model: checkpoint folder to start from.
        method: what trains, from what, and the objective.
        student: how it is trained.
        settings: what all stages have in common.

    Examples:
        >>> from hyperbagel.modules.pretraining import PretrainingMethod
        >>> stage = Pretraining(model=folder, method=PretrainingMethod(train="generation"))
        >>> stage.learns_from
        ('image',)
    """

    def __init__(
        self,
        *,
        model: str,
        method: PretrainingMethod = PretrainingMethod(),
        student: Training = Training(),
        settings: StageSettings = StageSettings(),
    ) -> None:
        super().__init__(model, settings)
        self.method = method
        if method.start != "own":
            restart_generation(self.model, settings.seed, copies=method.start == "understanding")
        self.learns_from = _LEARNS_FROM[method.train]
        self.model.autoencoder.requires_grad_(False)
        self.model.understanding.requires_grad_(method.train != "generation")
        self.model.generation.requires_grad_(method.train != "understanding")
        self.add_network("student", student.of_whole_weights(self.model), paths=["model"])
        self.leave_out_frozen_parts()

    def add_loss(self, term: LossTerm) -> None:  # type: ignore[override]
        """Add a loss term on batches of documents that end with the only picture to be drawn; others go without it.

        Raises ValueError unless only generation trains, and for a taken name.
        """
        if self.method.train != "generation" or term.name in ("text", "image"):
            raise ValueError(
                f"loss term {term.name!r}: Pretraining takes terms of other names, with method.train: generation"
            )
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
        x_t, t, noise = noisy_latents(layout, self.method.timestep_shift, generator)
        output = self.model(layout, x_t, t)
        terms = {}
        if self.method.train != "generation":
            terms["text"] = self._text_term(output.und, layout)
        if self.method.train != "understanding":
            error, generated = squared_velocity_error(output.velocity, layout.latents, noise), layout.generated
            terms["image"] = Term(_flow_sum(error, generated), generated.sum(), layout.generates)
        return terms

    def _only_draws(self, documents: list[list[Segment]]) -> bool:
        """Whether there is nothing to learn from but the picture that ends each document."""
        texts = any(isinstance(segment, TextSegment) and segment.loss for document in documents for segment in document)
        learnt = {"both": not texts, "generation": True, "understanding": False}[self.method.train]
        return learnt and all(_draws_last(document) for document in documents)

    def _text_term(self, hidden: Tensor, layout: Layout) -> Term:
        """Cross-entropy of the labelled tokens. hidden: (B, N, D) after the final norm."""
        labels, learnt = layout.labels, layout.learnt
        weights = (
            answer_weights(labels) if self.method.reweight_answers else torch.ones_like(labels, dtype=torch.float32)
        )
        logits = self.model.logits(hidden.flatten(0, 1)[learnt])
        cross_entropy = token_cross_entropy(logits, labels.flatten()[learnt])
        weights = weights.flatten()[learnt]
        total = text_loss(cross_entropy, weights, total=torch.ones((), device=weights.device))
        return Term(total, weights.sum(), len(learnt) > 0)

    def _denoising_terms(
        self, batch: DocumentBatch, documents: list[list[Segment]], generator: torch.Generator
    ) -> dict[str, Term]:
        """The image term of documents that end with the picture to be drawn, equal to that of the whole forward.

        Nothing sees that picture, so its tokens run against a cache of what is before. Where understanding is frozen,
        only clean latents in there depend on what trains; without them, the cache needs no gradient. Added loss terms
        follow.

        In training, all noisy versions of a picture share the cache.
        """
        model, draws = self.model, self.method.draws if self.training else 1
        targets = [last.latent for *_, last in documents if isinstance(last, LatentSegment)]
        pictures = noisy_pictures(model, targets, draws, self.method.timestep_shift, generator)
        conditions: list[Document] = [document[:-1] for document in documents]
        images = [any(isinstance(segment, LatentSegment) for segment in document) for document in conditions]
        learns = any(images) or self.method.train == "both"
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
                contexts=GuidedContext(context, moved(torch.tensor(images), model.device).repeat(draws)),
                grid=pictures.grid,
                student_step=self.student_step,
                conditions={},
                x_t=pictures.x_t,
                t=pictures.t,
                velocity=velocity * generated[..., None],
                target_velocity=velocity_target(pictures.x_0, pictures.noise),
                layers=tuple(streams.gen for streams in output.layers[1:]),
            )
            terms |= {term.name: Term(term(step) * count, count) for term in self.loss_terms}
        return terms

    def _reduced(self, terms: dict[str, Term]) -> dict[str, Tensor]:
        """Means over the tokens of all ranks. Ranks' gradients are averaged, hence the mean count and not the sum."""
        if self.trainer.world_size == 1:
            return {name: term.total / term.count for name, term in terms.items() if term.present}
        counts = torch.stack([term.count.float() for term in terms.values()])
        counts = self.trainer.strategy.reduce(counts, reduce_op="mean")
        pairs = zip(terms.items(), counts, strict=True)  # all ranks have to log the same
        return {name: term.total / count for (name, term), count in pairs if count > 0}

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """One update on a batch of documents of any kind. Raises ValueError for one without anything to learn."""
        step = self.student_step
        generator = step_generator(self.settings.seed, self.global_rank, step, str(batch_idx), self.device)
        means = self._reduced(self.objective(batch, generator))
        if not means:
            raise ValueError(
                f"the batch of source {batch.source!r} ({batch.keys[0]}, ...) has nothing to learn with "
                f"method.train={self.method.train!r}: choose sources with text or image losses that fit"
            )
        losses = {f"loss/{name}": value.detach() for name, value in means.items()}
        self.log_at_step(losses, len(batch), prog_bar=True, sync_dist=True)
        weights = {"text": self.method.ce_weight, "image": self.method.mse_weight}
        weights |= {term.name: term.weight for term in self.loss_terms}
        self.update("student", torch.stack([weights[name] * value for name, value in means.items()]).sum())

    def validation_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """The same losses, at the same noise and times in every validation."""
        generator = step_generator(self.settings.seed, self.global_rank, batch_idx, "validation", self.device)
        for name, term in self.objective(batch, generator).items():
            count = int(term.count)
            if count:
                self.log_at_step({f"val/loss/{name}": term.total / term.count}, count, sync_dist=True)

    def test_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)


def _draws_last(document: Document) -> bool:
    """Whether the last segment is the only picture to be generated."""
    drawn = [isinstance(segment, LatentSegment) and segment.loss for segment in document]
    return bool(drawn) and drawn[-1] and sum(drawn) == 1


def _flow_sum(squared_error: Tensor, generated: Tensor) -> Tensor:
    """Flow-matching loss summed over tokens instead of averaged."""
    return flow_matching_loss(squared_error, generated, count=generated.new_ones((), dtype=torch.float32))
