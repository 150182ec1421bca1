"""Acceleration of the unified multimodal model BAGEL, on PyTorch Lightning.

Names are imported when they are first used, so `import hyperbagel` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperbagel.bagel.model import Bagel as Bagel
    from hyperbagel.decoding.speculative import Speculator as Speculator
    from hyperbagel.flow.sampler import Sampler as Sampler
    from hyperbagel.losses.base import LossTerm as LossTerm
    from hyperbagel.losses.base import Step as Step
    from hyperbagel.pipeline.pipeline import Pipeline as Pipeline
    from hyperbagel.pipeline.pipeline import load as load
    from hyperbagel.rewards.base import Reward as Reward
    from hyperbagel.training.stage import Stage as Stage

__version__ = "0.1.0"

_PLACES = {
    "Bagel": "bagel.model",
    "LossTerm": "losses.base",
    "Pipeline": "pipeline.pipeline",
    "Reward": "rewards.base",
    "Sampler": "flow.sampler",
    "Speculator": "decoding.speculative",
    "Stage": "training.stage",
    "Step": "losses.base",
    "load": "pipeline.pipeline",
}
"""Name -> module that holds it."""

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
