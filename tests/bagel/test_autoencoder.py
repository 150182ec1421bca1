"""The autoencoder against the reference outputs, the official names, and bad weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from hyperbagel.bagel.autoencoder import Autoencoder, AutoencoderConfig

FIXTURES = Path(__file__).parents[1] / "fixtures"
SMALL = AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=4)


@pytest.fixture(scope="module")
def golden() -> tuple[Autoencoder, dict[str, Tensor], dict[str, Tensor]]:
    """The reference's autoencoder, its weights in official names, and the `ae.*` cases."""
    with safe_open(FIXTURES / "bagel_tiny_a.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["meta"])["config"]["autoencoder"]
        weights = {key.removeprefix("ae/"): file.get_tensor(key) for key in file.keys() if key.startswith("ae/")}
        cases = {
            key.removeprefix("case/ae."): file.get_tensor(key) for key in file.keys() if key.startswith("case/ae.")
        }
    settings.pop("downsample")
    autoencoder = Autoencoder(AutoencoderConfig(**settings))
    autoencoder.load_official_state_dict(weights)
    return autoencoder, weights, cases


def assert_parity(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_reference_outputs(golden) -> None:
    autoencoder, _, cases = golden
    images, noise = cases["image"][None], cases["noise"][None]
    mean = autoencoder.encode(images)
    assert_parity(torch.cat(autoencoder.moments(images), dim=1)[0], cases["moments"])
    assert_parity(mean[0], cases["encode_mean"])
    assert_parity(autoencoder.encode(images, noise)[0], cases["encode_sample"])
    assert_parity(autoencoder.decode(cases["encode_mean"][None])[0], cases["decode"])
    assert autoencoder.downsample * mean.shape[-1] == images.shape[-1]


def test_official_state_dict_round_trips_bit_exactly(golden) -> None:
    autoencoder, weights, _ = golden
    written = autoencoder.official_state_dict()
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[key], weights[key]) for key in weights)


def test_default_config_has_the_official_names_and_shapes() -> None:
    manifest = json.loads((FIXTURES / "bagel_7b_manifest.json").read_text())["ae"]
    with torch.device("meta"):
        autoencoder = Autoencoder()
    shapes = {key: list(value.shape) for key, value in autoencoder.official_state_dict().items()}
    assert shapes == {key: entry["shape"] for key, entry in manifest.items()}
    assert autoencoder.downsample == 8


def test_assign_fills_a_network_on_meta() -> None:
    source = Autoencoder(SMALL)
    with torch.device("meta"):
        target = Autoencoder(SMALL)
    target.load_official_state_dict(source.official_state_dict(), assign=True)
    latent = torch.randn(1, 4, 4, 6)
    assert torch.equal(target.decode(latent), source.decode(latent))


def test_encoding_does_not_depend_on_the_rest_of_the_batch() -> None:
    autoencoder = Autoencoder(SMALL)
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    torch.testing.assert_close(autoencoder.encode(images)[1:], autoencoder.encode(images[1:]), atol=1e-5, rtol=1e-5)


def test_gradients_pass_through_both_halves() -> None:
    autoencoder = Autoencoder(SMALL)
    images = torch.zeros(1, 3, 8, 8, requires_grad=True)
    autoencoder.decode(autoencoder.encode(images, torch.randn(1, 4, 4, 4))).square().mean().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in autoencoder.parameters())


def test_pixel_unshuffle_folds_pixels_at_the_door() -> None:
    config = AutoencoderConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4, pixel_unshuffle=4)
    autoencoder = Autoencoder(config)
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    latent = autoencoder.encode(images)
    assert config.downsample == 8
    assert latent.shape == (2, 4, 2, 3)
    assert autoencoder.decode(latent).shape == images.shape
    assert autoencoder.official_state_dict()["encoder.conv_in.weight"].shape == (32, 48, 3, 3)


def test_bad_weights_are_reported_together_and_change_nothing(golden) -> None:
    autoencoder, weights, _ = golden
    broken = {key: value + 1 for key, value in weights.items() if key != "encoder.conv_in.bias"}
    broken["decoder.conv_out.bias"] = torch.zeros(5)
    broken["decoder.unknown"] = torch.zeros(1)
    with pytest.raises(ValueError, match="3 problems") as error:
        autoencoder.load_official_state_dict(broken)
    for part in ("missing encoder.conv_in.bias", "unexpected decoder.unknown", "decoder.conv_out.bias has shape (5,)"):
        assert part in str(error.value)
    written = autoencoder.official_state_dict()
    assert all(torch.equal(written[key], weights[key]) for key in weights)


def test_weights_in_linear_form_are_not_taken_for_official_ones(golden) -> None:
    autoencoder, weights, _ = golden
    broken = weights | {"encoder.mid.attn_1.q.weight": weights["encoder.mid.attn_1.q.weight"][:, :, 0, 0]}
    with pytest.raises(ValueError, match=r"encoder\.mid\.attn_1\.q\.weight has shape \(32, 32\)"):
        autoencoder.load_official_state_dict(broken)


@pytest.mark.parametrize(("shape", "message"), [((1, 3, 9, 8), "multiples of 2"), ((3, 8, 8), r"\(B, 3, H, W\)")])
def test_images_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Autoencoder(SMALL).encode(torch.zeros(shape))


def test_latents_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(B, 4, h, w\)"):
        Autoencoder(SMALL).decode(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("settings", [{"ch": 48}, {"ch_mult": ()}, {"pixel_unshuffle": 0}])
def test_impossible_configurations(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        AutoencoderConfig(**settings)
