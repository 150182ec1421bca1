"""The 1-NFE model: adversarial diffusion pretraining (ADP, stage 4) and reward feedback learning (ReFL, stage 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hyperbagel.bagel.branch import GuidanceScales
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.critics.latent import CriticSettings, JudgedBatch, LatentCritic
from hyperbagel.critics.pixel import PixelCritic, VisionFeatures
from hyperbagel.flow.noise import SharedNoise
from hyperbagel.flow.schedule import interpolate, predict_x0, shift_time, timesteps
from hyperbagel.losses.term import CriticLogits, Step
from hyperbagel.losses.terms import Adversarial, Discrimination, Regression
from hyperbagel.modules.adversarial import AdversarialSettings
from hyperbagel.modules.base import DistillationStage, StageSettings
from hyperbagel.modules.batches import PreparedBatch, branch_velocity, paired_x0
from hyperbagel.modules.networks import DEFAULT_TRAINING, Training, frozen
from hyperbagel.modules.pair_filter import PairFilter, PairFilters
from hyperbagel.modules.reward_term import RewardTerm
from hyperbagel.rewards.base import Reward

_ONE_STEP = StageSettings(steps=1)
_CRITIC = CriticSettings()


def one_step(settings: StageSettings) -> StageSettings:
    """The same settings, for a student that samples in one step."""
    return replace(settings, steps=1)


@dataclass(frozen=True, kw_only=True)
class ADPSettings(AdversarialSettings):
    """Settings of ADP, with those of its adversarial game."""

    pair_steps: int = 6
    """Steps with which the pairs are made."""
    pairs_from: str | None = None
    """File of the branch that makes the pairs; None: the one that the student starts as."""
    shared_noise: SharedNoise | None = None
    """What the noises that the pairs are made from have in common, while the student sees each whole noise; None:
    nothing."""
    echoes: int = 1
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
        if min(self.pair_steps, self.echoes) < 1 or not 0 <= self.renoise[0] <= self.renoise[1] <= 1:
            raise ValueError(f"need pair_steps and echoes >= 1 and 0 <= renoise[0] <= renoise[1] <= 1, got {self}")
        if self.time_power <= 0:
            raise ValueError(f"need time_power > 0, got {self.time_power}")
        if self.pair_scale is not None and self.pair_scale <= 0:
            raise ValueError(f"need pair_scale > 0, or null for the mean squared error, got {self.pair_scale}")
        if not self.latent_weight and not self.pixel_weight and not self.pair_weight:
            raise ValueError("ADP needs latent_weight, pixel_weight or pair_weight above 0")


_ADP = ADPSettings()


@dataclass(frozen=True)
class Pairs:
    """Noise x_T and the picture x_0, each (B, n, C), that it leads to, of a batch with its guidance inputs.

    kept: (B,) bool, which of them are to be regressed on; None: all.
    """

    prepared: PreparedBatch
    scales: GuidanceScales
    noise: Tensor
    x_0: Tensor
    kept: Tensor | None = None


@dataclass(frozen=True)
class Renoising:
    """At which time t (B,), with which noise (B, n, C) and in what contexts latents are judged."""

    t: Tensor
    noise: Tensor
    judged: JudgedBatch

    def __call__(self, x_0: Tensor) -> Tensor:
        """Latents x_0 (B, n, C) at noise level t."""
        return interpolate(x_0, self.noise, self.t[:, None, None])


def noise_favouring_times(u: Tensor, power: float = 3.0) -> Tensor:
    """DMDX's schedule t = 1 - u^power of uniform draws: (...) -> (...); when cubic, half of them are above 0.875."""
    return 1 - u**power


class ADP(DistillationStage):
    """Stage 4: one step from anywhere on the way of the 6-NFE model, judged by a latent and a pixel critic.

    Args:
        model: folder of the original model.
        init_from: the branch of stage 3; the student starts as it, and it makes the pairs unless `adp` names another.
        features: pretrained vision encoder behind the pixel critic's heads; None: no pixel critic.
        student, critic, pixel_critic: how the networks are trained.
        adp: settings of the method.
        heads: settings of both critics' heads.
        filters: which pairs to regress on; none: all.
        settings: what all stages have in common; the student always samples in one step.

    Raises ValueError when the settings leave no loss.
    """

    def __init__(
        self,
        model: str,
        init_from: str | None = None,
        features: VisionFeatures | None = None,
        student: Training = DEFAULT_TRAINING,
        critic: Training = DEFAULT_TRAINING,
        pixel_critic: Training = DEFAULT_TRAINING,
        adp: ADPSettings = _ADP,
        heads: CriticSettings = _CRITIC,
        filters: Sequence[PairFilter] = (),
        settings: StageSettings = _ONE_STEP,
    ) -> None:
        if features is None and not adp.latent_weight and not adp.pair_weight:
            raise ValueError(
                "pixel_weight alone needs `features`: give them, or a latent_weight or pair_weight above 0"
            )
        super().__init__(model, init_from, student, one_step(settings))
        self.adp = adp
        self.pair_branch = self.initial_branch(adp.pairs_from)
        self.leave_out("pair_branch")
        self.filters = PairFilters(filters)
        self.filters.attach(self.model, model)
        self.leave_out("filters")
        self.critic: LatentCritic | None = None
        self.pixel_critic: PixelCritic | None = None
        if adp.pair_weight:
            self.add_loss(Regression("pairs", adp.pair_weight, adp.pair_scale))
        if adp.latent_weight:
            self.critic_network = "critic"
            self.critic = LatentCritic(self.branch_like_teacher(critic), self.model.config, heads)
            self.add_network("critic", critic)
            self.add_loss(Discrimination("latent", adp.objective, r1_weight=adp.r1_weight))
            self.add_loss(Adversarial("latent", adp.objective, adp.latent_weight))
        if features is not None and adp.pixel_weight:
            features.attach(self.model)
            self.pixel_critic = PixelCritic(features, heads)
            self.leave_out("pixel_critic.encoder")
            self.critic_network = self.critic_network or "pixel_critic"
            self.add_network("pixel_critic", pixel_critic)
            self.add_loss(Discrimination("pixel", adp.objective))
            self.add_loss(Adversarial("pixel", adp.objective, adp.pixel_weight))

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """Pairs from the 6-NFE branch, and an update on them or, with echoes, several."""
        prepared, generator = self.begin(batch, teacher=False)
        noise, scales = self.draw_noise(prepared, generator), self.draw_scales(prepared, generator)
        with self.timed("trajectory"):
            x_0 = self.pairs(prepared, scales, noise)
            kept = self.filters(x_0, prepared.grid, batch)
        if kept is not None:
            self.log_at_step({f"kept/{batch.source}": kept.float().mean()}, len(prepared))
        for echo in range(self.adp.echoes):
            if echo and self.adp.shared_noise is not None:
                noise = self.adp.shared_noise.other(noise, self.draw_noise(prepared, generator), prepared.grid.sizes)
            self.learn(Pairs(prepared, scales, noise, x_0, kept), generator)
            if self.finished:
                break

    def learn(self, pairs: Pairs, generator: torch.Generator) -> None:
        """One update of the critics, then (in turn) one of the student."""
        prepared, scales, x_0 = pairs.prepared, pairs.scales, pairs.x_0
        t = noise_favouring_times(torch.rand(len(prepared), generator=generator), self.adp.time_power).to(self.device)
        x_t = interpolate(x_0, pairs.noise, t[:, None, None])
        student_turn = int(self.batches_seen) % self.adp.student_every == 0
        with self.timed("student"), torch.set_grad_enabled(student_turn):
            velocity = self.model.velocity(x_t, t, prepared.contexts.full, prepared.grid, self.student, scales)
        x0_hat = predict_x0(x_t, velocity.float(), t[:, None, None])
        step = self.step(prepared, scales, x_t=x_t, t=t, velocity=velocity, output=x0_hat, target=x_0, kept=pairs.kept)
        renoising = self.draw_renoising(prepared, scales, generator)
        if self.critic_names:
            with self.timed("critic"):
                self.update_critics(step, renoising, generator)
        if student_turn:
            with self.timed("student"):
                self.update_student(step, renoising)

    @property
    def critic_names(self) -> tuple[str, ...]:
        """The critics that take part."""
        return tuple(name for name in ("critic", "pixel_critic") if getattr(self, name) is not None)

    def pairs(self, prepared: PreparedBatch, scales: GuidanceScales, noise: Tensor) -> Tensor:
        """The x_0 (B, n, C) at which the 6-NFE model arrives from x_T, or from what `shared_noise` leaves of it."""
        grid_t = timesteps(self.adp.pair_steps, self.settings.shift)
        velocity = branch_velocity(self.model, prepared, self.pair_branch, scales)
        return paired_x0(velocity, noise, prepared.grid, grid_t, self.adp.shared_noise)

    def draw_renoising(self, prepared: PreparedBatch, scales: GuidanceScales, generator: torch.Generator) -> Renoising:
        """Time t' and fresh noise at which the latent critic judges this batch."""
        low, high = self.adp.renoise
        t = shift_time(low + (high - low) * torch.rand(len(prepared), generator=generator), self.settings.shift)
        judged = JudgedBatch(prepared.contexts.full, prepared.grid, scales)
        return Renoising(t.to(self.device), self.draw_noise(prepared, generator), judged)

    def update_critics(self, step: Step, renoising: Renoising, generator: torch.Generator) -> None:
        """One update of each critic, on the student's estimates (fake) and the pairs' x_0 (real)."""
        assert step.target is not None
        logits = {}
        if self.critic is not None:
            fake, real = renoising(step.output.detach()), renoising(step.target)
            latents = (fake, real, *self.adp.perturbed(real, generator))
            logits["latent"] = CriticLogits(*self.critic.compare(self.model, latents, renoising.t, renoising.judged))
        if self.pixel_critic is not None:
            with torch.no_grad():
                real_pictures = self.model.decode_latents(step.target, step.grid)
            pictures = [p.detach() for p in step.pixels] + real_pictures
            logits["pixel"] = CriticLogits(*self.pixel_critic(pictures).chunk(2))
        self.update(self.critic_names, self.total(step.detached().judged(logits), "critic"))

    def update_student(self, step: Step, renoising: Renoising) -> None:
        """One update of the student against the critics."""
        logits = {}
        with frozen(*(self.get_submodule(name) for name in self.critic_names)):
            if self.critic is not None:
                seen = self.critic(self.model, renoising(step.output), renoising.t, renoising.judged)
                logits["latent"] = CriticLogits(seen)
            if self.pixel_critic is not None:
                logits["pixel"] = CriticLogits(self.pixel_critic(step.pixels))
            self.update("student", self.total(step.judged(logits), "student"))


class ReFL(DistillationStage):
    """Stage 5: the one-step student is tuned by a reward on its decoded pictures.

    Args:
        model: folder of the original model.
        reward: what scores the pictures.
        init_from: the branch of stage 4.
        threshold: rewards above it give no gradient; 6.0 in the paper, for HPSv3.
        sources: names of the data sources whose pictures the reward scores, where other loss terms teach the rest;
            None: all.
        student: how the student is trained.
        settings: what all stages have in common; the student always samples in one step.
    """

    def __init__(
        self,
        model: str,
        reward: Reward,
        init_from: str | None = None,
        threshold: float = 6.0,
        sources: Sequence[str] | None = None,
        student: Training = DEFAULT_TRAINING,
        settings: StageSettings = _ONE_STEP,
    ) -> None:
        super().__init__(model, init_from, student, one_step(settings))
        self.add_loss(RewardTerm(reward, threshold, sources=sources))

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        """One picture of each document in one step from pure noise, and the reward's gradient through the decoder."""
        prepared, generator = self.begin(batch, teacher=False)
        noise, scales = self.draw_noise(prepared, generator), self.draw_scales(prepared, generator)
        t = torch.ones(len(prepared), device=self.device)
        with self.timed("student"):
            velocity = self.model.velocity(noise, t, prepared.contexts.full, prepared.grid, self.student, scales)
            x0_hat = predict_x0(noise, velocity.float(), t[:, None, None])
            step = self.step(prepared, scales, x_t=noise, t=t, velocity=velocity, output=x0_hat)
            self.update("student", self.total(step, "student"))
