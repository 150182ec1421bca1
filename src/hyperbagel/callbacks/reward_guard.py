"""The callback `RewardGuard`: lowers a reward's weight, or stops, when pictures get worse while the reward rises."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from hyperbagel.callbacks.evaluation import Evaluation, Findings
from hyperbagel.losses.base import LossTerm

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watch:
    """A metric that must not get worse."""

    metric: str
    """Name of the metric, as logged."""
    better: Literal["higher", "lower"] = "higher"
    """Its good direction."""
    tolerance: float = 0.02
    """Share of the best value by which it may be worse than that without alarm."""

    def failed(self, value: float, best: float) -> bool:
        """Whether a value is worse than the best one beyond the tolerance."""
        worse = best - value if self.better == "higher" else value - best
        return worse > self.tolerance * abs(best)

    def best(self, value: float, best: float | None) -> float:
        """The better of the two."""
        if best is None:
            return value
        return max(value, best) if self.better == "higher" else min(value, best)


WATCHED = (
    Watch("geneval/overall"),
    Watch("gedit/o"),
    Watch("diversity", tolerance=0.05),
    Watch("fidelity/teacher", "lower", tolerance=0.25),
    Watch("fidelity/real", "lower", tolerance=0.25),
)
"""What evaluations measure, as far as a run has them."""


class RewardGuard(Callback):
    """Compares each evaluation of a run with its best so far. When a watched metric has fallen while the mean reward
    since the last evaluation is above that of the first, the reward's weight is multiplied by `factor`; at the
    `alarms`-th time training stops. List it after the evaluating callbacks, whose `every_n_updates` is its rhythm.

    Args:
        term: name of the loss term whose reward it is; the mean is logged as `reward/<term>`.
        watch: metrics to watch; those that no evaluation measures are left out.
        factor: of the weight at an alarm, below 1.
        alarms: at which alarm training stops; 1 stops at once, 0 never does.

    Examples:
        >>> from hyperbagel.callbacks.reward_guard import Watch
        >>> guard = RewardGuard("tuning", watch=(Watch("geneval/overall", tolerance=0.05),))
        >>> guard.watch[0].failed(value=0.70, best=0.80)
        True
    """

    def __init__(
        self,
        term: str = "refl",
        watch: tuple[Watch, ...] = WATCHED,
        factor: float = 0.5,
        alarms: int = 3,
    ) -> None:
        if not 0 <= factor < 1 or alarms < 0:
            raise ValueError(f"need 0 <= factor < 1 and alarms >= 0, got factor={factor}, alarms={alarms}")
        self.term, self.watch = term, watch
        self.factor, self.alarms = factor, alarms
        self.raised = 0
        self._best: dict[str, float] = {}
        self._first_reward: float | None = None
        self._sum, self._count = 0.0, 0
        self._waiting: list[Tensor] = []  # rewards that were not looked at yet: on a GPU each look waits
        self._seen: dict[int, Findings] = {}

    @property
    def state_key(self) -> str:
        """The term, so that a run may have a guard of each reward."""
        return f"{type(self).__qualname__}({self.term})"

    def state_dict(self) -> dict[str, Any]:
        """Alarms, best values and the reward so far."""
        self._counted()
        return {
            "raised": self.raised,
            "best": self._best,
            "first_reward": self._first_reward,
            "sum": self._sum,
            "count": self._count,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a run stopped."""
        self.raised, self._best = state_dict["raised"], dict(state_dict["best"])
        self._first_reward = state_dict["first_reward"]
        self._sum, self._count = state_dict["sum"], state_dict["count"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lower the weight again as often as the run did before it was resumed. ValueError without such a term."""
        self._term(pl_module).weight *= self.factor**self.raised
        self._seen = {id(c): c.findings for c in trainer.callbacks if isinstance(c, Evaluation)}  # type: ignore[attr-defined]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in the reward, and compare when something was evaluated."""
        reward = trainer.callback_metrics.get(f"reward/{self.term}")
        if reward is not None:
            self._waiting.append(reward.detach())
        metrics = self._new_metrics(trainer)
        if metrics and self._counted():
            mean = self._sum / self._count
            self._sum, self._count = 0.0, 0
            self.check(metrics, mean, trainer, pl_module)

    def _counted(self) -> int:
        """How many rewards were summed, those that waited included."""
        for reward in torch.stack(self._waiting).tolist() if self._waiting else ():
            self._sum += reward
        self._count += len(self._waiting)
        self._waiting.clear()
        return self._count

    def check(
        self, metrics: Mapping[str, float], reward: float, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> None:
        """Compare one evaluation with the best ones; reward: mean since the evaluation before."""
        watched = [w for w in self.watch if w.metric in metrics]
        failed = [w for w in watched if w.metric in self._best and w.failed(metrics[w.metric], self._best[w.metric])]
        rising = self._first_reward is not None and reward > self._first_reward
        self._first_reward = reward if self._first_reward is None else self._first_reward
        if failed and rising:
            self._alarm(failed, metrics, trainer, pl_module)
        for w in watched:
            self._best[w.metric] = w.best(metrics[w.metric], self._best.get(w.metric))

    def _alarm(
        self, failed: list[Watch], metrics: Mapping[str, float], trainer: L.Trainer, pl_module: L.LightningModule
    ) -> None:
        self.raised += 1
        term = self._term(pl_module)
        term.weight *= self.factor
        told = ", ".join(f"{w.metric} {self._best[w.metric]:.4g} -> {metrics[w.metric]:.4g}" for w in failed)
        stops = bool(self.alarms) and self.raised >= self.alarms
        log.warning(
            "the reward rises while pictures get worse (%s): alarm %d, weight of %r now %g%s",
            told,
            self.raised,
            self.term,
            term.weight,
            "; training stops" if stops else "",
        )
        if stops:
            trainer.should_stop = True

    def _new_metrics(self, trainer: L.Trainer) -> dict[str, float]:
        """Of the evaluations that ran since the last call, of the stage's own row."""
        metrics: dict[str, float] = {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Evaluation) and callback.findings is not self._seen.get(id(callback)):
                self._seen[id(callback)] = callback.findings
                metrics |= next(iter(callback.findings.rows.values()), {})
        return metrics

    def _term(self, pl_module: L.LightningModule) -> LossTerm:
        terms: list[LossTerm] = getattr(pl_module, "loss_terms", [])
        for term in terms:
            if term.name == self.term:
                return term
        raise ValueError(
            f"RewardGuard: {type(pl_module).__name__} has no loss term {self.term!r} "
            f"(its terms: {', '.join(t.name for t in terms) or 'none'})"
        )
