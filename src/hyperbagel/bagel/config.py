"""Configurations of the backbone, in the official names where the official checkpoint has one."""

from __future__ import annotations

from dataclasses import dataclass, field

from hyperbagel.bagel.autoencoder import AutoencoderConfig
from hyperbagel.bagel.images import LATENT_TRANSFORM, VIT_TRANSFORM, ImageTransform


@dataclass(frozen=True)
class LLMConfig:
    """The language model, both experts alike. Defaults: Qwen2.5-7B as in BAGEL-7B-MoT (`llm_config.json`)."""

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    qk_norm: bool = True

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be an even multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class ViTConfig:
    """The SigLIP tower. `num_hidden_layers` counts the layers built (`vit_config.json` says one more)."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 26
    num_attention_heads: int = 16
    patch_size: int = 14
    image_size: int = 980
    num_channels: int = 3
    layer_norm_eps: float = 1e-6

    @property
    def patches_per_side(self) -> int:
        """Side of the (never interpolated) position grid."""
        return self.image_size // self.patch_size

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch."""
        return self.num_channels * self.patch_size**2


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of `<|im_start|>`, `<|im_end|>`, `<|vision_start|>`, `<|vision_end|>` (defaults: Qwen2.5's)."""

    bos: int = 151644
    eos: int = 151645
    start_of_image: int = 151652
    end_of_image: int = 151653


@dataclass(frozen=True)
class BagelConfig:
    """A whole BAGEL; the defaults are BAGEL-7B-MoT.

    latent_patch_size: latent pixels per side of one latent token; max_latent_size: side of the latent position grid;
    timestep_shift: shift s of the sampling schedule t = s u / (1 + (s - 1) u).
    """

    llm: LLMConfig = field(default_factory=LLMConfig)
    vit: ViTConfig = field(default_factory=ViTConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    tokens: SpecialTokens = field(default_factory=SpecialTokens)
    latent_patch_size: int = 2
    max_latent_size: int = 64
    timestep_shift: float = 3.0
    vae_transform: ImageTransform = LATENT_TRANSFORM
    vit_transform: ImageTransform = VIT_TRANSFORM

    @property
    def latent_token_dim(self) -> int:
        """Channels of one latent token: z * p * p."""
        return self.autoencoder.z_channels * self.latent_patch_size**2

    @property
    def latent_stride(self) -> int:
        """Pixels per side of one latent token."""
        return self.autoencoder.downsample * self.latent_patch_size
