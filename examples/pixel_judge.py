"""A GEdit judge of one's own: an edit should change something, but not everything, and stay smooth."""

import numpy as np
from PIL import Image

from hyperbagel.evaluation.gedit.samples import JudgeScore, Rating


class PixelJudge:
    """Scores pixels only, and does not read the instruction: a smoke test of edits, no measure of their meaning.

    Args:
        changed: share of changed pixels that counts as a good edit, 0 to 1.
    """

    name, version = "pixel-judge", "1"

    def __init__(self, changed: float = 0.2) -> None:
        self.changed = changed

    def score(self, instruction: str, source: Image.Image, edited: Image.Image) -> JudgeScore:
        """Consistency: nearness to the wanted share of changed pixels; quality: smoothness. Both 0 to 10."""
        before = np.asarray(source.convert("RGB").resize(edited.size), dtype=float) / 255
        after = np.asarray(edited.convert("RGB"), dtype=float) / 255
        share = float((abs(after - before).max(-1) > 0.1).mean())
        roughness = float(abs(np.diff(after, axis=0)).mean() + abs(np.diff(after, axis=1)).mean())
        return JudgeScore(
            Rating((10 * max(0.0, 1 - abs(share - self.changed)),)), Rating((10 * max(0.0, 1 - roughness),))
        )
