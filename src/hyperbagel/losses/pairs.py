"""Regression on pairs of noise and picture that a branch of several steps makes, and filters of such pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.branch_checkpoint import BranchInfo, check_branch, load_branch
from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.flow.noise import SharedNoise
from hyperbagel.flow.schedule import timesteps
from hyperbagel.flow.trajectory import paired_x0
from hyperbagel.losses.base import LossTerm, Step
from hyperbagel.losses.regression import regression_error
from hyperbagel.rewards.base import Reward, scored
from hyperbagel.rewards.prompts import PROMPT_KEY, reward_prompts


class PairFilter(nn.Module):
    """Keeps the pictures of a branch of several steps that a reward finds right: those that it got wrong teach nothing.

    Args:
        reward: what scores the pictures.
        threshold: lowest reward of a picture that is kept.
        prompt_key: entry of a document's meta that holds the text to score against, as in `RewardTerm`.
        sources: names of the data sources whose pictures are judged; None: all.

    Examples:
        >>> from hyperbagel.rewards.bagel import BagelReward
        >>> PairFilter(BagelReward(), threshold=0.0, sources=["generation"]).threshold
        0.0
    """

    def __init__(
        self,
        reward: Reward,
        threshold: float,
        prompt_key: str = PROMPT_KEY,
        sources: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.reward = reward.requires_grad_(False)
        self.threshold, self.prompt_key, self.sources = threshold, prompt_key, sources
        self._model: tuple[Bagel, ...] = ()  # in a tuple, so that it is not registered again
        self._tokenizer: Tokenizer | None = None

    def attach(self, model: Bagel, folder: str) -> None:
        """Take the stage's model, and the tokenizer of its folder to read prompts with; the reward gets both."""
        self._model, self._tokenizer = (model,), Tokenizer.from_pretrained(folder)
        self.reward.attach(model, self._tokenizer)

    @torch.no_grad()
    def forward(self, x_0: Tensor, grid: LatentGrid, batch: DocumentBatch) -> Tensor:
        """Whether each picture of latents x_0 (B, n, C) is kept, (B,) bool. ValueError for a document without text."""
        if self.sources is not None and batch.source not in self.sources:
            return torch.ones(len(batch), dtype=torch.bool, device=x_0.device)
        (model,) = self._model
        prompts = reward_prompts(batch, self._tokenizer, self.prompt_key)
        return scored(self.reward, model.decode_latents(x_0, grid), prompts) >= self.threshold


class PairFilters(nn.ModuleList):
    """Any number of filters, all of which must keep a picture."""

    def attach(self, model: Bagel, folder: str) -> None:
        """Attach each filter."""
        for one in self:
            assert isinstance(one, PairFilter)
            one.attach(model, folder)

    def forward(self, x_0: Tensor, grid: LatentGrid, batch: DocumentBatch) -> Tensor | None:
        """Which pictures of latents x_0 (B, n, C) are kept, (B,) bool; None without filters."""
        kept = [keeps(x_0, grid, batch) for keeps in self]
        return torch.stack(kept).all(0) if kept else None


class PairRegression(LossTerm):
    """Distance of a one-step student's x_0 to the one at which a branch of several steps arrives.

    Beside `DMDO`'s gradient it is DMD's regression loss (arXiv 2311.18828, there in a perceptual metric): it keeps what
    follows from which noise, while distribution matching sharpens. `ADP` has pairs of its own.

    Args:
        branch: file of the branch that makes the pairs.
        steps: in how many it does.
        shared_noise: what the noises that the pairs are made from have in common; None: nothing.
        scale: of the Cauchy loss that is the distance; None: the mean squared error.
        weight: factor in the student's loss.
        name: logged as `loss/<name>`.
        sources: names of the data sources whose batches it applies to; None: all.
        filters: which pairs to regress on; none: all. The share that they keep is logged as `kept/<name>`.

    Raises ValueError for a scale that is not above 0.

    Examples:
        >>> term = PairRegression("nfe6.safetensors", steps=6, scale=0.1, weight=10)
        >>> term.name, term.weight
        ('pairs', 10)
    """

    unsaved = ("branch", "filters")

    def __init__(
        self,
        branch: str,
        steps: int = 6,
        shared_noise: SharedNoise | None = None,
        scale: float | None = None,
        weight: float = 1.0,
        name: str = "pairs",
        sources: Sequence[str] | None = None,
        filters: Sequence[PairFilter] = (),
    ) -> None:
        super().__init__(name, weight, sources=sources)
        if scale is not None and scale <= 0:
            raise ValueError(f"PairRegression needs scale > 0, or null for the mean squared error, got {scale}")
        self.file, self.steps, self.shared_noise, self.scale = branch, steps, shared_noise, scale
        self.branch: GenerationBranch | None = None
        self.info: BranchInfo | None = None
        self._looked = False
        self.filters = PairFilters(filters)

    def requirements(self, model: Bagel) -> Iterable[Callable[[], object]]:
        """The branch, for this model."""
        return [partial(check_branch, self.file, model)]

    def attach(self, model: Bagel, folder: str) -> None:
        """Load the branch. Raises CheckpointError for an unusable file or one of another model."""
        self.branch, self.info = load_branch(self.file, model)
        self.branch.requires_grad_(False)
        self.filters.attach(model, folder)

    def forward(self, step: Step) -> Tensor:
        """The loss of a step from pure noise; ValueError for any other, such as a step of a student of several."""
        if (step.t.is_cpu or not self._looked) and not bool((step.t == 1).all()):
            raise ValueError("PairRegression compares pictures made from pure noise: train a student with `steps: 1`")
        self._looked = True  # on a GPU once, as each look waits for it
        x_0 = self.pairs(step)
        kept = self.filters(x_0, step.grid, step.batch)
        self.metrics = {} if kept is None else {f"kept/{self.name}": kept.float().mean()}
        return regression_error(step.x0_hat, x_0, self.scale, replace(step, kept=kept).compared)

    def pairs(self, step: Step) -> Tensor:
        """What the branch makes of the step's x_T (B, n, C), or of what `shared_noise` leaves of it: (B, n, C)."""
        branch, info = self.branch, self.info
        assert branch is not None and info is not None
        grid_t = timesteps(self.steps, info.shift)
        return paired_x0(step.velocity_of(branch), step.x_t, step.grid.sizes, grid_t, self.shared_noise)
