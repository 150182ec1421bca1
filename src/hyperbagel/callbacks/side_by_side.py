"""Puts pictures of several settings into one, to be compared by eye."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

_TITLE = 16
_GAP = 8


def side_by_side(pictures: Mapping[str, Tensor]) -> Image.Image:
    """Pictures (3, H, W) uint8 under their names; wide ones above each other, others beside each other.

    Raises ValueError if there are none.
    """
    if not pictures:
        raise ValueError("no pictures to put beside each other")
    blocks = [_titled(name, to_pil_image(picture)) for name, picture in pictures.items()]
    widths, heights = [block.width for block in blocks], [block.height for block in blocks]
    stacked = all(block.width > 2 * block.height for block in blocks)
    if stacked:
        sheet = Image.new("RGB", (max(widths), sum(heights) + _GAP * (len(blocks) - 1)), "white")
    else:
        sheet = Image.new("RGB", (sum(widths) + _GAP * (len(blocks) - 1), max(heights)), "white")
    place = 0
    for block in blocks:
        sheet.paste(block, (0, place) if stacked else (place, 0))
        place += (block.height if stacked else block.width) + _GAP
    return sheet


def _titled(name: str, picture: Image.Image) -> Image.Image:
    block = Image.new("RGB", (picture.width, picture.height + _TITLE), "white")
    ImageDraw.Draw(block).text((2, 2), name, fill="black", font=ImageFont.load_default(size=12))
    block.paste(picture, (0, _TITLE))
    return block
