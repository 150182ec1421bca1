"""Image preprocessing against the sizes and pixels that the public BAGEL code produces."""

import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from hyperbagel.bagel.images import (
    LATENT_TRANSFORM,
    VIT_TRANSFORM,
    ImageError,
    ImageTooLargeError,
    ImageTransform,
    load_image,
    to_pil,
    to_pixels,
    to_uint8,
)

PARITY = Path(__file__).parents[1] / "fixtures" / "bagel_tiny_a.safetensors"


def png(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_sizes_equal_the_reference():
    with safe_open(PARITY, "pt") as file:
        examples = json.loads(file.metadata()["meta"])["resize_examples"]
    assert len(examples) >= 40
    for example in examples:
        transform = ImageTransform(*example["max_min_stride"])
        assert list(transform.size(*example["in_wh"])) == example["out_wh"], example


def test_pixels_equal_the_reference():
    with safe_open(PARITY, "pt") as file:
        raw, vae, vit = (file.get_tensor(f"case/edit.{name}") for name in ("raw_rgb", "vae_image", "vit_image"))
    picture = Image.fromarray(raw.numpy())
    latent_transform, vit_transform = ImageTransform(64, 32, 8), ImageTransform(98, 28, 14)
    torch.testing.assert_close(latent_transform(picture), vae, rtol=0, atol=1e-6)
    torch.testing.assert_close(vit_transform(latent_transform.resize(picture)), vit, rtol=0, atol=1e-6)


def test_many_images_share_the_pixel_limit():
    transform = ImageTransform(1024, 512, 16, max_pixels=1024 * 1024)
    assert transform.size(1024, 1024) == (1024, 1024)
    width, height = transform.size(1024, 1024, images=2)
    assert (width, height) == (512, 512)  # scaled by the ratio of areas, not by its root


@pytest.mark.parametrize("transform", [LATENT_TRANSFORM, VIT_TRANSFORM, ImageTransform(64, 64, 8)])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (333, 777), (64, 64), (3000, 2999)])
def test_sides_are_multiples_within_the_limit(transform: ImageTransform, size: tuple[int, int]):
    for side in transform.size(*size):
        assert side % transform.stride == 0
        assert transform.stride <= side <= transform.max_size


def test_transform_range_and_shape():
    pixels = ImageTransform(64, 32, 8)(Image.new("RGB", (40, 20), (255, 0, 127)))
    assert pixels.shape == (3, 32, 64)
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([1.0, -1.0, 127 / 127.5 - 1]))


def test_transparency_is_composited_on_white():
    transparent = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    transparent.putpixel((1, 0), (0, 0, 255, 255))
    assert np.asarray(load_image(png(transparent))).tolist() == [[[255, 255, 255], [0, 0, 255]]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 200, 100, 0])
    palette.putpixel((1, 0), 1)
    assert np.asarray(load_image(png(palette, transparency=0))).tolist() == [[[255, 255, 255], [200, 100, 0]]]


@pytest.mark.parametrize("mode", ["L", "1", "P", "I;16", "CMYK"])
def test_other_modes_become_rgb(mode: str, tmp_path: Path):
    path = tmp_path / "picture.tif"
    Image.new(mode, (4, 3)).save(path)
    assert (load_image(path).mode, load_image(path).size) == ("RGB", (4, 3))


def test_unreadable_pictures_give_one_clear_error(tmp_path: Path):
    good = png(Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)))
    for data in (b"", b"not a picture", good[: len(good) // 2], b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        with pytest.raises(ImageError, match="not a readable picture"):
            load_image(data)
    path = tmp_path / "broken.png"
    path.write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"broken\.png"):
        load_image(path)
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        load_image(tmp_path / "missing.png")


def test_bombs_are_refused_before_decoding():
    with pytest.raises(ImageTooLargeError, match="50 x 40"):
        load_image(png(Image.new("RGB", (50, 40))), max_pixels=1999)
    huge = bytearray(png(Image.new("L", (1, 1))))
    huge[16:24] = (60_000).to_bytes(4, "big") * 2  # the header alone claims 3.6 gigapixels
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageTooLargeError):
        load_image(bytes(huge))


def test_impossible_limits_are_refused():
    with pytest.raises(ValueError, match="stride"):
        ImageTransform(max_size=8, min_size=4, stride=16)
    with pytest.raises(ValueError, match="min_size"):
        ImageTransform(max_size=8, min_size=16, stride=2)


def test_uint8_clamps_and_truncates():
    pixels = torch.tensor([-2.0, -1.0, 0.0, 1.0 - 1e-3, 1.0, 3.0]).expand(3, 1, 6)
    assert to_uint8(pixels)[0, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_pictures_survive_the_round_trip():
    picture = Image.fromarray(np.arange(0, 3 * 16 * 16, dtype=np.int64).reshape(16, 16, 3).astype(np.uint8))
    again = np.asarray(to_pil(to_pixels(picture))).astype(int)
    assert np.abs(again - np.asarray(picture)).max() <= 1  # truncation may lose one level to float rounding
