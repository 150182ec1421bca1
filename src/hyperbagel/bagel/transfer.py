"""The way of tensors from the host to a device, without waiting for what the device still has to do."""

from __future__ import annotations

import torch
from torch import Tensor


def moved(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device.

    From the host it goes through page-locked memory, so that the copy is queued behind the device's work. A plain
    `.to` would wait for all of that, and nothing could be prepared meanwhile.
    """
    if value.device == device or not value.is_cpu:
        return value.to(device)
    if device.type == "cuda" and not value.is_pinned():
        value = value.pin_memory()
    return value.to(device, non_blocking=device.type != "mps")
