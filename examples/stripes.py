"""A data source of one's own: striped pictures with captions, drawn when they are asked for."""

from typing import Any

import numpy as np

COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 70, 220)}


class Stripes:
    """Text-to-image documents by index. The same index always gives the same document, so that a run can resume.

    Args:
        size: number of documents.
        side: of the pictures in pixels.
    """

    def __init__(self, size: int = 1000, side: int = 64) -> None:
        self.size, self.side = size, side

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A prompt, and the picture (H, W, 3) uint8 that is to be learnt."""
        color = list(COLORS)[index % len(COLORS)]
        width = 2 + index // len(COLORS) % 6
        striped = np.arange(self.side) // width % 2 == 0
        picture = np.where(striped[None, :, None], COLORS[color], 255).repeat(self.side, axis=0).astype(np.uint8)
        text = {"type": "text", "text": f"{color} stripes, {width} pixels wide", "loss": False}
        document = {"segments": [text, {"type": "image", "file": "0.png", "loss": True}], "meta": {"width": width}}
        return {"__key__": f"stripes-{index}", "json": document, "0.png": picture}
