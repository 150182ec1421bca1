"""Less memory or time for who draws and answers: weights rounded, or kept in the host's memory, layers joined and
compiled."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hyperbagel.bagel.absent import Absent
from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.joinable import separate
from hyperbagel.bagel.joined import join
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.quantized import is_plain, quantize
from hyperbagel.bagel.segments import Document, ImageSegment, LatentSegment
from hyperbagel.bagel.shipped import cache_folder
from hyperbagel.pipeline.device import Runtime


class Offload:
    """Keeps branches and the autoencoder in the host's memory while nothing uses them.

    The understanding stack takes part in everything, and stays on the device.

    Args:
        device: where parts are used.
        parts: what there is, in any order; what shares weights with a part in use stays with it.
    """

    def __init__(self, device: torch.device, parts: Sequence[nn.Module]) -> None:
        self.device, self.parts = device, list(parts)

    def need(self, *parts: nn.Module) -> None:
        """Have these on the device and all others not."""
        used = {id(parameter) for part in parts for parameter in part.parameters()}
        for part in self.parts:
            if not any(id(parameter) in used for parameter in part.parameters()):
                bring(part, torch.device("cpu"))
        for part in parts:
            bring(part, self.device)


def bring(part: nn.Module, device: torch.device) -> None:
    """Move weights in place, those that are elsewhere: modules that share them go on doing so, as rounded ones, which
    PyTorch does not move to where they are, do too. What was joined comes apart."""

    def is_there(value: Tensor) -> bool:
        return value.device.type == device.type and device.index in (None, value.device.index)

    if not all(map(is_there, part.parameters())):
        separate(part)
    for parameter in part.parameters():
        if is_there(parameter):
            continue
        moved = parameter.detach().to(device)
        if is_plain(parameter) and torch._has_compatible_shallow_copy_type(parameter, moved):
            parameter.data = moved
        else:
            torch.utils.swap_tensors(parameter, nn.Parameter(moved, parameter.requires_grad))
    for module in part.modules():
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, value.to(device))


def read_by(model: Bagel, documents: Sequence[Document], branch: GenerationBranch | None = None) -> list[nn.Module]:
    """What reads documents, beside the understanding stack. branch: what reads clean latents, None for the original."""
    if any(isinstance(segment, ImageSegment | LatentSegment) for document in documents for segment in document):
        return [branch or model.generation, model.autoencoder]
    return []


def settle(
    runtime: Runtime, model: Bagel, branches: Sequence[GenerationBranch] = (), drafts: Sequence[nn.Module] = ()
) -> Offload | None:
    """Make what was loaded as small or fast as is asked for, and bring it to its device; what offloads, if anything.

    branches: those that draw beside the model's own. To be called once, when all files are read, as branches and draft
    heads tell by its weights whether a model is theirs, and before anything keeps a snapshot of weights.
    """
    place, _ = runtime.resolve()
    parts = [part for part in (*branches, model.generation, model.autoencoder) if not isinstance(part, Absent)]
    networks = [part for part in reversed(parts) if isinstance(part, GenerationBranch)]  # owners before those who share
    if runtime.quantize is not None:
        quantize(runtime.quantize, place, model.understanding, *networks)
    if runtime.compile:
        compile_drawing(model)
    for resident in (model.understanding, *drafts):
        bring(resident, place)
    offload = Offload(place, parts) if runtime.offload else None
    if offload is not None:
        offload.need()
    else:
        for part in parts:
            bring(part, place)
        if place.type == "cuda":
            join(model.understanding, *networks, *drafts)
    return offload


def compile_drawing(model: Bagel) -> None:
    """Have the layers that denoise and the decoder of pictures compiled, for each size when it is first drawn.

    Compiled kernels are kept in the user's cache, so that the next process finds them.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    model.compiled = "fixed"
    if not isinstance(model.autoencoder, Absent):
        model.autoencoder.network.decoder.compile(dynamic=False)
