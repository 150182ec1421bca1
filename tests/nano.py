"""A nano BAGEL for tests: every part, random weights without zeros, built in a fraction of a second."""

import torch

from hyperbagel.bagel.build.assemble import NANO, compose
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.model import Bagel


def nano_bagel(config: BagelConfig = NANO, seed: int = 0) -> Bagel:
    """A random BAGEL of which no part is inactive: biases, norms and the velocity head are random too, and the
    generation experts differ from the understanding ones."""
    model = compose(config, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for part in (model.understanding, model.generation):
            for value in part.parameters():
                value += 0.1 * torch.randn(value.shape, generator=generator)
    return model
