"""From picture files to the pixel tensors BAGEL reads, and back from pixel tensors to pictures.

BAGEL fits a picture into a range of side lengths, keeps its aspect approximately, and rounds both sides to a stride,
with one set of limits for the autoencoder and another for the ViT.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from hyperbagel.bagel.appearance import SampleTypeError, as_seen, seen_size, without_chunks
from hyperbagel.bagel.finite import require_finite
from hyperbagel.messages import clip

MAX_PIXELS = 1_806_336
"""Largest number of pixels BAGEL makes of all pictures of a document together (28 * 28 * 48 * 48)."""

MAX_DECODED_PIXELS = 89_478_485
"""Largest picture that `load_image` decodes, in pixels: a quarter of a GiB as RGB, the limit at which Pillow warns."""

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")
"""Formats that are read. Pillow knows more, some of which run other programs."""

T = TypeVar("T")


class ImageError(ValueError):
    """Something is not a picture that can be read."""


class ImageTooLargeError(ImageError):
    """A picture has more pixels than the limit: refused before it is decoded (a decompression bomb)."""


def load_image(
    source: str | Path | bytes | BinaryIO, max_pixels: int = MAX_DECODED_PIXELS, name: str | None = None
) -> Image.Image:
    """Read a picture as a person sees it, 8-bit RGB: see `as_seen`.

    source: a file name, the bytes of a file, or a file that can seek; max_pixels: refuse larger pictures before
    decoding them; name: of the picture in messages, where it is not that of the file.
    Raises FileNotFoundError for a missing file, ImageTooLargeError, and ImageError for anything unreadable.
    """
    return _read(source, max_pixels, name, lambda image, _: as_seen(image))


def image_size(
    source: str | Path | bytes | BinaryIO, max_pixels: int = MAX_DECODED_PIXELS, name: str | None = None
) -> tuple[int, int]:
    """Width and height in pixels as `load_image` gives them, without decoding the picture; raises like it."""
    return _read(source, max_pixels, name, seen_size)


def image_format(source: str | Path | bytes | BinaryIO) -> str:
    """One of `FORMATS`; raises like `load_image`."""
    return _read(source, MAX_DECODED_PIXELS, None, lambda image, _: _FAMILIES.get(str(image.format), str(image.format)))


_FAMILIES = {"MPO": "JPEG"}  # a JPEG file with further pictures after the first
_Look: TypeAlias = Callable[[Image.Image, BinaryIO], T]


def _read(source: str | Path | bytes | BinaryIO, max_pixels: int, name: str | None, look: _Look[T]) -> T:
    """What `look` finds in an opened picture; whatever a decoder raises comes out as one of this module's errors."""
    if isinstance(source, str | Path):
        with Path(source).open("rb") as opened:
            return _read(opened, max_pixels, name or str(source), look)
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        try:
            return _looked_at(file, max_pixels, look)
        except ValueError as error:
            if "MAX_TEXT" not in str(error):
                raise
            file.seek(0)  # Pillow refuses a PNG with long texts, such as whole workflows; nobody sees them
            return _looked_at(io.BytesIO(without_chunks(file.read())), max_pixels, look)
    except (ImageTooLargeError, Image.DecompressionBombError) as error:
        raise ImageTooLargeError(_message(error, name)) from error
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error on broken input
        raise ImageError(_message(error, name)) from error


def _looked_at(file: BinaryIO, max_pixels: int, look: _Look[T]) -> T:
    file.seek(0)
    if not file.read(1):
        raise ImageError("the file is empty")
    with Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise ImageTooLargeError(
                f"a picture of {image.width} x {image.height} pixels is over the limit of {max_pixels}; "
                "shrink it, or raise the limit if you trust the source"
            )
        return look(image, file)


def _message(error: Exception, name: str | None) -> str:
    """What is wrong, in one line that names the file, without what decoders quote of its bytes."""
    if isinstance(error, UnidentifiedImageError):
        reason = f"damaged, or of a format that is not read here ({', '.join(FORMATS)} are); convert it to PNG or JPEG"
    elif isinstance(error, ImageError | SampleTypeError):
        reason = str(error)
    else:
        reason = f"{type(error).__name__}: {clip(error, 100)}"
    kind = "" if isinstance(error, ImageTooLargeError | Image.DecompressionBombError) else "not a readable picture: "
    return f"{name}: {kind}{reason}" if name else f"{kind}{reason}"


@dataclass(frozen=True)
class ImageTransform:
    """BAGEL's resize and normalisation, with the limits of the autoencoder or of the ViT."""

    max_size: int
    """Limit in pixels for the longer side; it wins over min_size for long narrow pictures."""
    min_size: int
    """Limit in pixels for the shorter side."""
    stride: int
    """Both sides become multiples of it, in pixels."""
    max_pixels: int = MAX_PIXELS
    """Limit for all pictures of a document together, in pixels."""

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
    return of_uint8(to_uint8(pixels.detach()))


def of_uint8(pixels: Tensor) -> Image.Image:
    """(3, H, W) uint8 as a picture."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
