"""The FLUX autoencoder, of the parts of diffusers' `AutoencoderKL`, with the names of the official `ae.safetensors`.

Pictures are (B, 3, H, W) in [-1, 1]; a latent is `scale_factor * (u - shift_factor)` of a draw `u` of the posterior.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperbagel.bagel.diffusers_blocks import blocks

NORM_GROUPS = 32
NORM_EPS = 1e-6

# diffusers' name -> official name, applied in this order; level indices of the decoder are mirrored besides.
_RENAMES = (
    (r"\.resnets\.", ".block."),
    (r"\.mid_block\.block\.0\.", ".mid.block_1."),
    (r"\.mid_block\.block\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.attn_1\.group_norm\.", ".attn_1.norm."),
    (r"\.attn_1\.to_([qkv])\.", r".attn_1.\1."),
    (r"\.attn_1\.to_out\.0\.", ".attn_1.proj_out."),
    (r"\.(down|up)_blocks\.", r".\1."),
    (r"\.downsamplers\.0\.", ".downsample."),
    (r"\.upsamplers\.0\.", ".upsample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
)
_ATTENTION_WEIGHT = re.compile(r"\.attn_1\.(q|k|v|proj_out)\.weight$")


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of the autoencoder; the defaults are the official network."""

    resolution: int = 256
    """Nominal training size, in pixels (recorded only, any size works)."""
    in_channels: int = 3
    """Channels of pictures that are encoded."""
    ch: int = 128
    """Base width in channels, a multiple of 32."""
    out_ch: int = 3
    """Channels of pictures that are decoded."""
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    """Width factor of each level, highest resolution first."""
    num_res_blocks: int = 2
    """Residual blocks per level."""
    z_channels: int = 16
    """Latent channels."""
    scale_factor: float = 0.3611
    """Latents are multiplied by it after the shift."""
    shift_factor: float = 0.1159
    """Latents are lowered by it before they are scaled."""
    pixel_unshuffle: int = 1
    """Side of the pixel blocks folded into channels at the door, for small and cheap autoencoders (1 is the official
    network)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ch_mult", tuple(self.ch_mult))  # JSON and YAML give lists
        if self.ch % NORM_GROUPS:
            raise ValueError(
                f"autoencoder ch={self.ch} must be a multiple of {NORM_GROUPS}, the group count of its norms"
            )
        for name in ("pixel_unshuffle", "num_res_blocks", "z_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"autoencoder {name}={getattr(self, name)} must be at least 1")
        if not self.ch_mult or min(self.ch_mult) < 1:
            raise ValueError(f"autoencoder ch_mult={self.ch_mult} must have one positive factor a level")

    @property
    def downsample(self) -> int:
        """Pixels per latent position along each side."""
        return self.pixel_unshuffle * 2 ** (len(self.ch_mult) - 1)


class Autoencoder(nn.Module):
    """Pictures to scaled latents and back; differentiable both ways.

    Its own `state_dict` has diffusers' names; `official_state_dict` and `load_official_state_dict` convert.
    """

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or AutoencoderConfig()
        self.network = _Network(self.config)

    @property
    def downsample(self) -> int:
        """Pixels per latent position along each side."""
        return self.config.downsample

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, each (B, z, h, w), of images (B, 3, H, W) in [-1, 1].

        Raises ValueError unless H and W are positive multiples of `downsample`.
        """
        side = self.config.downsample
        if images.ndim != 4 or images.shape[1] != self.config.in_channels:
            raise ValueError(f"images must be (B, {self.config.in_channels}, H, W), got {tuple(images.shape)}")
        if any(size == 0 or size % side for size in images.shape[2:]):
            raise ValueError(f"image height and width must be multiples of {side}, got {tuple(images.shape[2:])}")
        folded = F.pixel_unshuffle(images, self.config.pixel_unshuffle)
        # The raw outputs: in diffusers' `AutoencoderKL` the variance is clamped, in the official network it is not.
        mean, logvar = self.network.encoder(folded).chunk(2, dim=1)
        return mean, logvar

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latent (B, z, h, w) of images (B, 3, H, W) in [-1, 1].

        noise: standard normal (B, z, h, w) for a draw from the posterior; None takes its mean.
        """
        mean, logvar = self.moments(images)
        drawn = mean if noise is None else mean + (logvar / 2).exp() * noise
        return self.config.scale_factor * (drawn - self.config.shift_factor)

    def decode(self, latent: Tensor) -> Tensor:
        """Images (B, 3, H, W), nominally in [-1, 1] but not clamped, of scaled latents (B, z, h, w)."""
        if latent.ndim != 4 or latent.shape[1] != self.config.z_channels:
            raise ValueError(f"latent must be (B, {self.config.z_channels}, h, w), got {tuple(latent.shape)}")
        decoded = self.network.decoder(latent / self.config.scale_factor + self.config.shift_factor)
        return F.pixel_shuffle(decoded, self.config.pixel_unshuffle)

    def official_state_dict(self) -> dict[str, Tensor]:
        """The weights under the names and shapes of `ae.safetensors` (views, not copies)."""
        levels = len(self.config.ch_mult)
        named = ((_official_name(key, levels), value) for key, value in self.network.state_dict().items())
        return {name: value[..., None, None] if _ATTENTION_WEIGHT.search(name) else value for name, value in named}

    def load_official_state_dict(self, state_dict: Mapping[str, Tensor], *, assign: bool = False) -> None:
        """Load weights with the names and shapes of `ae.safetensors`.

        assign: take the given tensors as the parameters, as in `nn.Module.load_state_dict` (needed on "meta").
        Raises one ValueError that lists all missing, unexpected and wrong-shape keys; nothing is loaded then.
        """
        levels = len(self.config.ch_mult)
        expected = {name: tuple(value.shape) for name, value in self.official_state_dict().items()}
        _check_keys(expected, {name: tuple(value.shape) for name, value in state_dict.items()})
        renamed = {}
        for key in self.network.state_dict():
            name = _official_name(key, levels)
            value = state_dict[name]
            renamed[key] = value.flatten(1) if _ATTENTION_WEIGHT.search(name) else value
        self.network.load_state_dict(renamed, assign=assign)


class _Network(nn.Module):
    """diffusers' encoder and decoder with the official widths, under their names in its `AutoencoderKL`."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        levels, folded = len(config.ch_mult), config.pixel_unshuffle**2
        shape = {
            "block_out_channels": tuple(config.ch * factor for factor in config.ch_mult),
            "layers_per_block": config.num_res_blocks,
            "norm_num_groups": NORM_GROUPS,
            "act_fn": "silu",
        }
        self.encoder = blocks().Encoder(
            in_channels=config.in_channels * folded,
            out_channels=config.z_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            double_z=True,
            **shape,
        )
        self.decoder = blocks().Decoder(
            in_channels=config.z_channels,
            out_channels=config.out_ch * folded,
            up_block_types=("UpDecoderBlock2D",) * levels,
            **shape,
        )
        if config.ch_mult[0] != 1:
            # diffusers starts the encoder at the first level's width, the official network at the base width.
            self.encoder.conv_in = nn.Conv2d(config.in_channels * folded, config.ch, kernel_size=3, padding=1)
            self.encoder.down_blocks[0].resnets[0] = blocks().ResnetBlock2D(
                in_channels=config.ch,
                out_channels=config.ch * config.ch_mult[0],
                temb_channels=None,
                groups=NORM_GROUPS,
                eps=NORM_EPS,
            )


def border_shapes(config: AutoencoderConfig) -> dict[str, torch.Size]:
    """Shapes of the first and last layers by official name, by which a file is known that is of another network."""
    folded, first, last = config.pixel_unshuffle**2, config.ch * config.ch_mult[0], config.ch * config.ch_mult[-1]
    widths = {
        "encoder.conv_in": (config.ch, config.in_channels * folded),
        "encoder.conv_out": (2 * config.z_channels, last),
        "decoder.conv_in": (last, config.z_channels),
        "decoder.conv_out": (config.out_ch * folded, first),
    }
    weights = {f"{name}.weight": torch.Size((*width, 3, 3)) for name, width in widths.items()}
    return weights | {f"{name}.bias": torch.Size(width[:1]) for name, width in widths.items()}


def _official_name(key: str, levels: int) -> str:
    """The official name of a tensor of diffusers' network."""
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    # up.0 is the highest resolution officially, the lowest in diffusers.
    return re.sub(r"^decoder\.up\.(\d+)", lambda match: f"decoder.up.{levels - 1 - int(match[1])}", key)


def _check_keys(expected: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple[int, ...]]) -> None:
    """Raise one ValueError with everything in which the given names and shapes differ from the expected ones."""
    problems = [f"missing {name} {shape}" for name, shape in expected.items() if name not in got]
    problems += [f"unexpected {name}" for name in got if name not in expected]
    problems += [
        f"{name} has shape {got[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in got and got[name] != shape
    ]
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(f"autoencoder weights do not fit its configuration, {len(problems)} problems:\n  {listed}")
