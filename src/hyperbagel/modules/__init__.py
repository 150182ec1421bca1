"""The training stages, one LightningModule each.

| stage | class | starts from | leaves |
|---|---|---|---|
| autoencoder | `AutoencoderTraining` | a model folder | a model folder |
| pretraining | `Pretraining` | a model folder | a model folder, the teacher |
| draft head | `DraftTraining` | the teacher | `draft.safetensors` |
| reward tuning of the teacher | `TeacherTuning` | the teacher | a model folder |
| 1, CFG distillation | `CFGDistillation` | the teacher | a branch |
| 2, TSCD | `TSCD` | the branch of stage 1 | a branch for 6 evaluations |
| 3, DMDO | `DMDO` | the branch of stage 2 | a branch for 6 evaluations, or behind stage 4 for 1 |
| reward tuning | `RewardTuning` | the branch of stage 2 or 3 | a branch for 6 evaluations |
| 4, ADP | `ADP` | the branch of stage 3 | a branch for 1 evaluation |
| 5, ReFL | `ReFL` | the branch of stage 4 | a branch for 1 evaluation |
"""

from hyperbagel.modules.adversarial_reward.adp import ADP
from hyperbagel.modules.adversarial_reward.refl import ReFL
from hyperbagel.modules.autoencoder import AutoencoderTraining
from hyperbagel.modules.consistency.cfg_distillation import CFGDistillation
from hyperbagel.modules.consistency.tscd import TSCD
from hyperbagel.modules.dmdo import DMDO
from hyperbagel.modules.draft_head import DraftTraining
from hyperbagel.modules.pretraining import Pretraining
from hyperbagel.modules.reward_tuning import RewardTuning
from hyperbagel.modules.teacher_tuning import TeacherTuning

__all__ = [
    "ADP",
    "DMDO",
    "TSCD",
    "AutoencoderTraining",
    "CFGDistillation",
    "DraftTraining",
    "Pretraining",
    "ReFL",
    "RewardTuning",
    "TeacherTuning",
]
