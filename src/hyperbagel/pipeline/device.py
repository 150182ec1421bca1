"""Where and how to compute, as options of commands say it. Reading them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

DType = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Device:
    """Where and how to compute.

    Args:
        device: cpu, cuda, cuda:1 or another torch device; auto takes a GPU when there is one. `--device cuda` is short
            for `--device.device cuda`.
        dtype: type of weights and activations; auto is bfloat16 on GPUs and float32 on CPUs.
    """

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def resolve(self) -> tuple[Any, Any]:
        """The `torch.device`, which is there, and the `torch.dtype`. Raises ValueError for a device that is not."""
        import torch

        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            place = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"device {name}: no such device; use cpu, cuda or cuda:1, or leave it out") from error
        if place.type != "cpu":
            _require(place)
        dtype = self.dtype
        if dtype == "auto":
            dtype = "float32" if place.type == "cpu" else "bfloat16"
        return place, getattr(torch, dtype)


@dataclass(frozen=True)
class Runtime(Device):
    """Where and how to draw and to answer.

    Args:
        device: as of `Device`.
        dtype: as of `Device`.
        compile: compile the layers that denoise and the decoder, for each size of pictures when it is first drawn;
            the first picture takes a minute or more, all others less. On a GPU, answers are written in rounds of one
            shape, which are recorded once and replayed.
        offload: keep what the task at hand does not use in the host's memory, for GPUs on which not all of it fits;
            what is used next has to be brought there.
        quantize: round the experts' weights to int8, fp8 or nf4, of which one takes a byte, a byte and half a byte;
            needs `pip install torchao`.
    """

    compile: bool = False
    offload: bool = False
    quantize: Literal["int8", "fp8", "nf4"] | None = None

    def __post_init__(self) -> None:
        if self.compile and self.offload and self.quantize is not None:
            raise ValueError("rounded weights that compiled layers know cannot be moved: leave out compile or offload")

    @property
    def read_on_host(self) -> bool:
        """Whether weights are read to the host's memory first, as not all of them are to go to the device as they
        are."""
        return self.offload or self.quantize is not None


def _require(place: Any) -> None:
    """Raises ValueError for an accelerator that this machine, or its torch, lacks."""
    import torch

    backend = getattr(torch, place.type, None)
    available = getattr(backend, "is_available", None)
    count = backend.device_count() if backend is not None and available is not None and available() else 0
    if not count:
        what = "GPU" if place.type == "cuda" else place.type
        raise ValueError(f"device {place}: no {what} here; use --device cpu or leave it out")
    if (place.index or 0) >= count:
        raise ValueError(f"device {place}: the last one here is {place.type}:{count - 1}; use that or leave it out")
