"""`Step`, what a stage computed in one update, and `LossTerm`, one addend of its loss: a stage's own or a user's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NamedTuple, TypeVar

from torch import Tensor, nn

from hyperbagel.bagel.branch import Conditions, GenerationBranch
from hyperbagel.bagel.context import GuidedContext
from hyperbagel.bagel.grid import LatentGrid
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.flow.schedule import predict_x0
from hyperbagel.flow.trajectory import Velocity, branch_velocity

Update = Literal["student", "critic"]
_Value = TypeVar("_Value")


class CriticLogits(NamedTuple):
    """Logits of one critic, each (B, heads): on generated and on real samples, and on real ones with a little noise for
    the approximate R1 penalty. Student updates have `fake` only."""

    fake: Tensor
    real: Tensor | None = None
    perturbed: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a stage computed in one update; loss terms read it.

    Examples:
        >>> noise, t = episode.noise, torch.ones(len(episode))
        >>> step = episode.step(x_t=noise, t=t, velocity=noise)
        >>> float(step.x0_hat.abs().sum())  # x_t - t v
        0.0
    """

    model: Bagel
    """The frozen model."""
    batch: DocumentBatch
    """The documents; in pretraining it holds the pictures."""
    contexts: GuidedContext
    """What was prefilled of the documents."""
    grid: LatentGrid
    """Token grids of the images."""
    student_step: int
    """Student updates so far."""
    conditions: Conditions
    """What the student takes beside the time."""
    x_t: Tensor
    """(B, n, C), input of the student, or of the fake branch in its updates."""
    t: Tensor
    """(B,), time of that input."""
    velocity: Tensor
    """(B, n, C), output for that input. It has a graph to the network that is updated, so none in the update of a
    critic."""
    student: Velocity | None = None
    """The student over this batch, for terms that evaluate it elsewhere; None in pretraining."""
    target_velocity: Tensor | None = None
    """(B, n, C), what the velocity is to be like; None where there is no such target."""
    target_x0: Tensor | None = None
    """(B, n, C), what the estimate of x_0 is to be like; None where there is no such target."""
    x0: Tensor | None = None
    """(B, n, C), the estimate of x_0 where it is not the one that the velocity makes."""
    kept: Tensor | None = None
    """(B,) bool, which targets are worth learning from; None: all."""
    layers: tuple[Tensor, ...] = ()
    """The student's residual stream (B, n, D) after each layer, in pretraining only."""
    real_x0: Tensor | None = None
    """(B, n, C), the teacher's estimate of x_0 (DMDO's student update)."""
    fake_x0: Tensor | None = None
    """(B, n, C), the fake branch's estimate of x_0 (DMDO's student update)."""
    logits: Mapping[str, CriticLogits] = field(default_factory=dict)
    """Logits of each critic, by name."""

    def judged(self, logits: Mapping[str, CriticLogits]) -> Step:
        """The same step with critics' logits; pictures that were decoded already are kept."""
        step = replace(self, logits=logits)
        if "pixels" in self.__dict__:
            step.__dict__["pixels"] = self.pixels
        return step

    def detached(self) -> Step:
        """The same step without the student's graph, for the update of a critic."""
        x0 = None if self.x0 is None else self.x0.detach()
        step = replace(self, velocity=self.velocity.detach(), x0=x0)
        if "pixels" in self.__dict__:
            step.__dict__["pixels"] = [picture.detach() for picture in self.pixels]
        return step

    def velocity_of(self, branch: GenerationBranch) -> Velocity:
        """Another branch over the same batch, with gradients where they are enabled."""
        return branch_velocity(self.model, self.contexts, self.grid, branch, self.conditions)

    @property
    def compared(self) -> Tensor | None:
        """The tokens that are to be like their target, (B, n) bool; None: all."""
        if self.kept is None:
            return self.grid.valid
        kept = self.kept[:, None].expand(-1, self.x_t.shape[1])
        return kept if self.grid.valid is None else kept & self.grid.valid

    @property
    def x0_hat(self) -> Tensor:
        """The student's estimate of x_0, (B, n, C)."""
        return predict_x0(self.x_t, self.velocity, self.t[:, None, None]) if self.x0 is None else self.x0

    @cached_property
    def pixels(self) -> list[Tensor]:
        """The estimate decoded, with its graph: pictures (3, H, W) in about [-1, 1]. Decoded once a step."""
        return self.model.decode_latents(self.x0_hat, self.grid)


class WeightedTerm(nn.Module, ABC):
    """One addend of a loss, of whatever it is computed from.

    Parameters of a term train with the network it belongs to. `unsaved` names submodules that stay out of checkpoints
    because they are frozen and loaded from elsewhere. What `forward` puts into `metrics` is logged under those names.

    Args:
        name: logged as `loss/<name>`; unique within a stage.
        weight: factor in the sum; the logged value is without it.
        update: the sum it belongs to: that of the student, or of the stage's critic (DMDO's is its fake branch).
        sources: names of the data sources on whose batches it is computed; None: all.
    """

    unsaved: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        weight: float = 1.0,
        update: Update = "student",
        sources: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if update not in ("student", "critic"):
            raise ValueError(f"loss term {name!r}: update is {update!r}, choose student or critic")
        self.name, self.weight, self.update, self.sources = name, weight, update, sources
        self.metrics: dict[str, Tensor] = {}

    def applies_to(self, batch: DocumentBatch) -> bool:
        """Whether the term is computed on a batch."""
        return bool(self.weight) and (self.sources is None or batch.source in self.sources)

    def requirements(self, model: Bagel) -> Iterable[Callable[[], object]]:
        """Checks of the files that `attach` will read, made before anything is; each raises OSError or ValueError."""
        return ()

    def attach(self, model: Bagel, folder: str) -> None:
        """Called once by the stage that takes the term: its frozen model, and the folder that it came from."""


class LossTerm(WeightedTerm):
    """One addend of the loss of a stage that draws; see `WeightedTerm`.

    Examples:
        >>> class Small(LossTerm):
        ...     def forward(self, step):
        ...         return step.velocity.square().mean()
        ...
        >>> term = Small("small", weight=0.1)
        >>> term.name, term.weight, term.update
        ('small', 0.1, 'student')
    """

    @abstractmethod
    def forward(self, step: Step) -> Tensor:
        """The unweighted loss of a step, a scalar."""

    def needed(self, value: _Value | None, what: str) -> _Value:
        """A value of a step that the term cannot do without. Raises ValueError where this stage has none."""
        if value is None:
            raise ValueError(
                f"loss term {self.name!r} needs {what}, which this stage's {self.update} updates do not have"
            )
        return value
