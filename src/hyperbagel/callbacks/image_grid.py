"""The callback `ImageGrid`: pictures of fixed prompts and seeds, to watch a training."""

from __future__ import annotations

from torchvision.utils import make_grid

from hyperbagel.callbacks.evaluation import Evaluation, Findings, Run
from hyperbagel.scenes.prompts import geneval_prompts


class ImageGrid(Evaluation):
    """Logs a grid of generated pictures, `images/generated`: the same prompts and noise in the same slots in every run.

    Args:
        prompts: what to draw; None for evenly spread test prompts of the scenes world.
        number: pictures, where there are no prompts.
        seed: of the first picture; the others count up.
        every_n_updates: student updates between two grids in `fit`; 0 for none.

    Examples:
        >>> ImageGrid(number=2, every_n_updates=100).prompts
        ['a photo of a ring', 'a photo of a purple ring']
    """

    def __init__(
        self, prompts: list[str] | None = None, number: int = 16, seed: int = 0, every_n_updates: int = 0
    ) -> None:
        super().__init__(every_n_updates)
        if prompts is None:
            available = geneval_prompts()
            prompts = [available[slot * len(available) // number]["prompt"] for slot in range(number)]
        self.prompts, self.seed = prompts, seed

    def evaluate(self, run: Run) -> Findings:
        """A grid, no figures."""
        seeds = range(self.seed, self.seed + len(self.prompts))
        pictures = run.painter(run.stage.sampler).generate(self.prompts, seeds)
        return Findings(pictures={"images/generated": make_grid(pictures, nrow=4)}, captions=self.prompts)
