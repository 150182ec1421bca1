"""Training of a draft head for speculative decoding over a frozen target (EAGLE-3's training-time test)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hyperbagel.bagel.branch_checkpoint import base_hash
from hyperbagel.bagel.layout import IGNORED
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.bagel.transfer import moved
from hyperbagel.draft.batch import FeatureBatch, extract_features
from hyperbagel.draft.checkpoint import load_draft, save_draft
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.head import DraftHead
from hyperbagel.draft.losses import DraftLoss, DraftStep, KLDivergence, TargetCrossEntropy
from hyperbagel.draft.unroll import UnrolledStep, unroll
from hyperbagel.draft.vocabulary import read_vocabulary
from hyperbagel.draft.warm_start import WarmStart
from hyperbagel.training.memory import DocumentCost
from hyperbagel.training.networks import Training
from hyperbagel.training.stage import LearnsFrom, Stage, StageSettings


@dataclass(frozen=True, kw_only=True)
class DraftHeadMethod:
    """What a draft head is made of, and the training-time test."""

    draft: DraftConfig = DraftConfig()
    """What the head is made of."""
    vocabulary: str | None = None
    """JSON file of the token ids that the draft may propose (see `draft.vocabulary`); None: all."""
    steps: int = 7
    """Draft steps that are unrolled; of a parallel head, all that it has."""
    decay: float = 0.8
    """Factor per draft step: step i weighs decay^i."""
    warm_start: int = 0
    """Batches to which fc1 and fc2 of a fresh head are fitted before the first update (see `draft.warm_start`)."""
    logits: int = 2**25
    """Most logits that are held at once, which bounds the memory of the loss whatever the vocabulary (their rows are
    computed in chunks)."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.decay <= 0 or self.logits < 1:
            raise ValueError(f"need steps >= 1, decay > 0 and logits >= 1, got {self}")
        if self.warm_start < 0 or (self.warm_start and (self.draft.kind == "eagle3" or not self.draft.zero_init)):
            raise ValueError("method.warm_start is a number of batches, and for heads with fc2 that start at zero")


@dataclass(frozen=True)
class StepSums:
    """One unroll step on this rank. terms: each loss term summed over rows; rows: how many rows that is;
    reached, accepted: rows of which all earlier draft tokens were right, and those of them that are right again."""

    terms: Tensor
    rows: Tensor
    reached: Tensor
    accepted: Tensor


class DraftTraining(Stage):
    """Trains a draft head on what a frozen target says about documents with answers.

    Answers should be the target's own (`hyperbagel data regenerate`): those are what it drafts when it decodes. Batches
    are documents, whose hidden states are computed on the way, or stored features of them.

    Args:
        model: checkpoint folder of the target.
        init_from: draft head to start from instead of a fresh one; `method.draft` and `method.vocabulary` are then its
            own.
        method: what the head is made of, and the training-time test.
        losses: terms of the loss; default KL(target || draft) + 0.1 cross-entropy with the target's choice.
        student: how the head is trained.
        settings: what all stages have in common.

    Examples:
        >>> stage = DraftTraining(model=folder)
        >>> stage.draft_head.config.queries
        3
    """

    learns_from: tuple[LearnsFrom, ...] | None = ("text",)
    draws = False

    def __init__(
        self,
        *,
        model: str,
        init_from: str | None = None,
        method: DraftHeadMethod = DraftHeadMethod(),
        losses: Sequence[DraftLoss] | None = None,
        student: Training = Training(),
        settings: StageSettings = StageSettings(),
    ) -> None:
        super().__init__(model, settings)
        self.method = method
        self.model.requires_grad_(False)
        if init_from is None:
            vocabulary = method.vocabulary
            ids = None if vocabulary is None else read_vocabulary(vocabulary, self.model.config.llm.vocab_size)
            self.draft = DraftHead.from_target(method.draft, self.model, ids, settings.seed)
        else:
            self.draft = load_draft(init_from, self.model).train()
        self.warm_start: WarmStart | None = None
        if init_from is None and method.warm_start:
            self.warm_start = WarmStart(self.draft, method.warm_start, self._over_ranks)
        config = self.draft.config
        self.steps = config.ahead if config.kind == "parallel" else method.steps
        self.add_network("student", student.of_whole_weights(self.draft), paths=["draft"])
        for term in [KLDivergence(), TargetCrossEntropy()] if losses is None else losses:
            self.add_loss(term)
        self.leave_out_frozen_parts()
        self.leave_out("model")

    @property
    def draft_head(self) -> DraftHead:
        """The head that trains."""
        return self.draft

    def memory(self, cost: DocumentCost) -> dict[str, int]:
        """Of a question on a picture; all unrolled steps keep their graphs."""
        return {"activations": cost.question(self.draft.config.layers * self.steps + 1)}

    def add_loss(self, term: DraftLoss) -> None:  # type: ignore[override]
        """Add a loss term, before the optimizer is built. Raises ValueError for a taken name, and for other
        terms.
        """
        if not isinstance(term, DraftLoss):
            raise ValueError(
                f"{type(term).__name__} is no loss of draft heads: derive it from hyperbagel.draft.losses.DraftLoss"
            )
        super().add_loss(term)

    def feature_needs(self) -> tuple[str, tuple[int, ...]]:
        """Fingerprint of the target that stored features have to be of, and the entries that the head reads."""
        return base_hash(self.model), self._entries()

    def _entries(self) -> tuple[int, ...]:
        llm, config = self.model.config.llm, self.draft.config
        entries = config.entries(llm)
        if self.warm_start is not None:
            entries = tuple(sorted({*entries, llm.num_hidden_layers - config.layers}))
        return entries

    def features(self, batch: DocumentBatch | FeatureBatch) -> FeatureBatch:
        """The target's hidden states, computed without gradient unless they are at hand."""
        if isinstance(batch, FeatureBatch):
            dtype = self.draft.lm_head.weight.dtype
            return batch.cast(dtype)
        return extract_features(self.model, batch.documents, self._entries(), batch.keys)

    def sums(self, batch: DocumentBatch | FeatureBatch) -> list[StepSums]:
        """Loss terms and acceptance of each unroll step, summed over the rows that count."""
        alive: Tensor | None = None
        sums = []
        features = self.features(batch)
        choices = self._choices(features)
        for step in unroll(self.draft, features, self.steps):
            if alive is None:
                alive = torch.ones(len(step.row), dtype=torch.bool, device=step.row.device)
            terms, rows, hits = self._compare(step, choices[step.place])
            reached = alive[step.row]
            accepted = reached & hits
            alive = torch.zeros_like(alive).index_put((step.row,), accepted)
            sums.append(StepSums(terms, rows, reached.sum(), accepted.sum()))
        return sums

    @torch.no_grad()
    def _choices(self, features: FeatureBatch) -> Tensor:
        """The target's most likely next token at each answered position, -1 at others: (B * N,).

        Taken once for all unroll steps, since it needs the whole vocabulary even where the draft's is a small part.
        """
        answered = moved((features.labels != IGNORED).flatten().nonzero()[:, 0], features.final.device)
        size = max(1, self.method.logits // self.model.config.llm.vocab_size)
        streams = features.final.flatten(0, 1)[answered].split(size)
        choices = torch.full((features.labels.numel(),), -1, device=features.final.device)
        choices[answered] = torch.cat([self.model.next_logits(stream).argmax(-1) for stream in streams])
        return choices

    def _compare(self, step: UnrolledStep, choice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Terms summed over rows (terms,), the number of rows summed, and which rows (R,) have the target's choice
        right. choice: (R,) of it.

        Logits exist for one chunk of rows at a time; with several chunks, the backward pass computes them again.
        """
        size = max(1, self.method.logits // self.draft.lm_head.out_features)
        chunks = list(zip(*(rows.split(size) for rows in (step.hidden, step.target, choice)), strict=True))
        results = []
        for chunk in chunks:
            if len(chunks) > 1 and torch.is_grad_enabled():
                results.append(checkpoint(self._compare_chunk, step.number, *chunk, use_reentrant=False))
            else:
                results.append(self._compare_chunk(step.number, *chunk))
        terms, rows, hits = zip(*results, strict=True)
        return torch.stack(terms).sum(0), torch.stack(rows).sum(), torch.cat(hits)

    def _compare_chunk(
        self, number: int, hidden: Tensor, target: Tensor, choice: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        known: Tensor | None = None
        vocabulary = self.draft.vocabulary
        with torch.no_grad():
            if vocabulary is None:
                target_logits = self.model.next_logits(target).float()
            else:
                known = torch.isin(choice, vocabulary)
                und = self.model.understanding
                target_logits = F.linear(und.norm(target), und.lm_head.weight[vocabulary]).float()
        draft_logits = self.draft.logits(hidden).float()
        hits = self.draft.target_ids(draft_logits.argmax(-1)) == choice
        if known is None:
            rows = torch.full((), len(choice), device=choice.device)
            step = DraftStep(number, draft_logits, target_logits)
        else:
            # A choice that the draft cannot make is nothing to learn from, but a miss.
            hits, rows = known & hits, known.sum()
            if not bool(rows):
                return draft_logits.sum() * torch.zeros(len(self.terms), device=rows.device), rows, hits
            step = DraftStep(number, draft_logits[known], target_logits[known])
        return torch.stack([term(step) * rows for term in self.loss_terms]), rows, hits

    def _totals(self, sums: list[StepSums]) -> Tensor:
        """Rows, reached and accepted of each step over all ranks, (3, steps).

        What is logged depends on these alone: ranks that log different metrics would wait for each other for ever.
        """
        totals = torch.zeros(3, self.steps, device=self.device)
        for i, step in enumerate(sums):
            totals[:, i] = torch.stack([step.rows, step.reached, step.accepted])
        return self._over_ranks(totals)

    def _over_ranks(self, sums: Tensor) -> Tensor:
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        return sums

    def _means(self, sums: list[StepSums], totals: Tensor) -> Tensor:
        """(terms,) means over the counting rows of all ranks, summed over steps with their weights.

        Ranks' gradients are averaged, hence the mean number of rows and not the sum.
        """
        counts = (totals[0] / self.trainer.world_size).clamp(min=1e-6)
        zero = torch.zeros(len(self.terms), device=self.device)
        return sum((self.method.decay**i * step.terms / counts[i] for i, step in enumerate(sums)), zero)

    def _not_finite(self, means: Tensor, update: int, keys: str) -> str:
        values = {term.name: float(value) for term, value in zip(self.loss_terms, means, strict=True)}
        return f"draft losses {values} at update {update} on documents {keys}, ..."

    def training_step(self, batch: DocumentBatch | FeatureBatch, batch_idx: int) -> None:
        """One update, or none while the warm start gathers batches. Raises ValueError for a batch without answers,
        FloatingPointError for a loss that is not finite.
        """
        if self.warm_start is not None and not self.student_step:
            if self.warm_start.take(self.features(batch)):
                self.warm_start = None
            return
        sums = self.sums(batch)
        keys = ", ".join(batch.keys[:3])
        if not sums:
            raise ValueError(
                f"the batch of documents {keys}, ... has no answers to draft: choose sources with text losses"
            )
        totals = self._totals(sums)
        means = self._means(sums, totals)
        self.watch.expect(means.isfinite().all(), partial(self._not_finite, means.detach(), self.student_step, keys))
        losses = {f"loss/{term.name}": value for term, value in zip(self.loss_terms, means.detach(), strict=True)}
        self.log_at_step(losses, len(batch), prog_bar=True, sync_dist=True)
        self._log_acceptance("draft", totals)
        weights = moved(torch.tensor([term.weight for term in self.loss_terms]), self.device)
        self.update("student", (weights * means).sum())

    def validation_step(self, batch: DocumentBatch | FeatureBatch, batch_idx: int) -> None:
        """The same figures without training."""
        sums = self.sums(batch)
        totals = self._totals(sums)
        if rows := int(totals[0, 0]):
            self._log_acceptance("val/draft", totals)
            for term, value in zip(self.loss_terms, self._means(sums, totals), strict=True):
                self.log_at_step({f"val/loss/{term.name}": value}, rows, sync_dist=True)

    def test_step(self, batch: DocumentBatch | FeatureBatch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def _log_acceptance(self, prefix: str, totals: Tensor) -> None:
        """Acceptance on given answers: what greedy drafting would get right from every position of them.

        In training on a GPU without a look at it: a step that no row reached is 0 there, and not left out.
        """
        if self.training and self.watch.deferring:
            alphas = (totals[2] / totals[1].clamp(min=1)).unbind()
            shown = {f"{prefix}/alpha_{i}": alpha for i, alpha in enumerate(alphas)}
            self.log_dict(shown | {f"{prefix}/acceptance_length": 1 + totals[2].sum() / totals[1, 0]}, batch_size=1)
            return
        _, reached, accepted = totals.tolist()
        length = 1 + sum(accepted) / reached[0]
        self.log(f"{prefix}/acceptance_length", length, prog_bar=True, batch_size=int(reached[0]), sync_dist=True)
        for i, (count, hits) in enumerate(zip(reached, accepted, strict=True)):
            if count:
                self.log(f"{prefix}/alpha_{i}", hits / count, batch_size=int(count), sync_dist=True)

    def export_draft(self, path: str | Path) -> None:
        """Write the draft head as one safetensors file."""
        save_draft(self.draft, self.model, path)

    def on_train_end(self) -> None:
        """Leave `draft.safetensors` in the run's folder."""
        folder = self.run_folder()
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.export_draft(folder / "draft.safetensors")
