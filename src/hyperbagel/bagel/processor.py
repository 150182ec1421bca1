"""What the processor can do."""

from __future__ import annotations

import torch


def cpu_multiplies_bfloat16() -> bool:
    """Whether it has instructions for products of bfloat16 numbers; others are ten times as slow in them."""
    # `torch.cpu.get_capabilities` tells it too, but only in the newest releases of PyTorch.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
