"""A regression on pairs beside distribution matching, as DMD has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.branch_checkpoint import BranchInfo, check_branch, load_branch
from hyperbagel.bagel.model import Bagel
from hyperbagel.flow.noise import SharedNoise
from hyperbagel.flow.schedule import timesteps
from hyperbagel.losses.reduction import regression_error
from hyperbagel.losses.term import LossTerm, Step
from hyperbagel.modules.batches import branch_velocity, paired_x0
from hyperbagel.modules.pair_filter import PairFilter, PairFilters


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
        sources: names of the data sources whose batches it concerns; None: all.
        filters: which pairs to regress on; none: all. The share that they keep is logged as `kept/<name>`.

    Raises ValueError for a scale that is not above 0.
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
        if not bool((step.t == 1).all()):
            raise ValueError("PairRegression compares pictures made from pure noise: train a student with `steps: 1`")
        x_0 = self.pairs(step)
        kept = self.filters(x_0, step.grid, step.batch)
        self.metrics = {} if kept is None else {f"kept/{self.name}": kept.float().mean()}
        return regression_error(step.x0_hat, x_0, self.scale, replace(step, kept=kept).compared)

    def pairs(self, step: Step) -> Tensor:
        """What the branch makes of the step's x_T (B, n, C), or of what `shared_noise` leaves of it: (B, n, C)."""
        branch, info = self.branch, self.info
        assert branch is not None and info is not None
        velocity = branch_velocity(step.model, step, branch, step.scales)
        return paired_x0(velocity, step.x_t, step.grid, timesteps(self.steps, info.shift), self.shared_noise)
