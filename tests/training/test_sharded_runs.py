"""A run that two processes share: each saves its own part of the weights, and goes on as if nothing had been."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from hyperbagel.bagel.branch_checkpoint import load_branch
from hyperbagel.bagel.model import Bagel
from hyperbagel.cli import main
from tests.test_interruptions import commands

RANKS = 2
SHARDED = [
    "--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy",
    f"--trainer.strategy.data_parallel_size={RANKS}",
    "--trainer.strategy.tensor_parallel_size=1",
    f"--trainer.devices={RANKS}",
    "--trainer.precision=32-true",
]


def one_of(rank: int, port: int, arguments: Sequence[str]) -> None:
    """The run as one process of several, as torchrun starts it, which may not gather weights for a checkpoint."""
    local = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS}
    run = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {name: str(value) for name, value in (local | run).items()}
    gather = DTensor.full_tensor

    def full_tensor(self: DTensor, **options: object) -> Tensor:
        callers = {frame.function for frame in inspect.stack(context=0)}
        # What a callback keeps is no part of the sharded state, and goes to the first process weight by weight.
        assert "save_checkpoint" not in callers or "whole_values" in callers, "a checkpoint gathers weights"
        return gather(self, **options)  # type: ignore[arg-type]

    DTensor.full_tensor = full_tensor  # type: ignore[method-assign, assignment]
    main(list(arguments))
    torch.distributed.barrier()  # a process whose partner is gone before it has ended would be aborted
    torch.distributed.destroy_process_group()


def together(arguments: Sequence[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")  # threads that other tests left would not live on in a fork
    processes = [context.Process(target=one_of, args=(rank, port, arguments)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * RANKS


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["cfg_distillation", "tscd"])  # with an average in a callback, and in the stage
def test_each_process_saves_its_part_and_goes_on_with_it(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = commands(stage, tmp_path)
    monkeypatch.chdir(tmp_path)
    together(command("whole", *SHARDED, "--model.init_args.settings.max_updates=4"))
    for updates in (2, 4):
        together(command("parts", *SHARDED, f"--model.init_args.settings.max_updates={updates}"))
    last = (tmp_path / "parts" / "checkpoints" / "last.ckpt").resolve()
    sizes = [file.stat().st_size for file in sorted(last.glob("*.distcp"))]
    assert len(sizes) == RANKS and min(sizes) > 0.4 * sum(sizes)
    files = [(tmp_path / name / "branch.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]
    model = Bagel.from_pretrained(tmp_path / "fresh" / "nano")
    branch, _ = load_branch(tmp_path / "parts" / "branch.safetensors", model)
    assert branch.guided
