"""Clock, memory and peaks of a device."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Meter:
    """Measures what is computed on a device.

    Memory is what tensors took on a GPU; on a CPU it is the most that the process ever had.
    """

    device: torch.device

    @property
    def on_gpu(self) -> bool:
        """Whether the device runs beside the process, which then has to wait for it."""
        return self.device.type == "cuda"

    def now(self) -> float:
        """Seconds, when all that was begun is done."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, work: Callable[[], object], repeats: int, calls: int = 1) -> float:
        """Median time of a call, of `calls` in a row each time, after one that warms up."""
        work()
        times = []
        for _ in range(repeats):
            started = self.now()
            for _ in range(calls):
                work()
            times.append((self.now() - started) / calls)
        return statistics.median(times)

    def restart_memory(self) -> None:
        """Count the peak from here on; what nothing refers to any more is given back first."""
        if self.on_gpu:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        """The most memory since `restart_memory`."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def name(self) -> str:
        """The device in words."""
        if self.on_gpu:
            return torch.cuda.get_device_name(self.device)
        return f"CPU, {torch.get_num_threads()} threads"


@dataclass(frozen=True)
class Peaks:
    """What a device reached: operations a second in a large matrix product, bytes a second in a copy (read and
    written)."""

    matmul: float
    copy: float

    @staticmethod
    @torch.inference_mode()
    def of(meter: Meter, dtype: torch.dtype) -> Peaks:
        """Measured now. Sizes are such that a device is busy for milliseconds."""
        side, numbers, calls = (8192, 2**30, 10) if meter.on_gpu else (768, 2**24, 1)
        a, b = (torch.randn(side, side, device=meter.device, dtype=dtype) for _ in range(2))
        product = meter.seconds(lambda: a @ b, 5, calls)
        source = torch.zeros(numbers, dtype=torch.uint8, device=meter.device)
        target = torch.empty_like(source)
        copy = meter.seconds(lambda: target.copy_(source), 5, calls)
        return Peaks(2 * side**3 / product, 2 * numbers / copy)
