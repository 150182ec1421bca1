"""From picture files to the pixel tensors BAGEL reads, and back from pixel tensors to pictures.

BAGEL fits a picture into a range of side lengths, keeps its aspect approximately, and rounds both sides to a stride,
with one set of limits for the autoencoder and another for the ViT.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hyperbagel.bagel.finite import require_finite

MAX_PIXELS = 1_806_336
"""Largest number of pixels BAGEL makes of all pictures of a document together (28 * 28 * 48 * 48)."""

MAX_DECODED_PIXELS = 89_478_485
"""Largest picture that `load_image` decodes, in pixels: a quarter of a GiB as RGB, the limit at which Pillow warns."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow also knows formats that run other programs


class ImageError(ValueError):
    """Something is not a picture that can be read."""


class ImageTooLargeError(ImageError):
    """A picture has more pixels than the limit: refused before it is decoded (a decompression bomb)."""


def load_image(source: str | Path | bytes, max_pixels: int = MAX_DECODED_PIXELS) -> Image.Image:
    """Read a picture as 8-bit RGB; transparent pixels are laid on white.

    source: a file name, or the bytes of a file. max_pixels: refuse larger pictures before decoding them.
    Raises FileNotFoundError for a missing file, ImageTooLargeError, and ImageError for anything unreadable.
    """
    with _opened(source, max_pixels) as image:
        return _to_rgb(image)


def image_size(source: str | Path | bytes, max_pixels: int = MAX_DECODED_PIXELS) -> tuple[int, int]:
    """Width and height in pixels from a picture's header, without decoding it; raises like `load_image`."""
    with _opened(source, max_pixels) as image:
        return image.size


@contextmanager
def _opened(source: str | Path | bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The opened, not yet decoded picture; whatever a decoder raises comes out as one of this module's errors."""
    name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ImageTooLargeError(
                    f"{name}: a picture of {image.width} x {image.height} pixels is over the limit of {max_pixels}; "
                    "shrink it, or raise the limit if you trust the source"
                )
            yield image
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{name}: {error}") from error
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error on broken input
        raise ImageError(f"{name}: not a readable picture ({type(error).__name__}: {error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, transparency composited on white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


@dataclass(frozen=True)
class ImageTransform:
    """BAGEL's resize and normalisation for one branch.

    max_size, min_size: limits in pixels for the longer and the shorter side (max_size wins for long narrow pictures).
    stride: both sides become multiples of it. max_pixels: limit for all pictures of a document together.
    """

    max_size: int
    min_size: int
    stride: int
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        """Refuse limits that no size could meet."""
        if self.stride < 1 or not self.stride <= self.max_size or not 1 <= self.min_size <= self.max_size:
            raise ValueError(f"image transform needs 1 <= stride <= max_size and 1 <= min_size <= max_size, got {self}")

    def size(self, width: int, height: int, images: int = 1) -> tuple[int, int]:
        """Width and height in pixels that a picture gets; images: how many share the pixel limit."""
        scale = max(min(self.max_size / max(width, height), 1.0), self.min_size / min(width, height))
        width, height = self._scaled(width, scale), self._scaled(height, scale)
        limit = self.max_pixels / images
        if width * height > limit:
            # The official code scales by the ratio of areas, not by its root; the checkpoint was trained that way.
            scale = limit / (width * height)
            width, height = self._scaled(width, scale), self._scaled(height, scale)
        if max(width, height) > self.max_size:
            scale = self.max_size / max(width, height)
            width, height = self._scaled(width, scale), self._scaled(height, scale)
        return width, height

    def _scaled(self, side: int, scale: float) -> int:
        return max(self.stride, self.stride * round(round(side * scale) / self.stride))

    def resize(self, image: Image.Image, images: int = 1) -> Image.Image:
        """The picture at its new size: bicubic with antialias on 8 bits, as the official code does it."""
        size = self.size(image.width, image.height, images)
        return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)

    def __call__(self, image: Image.Image, images: int = 1) -> Tensor:
        """An RGB picture as (3, H, W) float32 in [-1, 1], H and W multiples of the stride."""
        return to_pixels(self.resize(image, images))


LATENT_TRANSFORM = ImageTransform(max_size=1024, min_size=512, stride=16)
"""Official setting for the autoencoder."""

VIT_TRANSFORM = ImageTransform(max_size=980, min_size=224, stride=14)
"""Official setting for the ViT."""


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB picture as (3, H, W) float32 in [-1, 1], at its own size."""
    array = np.asarray(image, dtype=np.uint8)
    if array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(f"need an RGB picture, got mode {image.mode}; load it with load_image")
    return torch.from_numpy(array.transpose(2, 0, 1).copy()).float().div_(255).sub_(0.5).div_(0.5)


def to_uint8(pixels: Tensor) -> Tensor:
    """(..., 3, H, W) pixels in [-1, 1] as uint8 of the same shape: clamped and truncated, not rounded.

    Raises NotFiniteError for pixels that are no numbers, which would become black.
    """
    require_finite(pixels, "the picture's pixels")
    return ((pixels.float() * 0.5 + 0.5).clamp(0, 1) * 255).to(torch.uint8)


def to_pil(pixels: Tensor) -> Image.Image:
    """(3, H, W) pixels in [-1, 1] as a picture, by the rule of `to_uint8`."""
    return Image.fromarray(to_uint8(pixels.detach()).permute(1, 2, 0).contiguous().cpu().numpy())
