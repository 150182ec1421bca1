"""Reward tuning of an original model, before anything is distilled from it."""

from __future__ import annotations

from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.flow.trajectory import Velocity
from hyperbagel.modules.reward_tuning import RewardTuning, RewardTuningMethod
from hyperbagel.rewards.base import Reward
from hyperbagel.training.distillation import DistillationSettings
from hyperbagel.training.episode import Episode
from hyperbagel.training.memory import DocumentCost
from hyperbagel.training.networks import Training
from hyperbagel.training.stage import Stage


class TeacherTuning(RewardTuning):
    """Reward tuning of a model's own generation weights under guidance: a better teacher at the same cost.

    The moving average takes the place of the model's own generation weights, in contexts too, so `ExportModel` writes
    what was trained. What is held stays as the whole model was.

    Args:
        model: folder of the model to be tuned.
        reward: what compares the pictures of a document.
        method: settings of the method.
        student: how the generation weights are trained.
        settings: what all distillation stages have in common; `settings.steps` make a picture in training,
            `settings.samplers` in evaluation.

    Examples:
        >>> from hyperbagel.rewards.bagel import BagelReward
        >>> stage = TeacherTuning(model=folder, reward=BagelReward(probability=True))
        >>> stage.learns_from
        ('image',)
    """

    conditions = ()
    asks_teacher = True
    sampler, editing_sampler = Stage.sampler, Stage.editing_sampler  # guided as the settings say, in many steps

    def __init__(
        self,
        *,
        model: str,
        reward: Reward,
        method: RewardTuningMethod = RewardTuningMethod(),
        student: Training = Training(),
        settings: DistillationSettings = DistillationSettings(),
    ) -> None:
        if settings.teacher is not None:
            raise ValueError(
                f"settings.teacher is {settings.teacher}: TeacherTuning tunes the model's own weights under classifier-"
                "free guidance, a CFG-distilled branch is tuned by RewardTuning"
            )
        if settings.context != "original":
            raise ValueError("settings.context: TeacherTuning tunes the original, which reads contexts; leave it out")
        super().__init__(model=model, reward=reward, method=method, student=student, settings=settings)
        self.model.generation = self.ema

    @property
    def nfe(self) -> int:
        """Made for no number of evaluations."""
        return 0

    def memory(self, cost: DocumentCost) -> dict[str, int]:
        """As a branch's, with all guidance passes, and their contexts stacked."""
        passes = 2 + cost.workload.editing
        return self._memory(cost, passes, 2 * passes)

    def velocity(self, episode: Episode, branch: GenerationBranch) -> Velocity:
        """The guided velocity of generation weights, over contexts that the same weights have read."""
        if branch is self.reference and episode.edits:
            episode = episode.read_by(branch)
        return self.teacher.over(episode).guided(branch)
