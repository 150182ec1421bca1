"""Pictures as viewers show them: turned upright, 8 bits per sample, sRGB, transparency on white.

Pillow hands out samples as they are stored. Turned by a tag, of 16 bits, in the inks of a printer, or with colours
hidden behind transparency, they are not yet what a viewer shows.
"""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

BACKGROUND = (255, 255, 255)
"""What transparent pixels are laid on."""

_Turn = Image.Transpose
_TURNS = {
    2: _Turn.FLIP_LEFT_RIGHT,
    3: _Turn.ROTATE_180,
    4: _Turn.FLIP_TOP_BOTTOM,
    5: _Turn.TRANSPOSE,
    6: _Turn.ROTATE_270,
    7: _Turn.TRANSVERSE,
    8: _Turn.ROTATE_90,
}
_SIDEWAYS = frozenset({5, 6, 7, 8})
_PROFILE_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_TEXT_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt"})


class SampleTypeError(ValueError):
    """The samples of a picture have no range that is known, so nobody can say which of them is white."""


def as_seen(image: Image.Image) -> Image.Image:
    """A picture of any mode as 8-bit RGB, as a person sees it, without metadata. The given one is left as it is.

    It is turned as its tag says; samples of more bits are scaled; colours of an embedded profile become sRGB (one that
    cannot be read, or is for other samples, is passed over); transparency is laid on `BACKGROUND`. Of several frames
    the current one counts, which is the first of an opened file.
    Raises SampleTypeError, and what Pillow raises for damaged files.
    """
    stored = _stored_type(image)
    image.load()
    turn = _TURNS.get(_orientation(image))
    color, alpha = _eight_bits(image, stored)
    seen = _srgb(color, image.info.get("icc_profile"))
    if alpha is not None:
        ground = Image.new("RGB", seen.size, BACKGROUND)
        ground.paste(seen, mask=alpha)
        seen = ground
    if turn is not None:
        seen = seen.transpose(turn)
    plain = seen.copy() if seen is image else seen
    plain.info = {}  # a tag that stayed would turn it again
    return plain


def seen_size(image: Image.Image, file: BinaryIO) -> tuple[int, int]:
    """Width and height of `as_seen` of a picture opened from `file`, from its header and metadata alone."""
    width, height = image.size
    if image.format == "TIFF":  # Pillow turns these by itself
        return width, height
    if image.format == "PNG" and _late_metadata(file):
        image.load()
    return (height, width) if _orientation(image) in _SIDEWAYS else (width, height)


def without_chunks(png: bytes, kinds: frozenset[bytes] = _TEXT_CHUNKS) -> bytes:
    """A PNG file without its texts, or without other chunks."""
    kept, position = [png[:8]], 8
    while position + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        end = position + 12 + length
        if kind not in kinds:
            kept.append(png[position:end])
        position = end
    return b"".join(kept)


def _late_metadata(file: BinaryIO) -> bool:
    """Whether a PNG file has a chunk that can hold an orientation after its pixels, where Pillow does not look yet."""
    file.seek(8)
    pixels = False
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        pixels |= kind == b"IDAT"
        if pixels and (kind == b"eXIf" or kind in _TEXT_CHUNKS):
            return True
        file.seek(length + 4, io.SEEK_CUR)
    return False


def _orientation(image: Image.Image) -> int:
    """1 to 8 as in EXIF; 1 where the metadata is missing or broken, as viewers take it."""
    try:
        # The method of PNG would decode the picture first.
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF raises whatever its parser runs into
        return 1


def _stored_type(image: Image.Image) -> str:
    """How samples are stored, in Pillow's words such as `RGB;16B`; known only before a picture is decoded."""
    tiles: Any = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return arguments if isinstance(arguments, str) else str(next(iter(arguments or ("",))))


def _eight_bits(image: Image.Image, stored: str) -> tuple[Image.Image, Image.Image | None]:
    """Colours of mode L, RGB, CMYK or LAB, and how opaque they are (mode L; None: altogether)."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _sixteen_bits(image)
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    elif image.mode == "PA" or (image.mode == "P" and image.has_transparency_data):
        image = image.convert("RGBA")
    if image.mode in ("LA", "RGBA"):
        return image.convert(image.mode[:-1]), image.getchannel("A")
    if image.mode == "1":
        color = image.convert("L")
    else:
        color = image if image.mode in ("L", "RGB", "CMYK", "LAB") else image.convert("RGB")
    return color, _color_key(color, image.info.get("transparency"), stored)


def _color_key(color: Image.Image, key: object, stored: str) -> Image.Image | None:
    """Opacity of a picture one colour of which is transparent. key: as stored, before it was scaled to 8 bits."""
    if color.mode not in ("L", "RGB") or not isinstance(key, int | tuple):
        return None
    value = np.atleast_1d(np.asarray(key, dtype=np.int64))
    bits = stored.partition(";")[2].rstrip("BLN")
    if bits == "16":
        high, low = value >> 8, value & 255
        if ((low != 0) & (low != high)).any():
            return None  # of colours Pillow keeps the high byte alone, which tells this key from its neighbours no more
        value = high
    elif bits in ("2", "4"):
        value *= 255 // (2 ** int(bits) - 1)
    samples = np.asarray(color).reshape(color.height, color.width, -1)
    if samples.shape[2] != len(value):
        return None
    return Image.fromarray(np.where((samples == value).all(-1), 0, 255).astype(np.uint8))


def _sixteen_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Grey of 12 or 16 bits as mode L, and where it is opaque. Raises SampleTypeError for what has no known range."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise SampleTypeError(
            f"its samples (Pillow's mode {image.mode}) have no known range; save it with 8 or 16 unsigned bits a sample"
        )
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    samples: NDArray[Any] = np.asarray(image).astype(np.int64)
    grey = (samples >> (bits - 8)).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero
        grey = 255 - grey
    key = image.info.get("transparency")
    alpha = np.where(samples == key, 0, 255).astype(np.uint8) if isinstance(key, int) else None
    return Image.fromarray(grey), None if alpha is None else Image.fromarray(alpha)


def _srgb(color: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours of mode L, RGB, CMYK or LAB as RGB; profile: what they mean."""
    if color.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return _applied(ImageCms.buildTransform(lab, srgb, "LAB", "RGB"), color)
    transform = _to_srgb(profile, color.mode) if isinstance(profile, bytes) and profile else None
    return color.convert("RGB") if transform is None else _applied(transform, color)


@lru_cache(8)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From an embedded profile to sRGB; None if that changes nothing, or it is not a profile for pictures of `mode`."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _PROFILE_SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
    if mode == "CMYK":
        return transform
    probe = _probe(mode)
    change = np.asarray(_applied(transform, probe)).astype(int) - np.asarray(probe.convert("RGB"))
    return transform if np.abs(change).max() > 1 else None  # rounding would harm those that are sRGB already


def _probe(mode: str) -> Image.Image:
    """A small picture of all kinds of colours."""
    levels = np.linspace(0, 255, 6).astype(np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(6, 36, 3)
    return Image.fromarray(colors).convert(mode)


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    seen = ImageCms.applyTransform(image, transform)
    assert seen is not None
    return seen
