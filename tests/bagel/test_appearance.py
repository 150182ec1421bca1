"""A picture is read as a person sees it, whatever its file holds."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from hyperbagel.bagel.appearance import as_seen
from hyperbagel.bagel.images import ImageError, image_format, image_size, load_image

ORIENTATION = 0x0112
LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "JPEG": {"quality": 95},
    "AVIF": {"quality": 95},
}


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tagged(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def patches() -> Image.Image:
    """Six colours in a picture whose eight turns all differ."""
    colors = np.array([[[220, 30, 30], [30, 180, 40], [30, 60, 220]], [[230, 220, 40], [20, 20, 20], [240, 240, 240]]])
    return Image.fromarray(np.kron(colors.astype(np.uint8), np.ones((16, 16, 1), np.uint8)))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def one_row_png(bits: int, rows: bytes, transparent: int, width: int = 2, color: int = 0) -> bytes:
    """A PNG of one row whose samples have `bits` bits, one of them transparent."""
    key = struct.pack(">H", transparent) * (3 if color == 2 else 1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, color, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + rows))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"tRNS", key) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(kind: str, orientation: int):
    data = encoded(patches(), kind, exif=tagged(orientation), **LOSSLESS[kind])
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert turned.size == ((48, 32) if orientation < 5 else (32, 48))
    assert np.array_equal(load_image(data), turned)
    assert image_size(data) == turned.size
    assert np.array_equal(as_seen(load_image(data)), turned)  # and stay so


def late_exif(orientation: int) -> bytes:
    """A PNG whose metadata stands behind its pixels."""
    return encoded(patches(), "PNG")[:-12] + chunk(b"eXIf", tagged(orientation).tobytes()[6:]) + chunk(b"IEND", b"")


def xmp(kind: str) -> bytes:
    packet = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    if kind == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet)
        return encoded(patches(), "PNG", pnginfo=info)
    return encoded(patches(), kind, xmp=packet.encode(), **LOSSLESS[kind])


@pytest.mark.parametrize(
    "data", [late_exif(6), xmp("PNG"), xmp("JPEG"), xmp("WEBP")], ids=["late", "PNG", "JPEG", "WEBP"]
)
def test_the_tag_is_found_wherever_it_stands(data: bytes):
    assert load_image(data).size == image_size(data) == (32, 48)
    assert load_image(data).getpixel((31, 0)) == pytest.approx((220, 30, 30), abs=6)


@pytest.mark.parametrize(
    "exif", [tagged(0), tagged(9), tagged(77), b"Exif\0\0", b"Exif\0\0MM\0*\0\0", b"Exif\0\0abcdefgh"]
)
def test_tags_that_mean_nothing_turn_nothing(exif: Any):
    data = encoded(patches(), "JPEG", quality=95, exif=exif)
    assert load_image(data).size == image_size(data) == (48, 32)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_sizes_are_known_without_decoding(kind: str):
    noise = Image.effect_noise((300, 200), 90).convert("RGB")
    data = bytearray(encoded(noise, kind, exif=tagged(8), **LOSSLESS[kind]))
    if kind == "PNG":
        data[33:33] = chunk(b"tEXt", b"Software\0paint")
    data[-20_000:-100] = bytes(19_900)
    assert image_size(bytes(data)) == (200, 300)


SIXTEEN = np.array([[0, 0x1234, 0x8000, 0xFFFF]], np.uint16)
SCALED = [0, 0x12, 0x80, 0xFF]


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(SIXTEEN), "PNG"),
        encoded(Image.fromarray(SIXTEEN), "TIFF"),
        encoded(Image.fromarray(SIXTEEN), "PPM"),
        encoded(Image.frombytes("I;16B", (4, 1), SIXTEEN.astype(">u2").tobytes()), "TIFF"),
        encoded(Image.fromarray(0xFFFF - SIXTEEN), "TIFF", tiffinfo={262: 0}),  # white is zero
        b"P5 4 1 65535\n" + SIXTEEN.astype(">u2").tobytes(),
        b"P6 4 1 65535\n" + SIXTEEN.repeat(3).astype(">u2").tobytes(),
        one_row_png(16, SIXTEEN.astype(">u2").tobytes(), 7, width=4),
        one_row_png(16, SIXTEEN.repeat(3).astype(">u2").tobytes(), 7, width=4, color=2),
    ],
    ids=["PNG", "TIFF", "PPM", "big endian", "white is zero", "PGM", "RGB PPM", "key", "RGB key"],
)
def test_sixteen_bits_are_scaled(data: bytes):
    assert np.asarray(load_image(data))[0].tolist() == [[value] * 3 for value in SCALED]


def test_twelve_bits_are_scaled():
    data = bytearray(encoded(Image.fromarray(SIXTEEN >> 4), "TIFF"))
    with Image.open(io.BytesIO(data)) as image:
        strip = image.tag_v2[273][0]
    entry = data.index(struct.pack("<HHI", 258, 3, 1))
    data[entry + 8 : entry + 10] = struct.pack("<H", 12)
    packed = int("".join(f"{value:012b}" for value in (SIXTEEN[0] >> 4).tolist()), 2).to_bytes(6, "big")
    data[strip : strip + 6] = packed
    assert np.asarray(load_image(bytes(data)))[0, :, 0].tolist() == SCALED


def test_samples_without_a_known_range_are_refused():
    signed = Image.fromarray(np.array([[-5, 70_000]], np.int32))
    for data in (encoded(Image.new("F", (2, 1), 0.5), "TIFF"), encoded(signed, "TIFF"), b"Pf 1 1 -1.0\n\0\0\0\0"):
        with pytest.raises(
            ImageError, match=r"^scan\.tif: not a readable picture: its samples .* save it with 8 or 16"
        ):
            load_image(data, name="scan.tif")
    with pytest.raises(ValueError, match="known range"):
        as_seen(Image.new("F", (2, 2)))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_all_modes_of_pillow_are_seen(mode: str):
    through = {"LA": "LA", "La": "LA", "PA": "LA", "RGBa": "RGBA"}
    image = Image.new("RGB", (2, 1), "white")
    image.putpixel((1, 0), (0, 0, 0))
    given = image.convert(through.get(mode, "RGB")).convert(mode)
    before = given.tobytes()
    assert np.abs(np.asarray(as_seen(given)).astype(int) - np.asarray(image)).max() <= 1
    assert given.tobytes() == before and given.mode == mode


def test_lab_is_seen_in_its_colours():
    lab = ImageCms.profileToProfile(
        patches(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    difference = np.abs(np.asarray(load_image(encoded(lab, "TIFF"))).astype(int) - np.asarray(patches()))
    assert difference.max() <= 13 and difference.mean() < 3  # 8 bits of lightness are few


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (one_row_png(1, b"\x80", 0), [255, 255]),  # white, transparent
        (one_row_png(2, b"\x60", 1), [255, 170]),
        (one_row_png(4, b"\x12", 2), [17, 255]),
        (one_row_png(8, b"\x12\x13", 0x12), [255, 0x13]),
        (one_row_png(16, b"\x12\x00\x12\x01", 0x1201), [0x12, 255]),
        (one_row_png(8, b"\1\1\1\2\2\2", 1, color=2), [255, 2]),
        (one_row_png(16, b"\1\0\1\0\1\0\2\0\2\0\2\0", 0x0100, color=2), [255, 2]),
    ],
    ids=["1 bit", "2 bits", "4 bits", "8 bits", "16 bits", "RGB", "RGB of 16 bits"],
)
def test_a_transparent_colour_is_laid_on_white(data: bytes, values: list[int]):
    assert np.asarray(load_image(data))[0].tolist() == [[value] * 3 for value in values]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(kind: str, mode: str):
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 51))
    data = encoded(image.convert(mode), kind, **LOSSLESS[kind])
    assert np.asarray(load_image(data))[0].tolist() == [[255] * 3, [0] * 3, [204] * 3]
    assert np.asarray(as_seen(image.quantize(3)))[0].tolist() == [[255] * 3, [0] * 3, [204] * 3]  # in its palette


def swapped(profile: bytes) -> bytes:
    """sRGB with red and green exchanged."""
    return profile.replace(b"rXYZ", b"tmp_").replace(b"gXYZ", b"rXYZ").replace(b"tmp_", b"gXYZ")


def grey_profile(gamma: float) -> bytes:
    """A minimal profile of one channel."""
    curve = b"curv" + struct.pack(">IIHH", 0, 1, int(gamma * 256), 0)
    white = b"XYZ " + struct.pack(">Iiii", 0, 63190, 65536, 54061)
    tags = struct.pack(">I", 2) + b"wtpt" + struct.pack(">II", 156, 20) + b"kTRC" + struct.pack(">II", 176, 14)
    body = tags + white + curve
    header = struct.pack(">I4sI4s4s4s12x4s", 128 + len(body), b"lcms", 0x04200000, b"mntr", b"GRAY", b"XYZ ", b"acsp")
    return header.ljust(68, b"\0") + white[8:] + bytes(48) + body


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("kind", LOSSLESS)
def test_colours_of_a_profile_become_srgb(kind: str):
    data = encoded(Image.new("RGB", (16, 16), (255, 0, 0)), kind, icc_profile=swapped(SRGB), **LOSSLESS[kind])
    assert load_image(data).getpixel((8, 8)) == pytest.approx((0, 255, 0), abs=4)


def test_transparency_and_grey_have_profiles_too():
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    clear.putpixel((1, 0), (255, 0, 0, 0))
    assert np.asarray(load_image(encoded(clear, "PNG", icc_profile=swapped(SRGB)))).tolist() == [
        [[0, 255, 0], [255] * 3]
    ]
    linear = load_image(encoded(Image.new("L", (1, 1), 55), "PNG", icc_profile=grey_profile(1.0)))
    assert linear.getpixel((0, 0)) == pytest.approx((128,) * 3, abs=2)


@pytest.mark.parametrize(
    "profile",
    [SRGB, b"no profile", swapped(SRGB)[:200], grey_profile(1.0), b"\0" * 128],
    ids=["sRGB", "text", "cut", "grey", "zeros"],
)
def test_profiles_that_say_nothing_change_nothing(profile: bytes):
    assert np.array_equal(load_image(encoded(patches(), "PNG", icc_profile=profile)), patches())


def frames(kind: str, **options: Any) -> bytes:
    return encoded(patches(), kind, save_all=True, append_images=[Image.new("RGB", (48, 32), "red")], **options)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_of_several_frames_the_first_is_seen(kind: str):
    data = frames(kind, **LOSSLESS.get(kind, {}))
    assert image_size(data) == (48, 32)
    assert np.abs(np.asarray(load_image(data)).astype(int) - np.asarray(patches())).mean() < 6


def long_text(**options: Any) -> bytes:
    info = PngInfo()
    info.add_text("workflow", "a" * 3_000_000, zip=True)
    return encoded(patches(), "PNG", pnginfo=info, **options)


def test_long_metadata_is_no_obstacle():
    with pytest.raises(ValueError, match="MAX_TEXT"):
        Image.open(io.BytesIO(long_text()))
    assert np.array_equal(load_image(long_text()), patches())
    assert image_size(long_text(exif=tagged(6))) == load_image(long_text(exif=tagged(6))).size == (32, 48)
    text = long_text()
    late = late_exif(6)[:-12] + text[text.index(b"zTXt") - 4 : text.index(b"IDAT") - 4] + chunk(b"IEND", b"")
    assert image_size(late) == load_image(late).size == (32, 48)
    jpeg, comment = encoded(patches(), "JPEG", exif=tagged(6)), b"\xff\xfe\xff\xff" + b"c" * 65_533
    commented = jpeg[:2] + comment * 30 + jpeg[2:]
    assert load_image(commented).size == image_size(commented) == (32, 48)


def late_damage(kind: str) -> bytes:
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    data = encoded(noise, kind, **LOSSLESS.get(kind, {}))
    return data[: len(data) * 2 // 3]


CONTENTS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"<html>not found</html>",
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "icon": lambda: encoded(Image.new("RGB", (16, 16)), "ICO"),
    "heic": lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
    "binary": lambda: bytes(range(256)) * 20,
    "ppm": lambda: b"P6 \xff\xfe\xfd 3 255\n",
    **{f"cut {kind}": lambda kind=kind: late_damage(kind) for kind in (*LOSSLESS, "BMP", "GIF", "PPM")},
}


@pytest.mark.parametrize("content", CONTENTS)
def test_messages_name_the_file_and_no_address(content: str):
    with pytest.raises(ImageError) as caught:
        load_image(CONTENTS[content](), name="photo.jpg")
    message = str(caught.value)
    assert message.startswith("photo.jpg: not a readable picture: ")
    assert (
        len(message) <= 300 and " at 0x" not in message and not re.search("b'.{20}", message) and message.isprintable()
    )


def test_kinds_of_files_by_their_content():
    assert [image_format(frames(kind, **LOSSLESS.get(kind, {}))) for kind in ("MPO", "PNG", "AVIF")] == [
        "JPEG",
        "PNG",
        "AVIF",
    ]
    with pytest.raises(ImageError, match="format that is not read here"):
        image_format(CONTENTS["icon"]())
