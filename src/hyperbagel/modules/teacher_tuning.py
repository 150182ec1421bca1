"""Reward tuning of an original model, before anything is distilled from it."""

from __future__ import annotations

from functools import partial

from hyperbagel.bagel.branch import GenerationBranch, GuidanceScales
from hyperbagel.flow.sampler import Sampler
from hyperbagel.modules.base import StageSettings
from hyperbagel.modules.batches import PreparedBatch, Velocity, prepare
from hyperbagel.modules.networks import DEFAULT_TRAINING, Training
from hyperbagel.modules.reward_tuning import RewardTuning, TuningSettings
from hyperbagel.modules.stage import Samplers
from hyperbagel.rewards.base import Reward

_SETTINGS, _TUNING, _SAMPLERS = StageSettings(), TuningSettings(), Samplers()


class TeacherTuning(RewardTuning):
    """Reward tuning of a model's own generation weights under guidance: a better teacher at the same cost.

    The moving average takes the place of the model's own generation weights, in contexts too, so `ExportModel` writes
    what was trained. What is held stays as the whole model was.

    Args:
        model: folder of the model to be tuned.
        reward: what compares the pictures of a document.
        tuning: settings of the method.
        student: how the generation weights are trained.
        samplers: how pictures are drawn for evaluation; in training, `settings.steps` make one.
        settings: what all stages have in common.
    """

    takes_scales = False

    def __init__(
        self,
        model: str,
        reward: Reward,
        tuning: TuningSettings = _TUNING,
        student: Training = DEFAULT_TRAINING,
        samplers: Samplers = _SAMPLERS,
        settings: StageSettings = _SETTINGS,
    ) -> None:
        if settings.teacher is not None:
            raise ValueError(
                f"settings.teacher is {settings.teacher}: TeacherTuning tunes the model's own weights under classifier-"
                "free guidance, a CFG-distilled branch is tuned by RewardTuning"
            )
        super().__init__(model, reward, None, tuning, student, settings)
        self.model.generation = self.ema
        self._samplers = samplers

    @property
    def nfe(self) -> int:
        """Made for no number of evaluations."""
        return 0

    @property
    def sampler(self) -> Sampler:
        """How the model makes pictures from text."""
        return self._samplers.generation

    @property
    def editing_sampler(self) -> Sampler:
        """How the model edits pictures."""
        return self._samplers.editing

    def velocity(self, prepared: PreparedBatch, scales: GuidanceScales, branch: GenerationBranch) -> Velocity:
        """The guided velocity of generation weights, over contexts that the same weights have read."""
        if branch is self.reference and prepared.has_image.any():
            prepared = self._as_before(prepared)
        return partial(self.teacher.bind(self.model, prepared, scales).guided, branch=branch)

    def _as_before(self, prepared: PreparedBatch) -> PreparedBatch:
        """The batch with contexts of the initial weights, which read pictures differently."""
        self.model.generation = self.reference
        try:
            return prepare(self.model, prepared.batch, variants=True)
        finally:
            self.model.generation = self.ema
