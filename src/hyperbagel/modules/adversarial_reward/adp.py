"""Stage 4: adversarial diffusion pretraining (ADP) of the 1-NFE model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.critics.latent import LatentCritic
from hyperbagel.critics.pixel import PixelCritic, VisionFeatures
from hyperbagel.flow.noise import SharedNoise
from hyperbagel.flow.schedule import interpolate, noise_favouring_times, predict_x0, shift_time, timesteps
from hyperbagel.flow.trajectory import paired_x0
from hyperbagel.losses.adversarial import Adversarial, Discrimination
from hyperbagel.losses.base import CriticLogits, Step
from hyperbagel.losses.pairs import PairFilter, PairFilters
from hyperbagel.losses.regression import Regression
from hyperbagel.training.adversarial import AdversarialGame, AdversarialSettings
from hyperbagel.training.distillation import DistillationSettings, DistillationStage
from hyperbagel.training.episode import Episode
from hyperbagel.training.memory import DocumentCost, together
from hyperbagel.training.networks import Training, frozen


@dataclass(frozen=True, kw_only=True)
class ADPMethod(AdversarialSettings):
    """Settings of ADP, with those of its adversarial game.

    Examples:
        >>> ADPMethod(latent_weight=0, pixel_weight=0, pair_weight=1).pair_steps
        6
    """

    pair_steps: int = 6
    """Steps with which the pairs are made."""
    pairs_from: str | None = None
    """File of the branch that makes the pairs; None: the one that the student starts as."""
    shared_noise: SharedNoise | None = None
    """What the noises that the pairs are made from have in common, while the student sees each whole noise; None:
    nothing."""
    updates_per_batch: int = 1
    """Updates on the pairs of a batch, which cost more to make than an update does (data echoing, arXiv 1907.05550),
    each at other times and, beside shared noise, with other fine noise."""
    latent_weight: float = 0.85
    """Weight of the student's loss against the latent critic, 0 leaves it out."""
    pixel_weight: float = 0.15
    """Weight of the student's loss against the pixel critic, 0 leaves it out."""
    pair_weight: float = 0.0
    """Weight of the student's distance to the pairs' x_0, 0 leaves it out."""
    pair_scale: float | None = None
    """Scale of the Cauchy loss that is the distance to the pairs; None: the mean squared error instead."""
    time_power: float = 3.0
    """Power of the schedule that draws the student's t, DMDX's cubic one; a higher one is nearer to pure noise, which
    infinity is."""
    renoise: tuple[float, float] = (0.0, 1.0)
    """Range of t' at which the latent critic judges, before the timestep shift."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.pair_steps, self.updates_per_batch) < 1 or not 0 <= self.renoise[0] <= self.renoise[1] <= 1:
            raise ValueError(
                f"need pair_steps, updates_per_batch >= 1 and 0 <= renoise[0] <= renoise[1] <= 1, got {self}"
            )
        if self.time_power <= 0:
            raise ValueError(f"need time_power > 0, got {self.time_power}")
        if self.pair_scale is not None and self.pair_scale <= 0:
            raise ValueError(f"need pair_scale > 0, or null for the mean squared error, got {self.pair_scale}")
        if not self.latent_weight and not self.pixel_weight and not self.pair_weight:
            raise ValueError("ADP needs latent_weight, pixel_weight or pair_weight above 0")


@dataclass(frozen=True)
class Pairs:
    """Noise x_T and the picture x_0, each (B, n, C), that it leads to. kept: (B,) bool, which of them are to be
    regressed on; None: all."""

    noise: Tensor
    x_0: Tensor
    kept: Tensor | None = None


@dataclass(frozen=True)
class Renoising:
    """At which time t (B,) and with which noise (B, n, C) latents are judged."""

    t: Tensor
    noise: Tensor

    def __call__(self, x_0: Tensor) -> Tensor:
        """Latents x_0 (B, n, C) at noise level t."""
        return interpolate(x_0, self.noise, self.t[:, None, None])


class ADP(DistillationStage):
    """Stage 4: one step from anywhere on the way of the 6-NFE model, judged by a latent and a pixel critic.

    Args:
        model: folder of the original model.
        init_from: the branch of stage 3: what the student starts as, and what makes the pairs unless `method` names
            another.
        features: pretrained vision encoder behind the pixel critic's heads; None: no pixel critic.
        method: settings of the method.
        student, critic, pixel_critic: how the networks are trained.
        filters: which pairs to regress on; none: all.
        settings: what all distillation stages have in common; the student samples in one step.

    Raises ValueError when the settings leave no loss.

    Examples:
        >>> from hyperbagel.modules.adversarial_reward.adp import ADPMethod
        >>> stage = ADP(model=folder, method=ADPMethod(latent_weight=0, pair_weight=1, pair_scale=0.1))
        >>> stage.nfe, [term.name for term in stage.loss_terms]
        (1, ['pairs'])
    """

    asks_teacher = False

    def __init__(
        self,
        *,
        model: str,
        init_from: str | None = None,
        features: VisionFeatures | None = None,
        method: ADPMethod = ADPMethod(),
        student: Training = Training(),
        critic: Training = Training(),
        pixel_critic: Training = Training(),
        filters: Sequence[PairFilter] = (),
        settings: DistillationSettings = DistillationSettings(),
    ) -> None:
        if features is None and not method.latent_weight and not method.pair_weight:
            raise ValueError(
                "pixel_weight alone needs `features`: give them, or a latent_weight or pair_weight above 0"
            )
        super().__init__(model, init_from, student, settings.in_one_step())
        self.method = method
        self.pair_branch = self.initial_branch(method.pairs_from)
        self.leave_out("pair_branch")
        self.filters = PairFilters(filters)
        self.filters.attach(self.model, model)
        self.leave_out("filters")
        self.critic: LatentCritic | None = None
        self.game: AdversarialGame | None = None
        self.pixel_critic: PixelCritic | None = None
        if method.pair_weight:
            self.add_loss(Regression("pairs", method.pair_weight, of="x0", scale=method.pair_scale))
        if method.latent_weight:
            self.game = AdversarialGame(self, critic, method, method.latent_weight)
        if features is not None and method.pixel_weight:
            features.attach(self.model)
            self.pixel_critic = PixelCritic(features, method.heads)
            self.leave_out("pixel_critic.encoder")
            self.add_network("pixel_critic", pixel_critic, "critic")
            self.add_loss(Discrimination("pixel", method.objective))
            self.add_loss(Adversarial("pixel", method.objective, method.pixel_weight))

    def memory(self, cost: DocumentCost) -> dict[str, int]:
        """That of the student, of the critic, and of the decoder in front of the pixel critic."""
        parts = [super().memory(cost)]
        if self.game is not None:
            parts.append(self.game.memory(cost))
        if self.pixel_critic is not None:
            parts.append({"activations: decoder": cost.decoder})
        return together(*parts)

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """Pairs from the 6-NFE branch, and an update on them, or several."""
        episode = self.begin(batch)
        noise = episode.noise
        with self.timed("trajectory"):
            x_0 = self.pairs(episode)
            kept = self.filters(x_0, episode.grid, batch)
        if kept is not None:
            self.log_at_step({f"kept/{batch.source}": kept.float().mean()}, len(episode))
        for number in range(self.method.updates_per_batch):
            if number and self.method.shared_noise is not None:
                noise = self.method.shared_noise.other(noise, episode.other_noise(), episode.grid.sizes)
            self.update_networks(episode, Pairs(noise, x_0, kept))
            if self.finished:
                break

    def update_networks(self, episode: Episode, pairs: Pairs) -> None:
        """One update of the critics, then (in turn) one of the student."""
        t = noise_favouring_times(episode.uniform(), self.method.time_power)
        x_t = interpolate(pairs.x_0, pairs.noise, t[:, None, None])
        student_turn = self.method.student_turn(self.batches_seen)
        with self.timed("student"), torch.set_grad_enabled(student_turn):
            velocity = episode.velocity(self.student)(x_t, t, torch.zeros_like(t))
        x0 = predict_x0(x_t, velocity.float(), t[:, None, None])
        step = episode.step(x_t=x_t, t=t, velocity=velocity, x0=x0, target_x0=pairs.x_0, kept=pairs.kept)
        renoising = self.draw_renoising(episode)
        if self.critic_names:
            with self.timed("critic"):
                self.update_critics(episode, step, renoising)
        if student_turn:
            with self.timed("student"):
                self.update_student(episode, step, renoising)

    @property
    def critic_names(self) -> tuple[str, ...]:
        """The critics that take part."""
        return tuple(name for name in ("critic", "pixel_critic") if getattr(self, name) is not None)

    def pairs(self, episode: Episode) -> Tensor:
        """The x_0 (B, n, C) at which the 6-NFE model arrives from x_T, or from what `shared_noise` leaves of it.

        Examples:
            >>> from hyperbagel.modules import ADP
            >>> ADP(model=folder).pairs(episode).shape == episode.noise.shape
            True
        """
        grid_t = timesteps(self.method.pair_steps, self.settings.shift)
        velocity = episode.velocity(self.pair_branch)
        return paired_x0(velocity, episode.noise, episode.grid.sizes, grid_t, self.method.shared_noise)

    def draw_renoising(self, episode: Episode) -> Renoising:
        """Time t' and fresh noise at which the latent critic judges this batch."""
        t = shift_time(episode.uniform(self.method.renoise), self.settings.shift)
        return Renoising(t, episode.other_noise())

    def update_critics(self, episode: Episode, step: Step, renoising: Renoising) -> None:
        """One update of each critic, on the student's estimates (fake) and the pairs' x_0 (real)."""
        assert step.target_x0 is not None
        logits = {}
        if self.game is not None:
            fake, real = renoising(step.x0_hat.detach()), renoising(step.target_x0)
            logits["latent"] = self.game.compared(episode, fake, real, renoising.t)
        if self.pixel_critic is not None:
            with torch.no_grad():
                real_pictures = self.model.decode_latents(step.target_x0, step.grid)
            pictures = [p.detach() for p in step.pixels] + real_pictures
            logits["pixel"] = CriticLogits(*self.pixel_critic(pictures).chunk(2))
        self.update(self.critic_names, self.total(step.detached().judged(logits), "critic"))

    def update_student(self, episode: Episode, step: Step, renoising: Renoising) -> None:
        """One update of the student against the critics."""
        logits = {}
        with frozen(*(self.get_submodule(name) for name in self.critic_names)):
            if self.game is not None:
                logits["latent"] = self.game.seen(episode, renoising(step.x0_hat), renoising.t)
            if self.pixel_critic is not None:
                logits["pixel"] = CriticLogits(self.pixel_critic(step.pixels))
            self.update("student", self.total(step.judged(logits), "student"))
