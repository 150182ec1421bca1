"""Distributed strategies give the same updates; here with a single process, which runs all their hooks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import DTensor

from hyperbagel.bagel.branch_checkpoint import load_branch
from hyperbagel.modules.dmdo import DMDO, DMDOMethod
from hyperbagel.training.distillation import DistillationSettings
from hyperbagel.training.stage import Compute
from tests.distillation import batches, fit, sgd
from tests.stages import make_stage


@pytest.fixture(autouse=True)
def _no_process_group_left() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("name", ["dmdo", "adp"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_distributed_training_takes_the_same_steps(
    strategy: str, name: str, nano_folder: str, nano_branch: str, tmp_path: Path
) -> None:
    alone = make_stage(name, nano_folder, nano_branch, sgd())
    fit(alone, batches(2), tmp_path)
    together = make_stage(name, nano_folder, nano_branch, sgd())
    how: Any = "ddp_find_unused_parameters_true"
    if strategy == "fsdp":
        how = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    fit(together, batches(2), tmp_path / strategy, strategy=how, devices=1)
    state = together.state_dict()
    sharded = {n for n, v in state.items() if isinstance(v, DTensor)}
    if strategy == "fsdp":
        trained = {n for n, p in alone.named_parameters() if p.requires_grad}
        assert trained <= sharded
        assert all(isinstance(p, DTensor) for p in together.model.understanding.layers.parameters())
    for key, value in alone.state_dict().items():
        whole = state[key].full_tensor() if key in sharded else state[key]
        torch.testing.assert_close(whole, value, atol=1e-5, rtol=1e-4)
    branch, _ = load_branch(tmp_path / strategy / "branch.safetensors", alone.model)
    for key, value in alone.branch.state_dict().items():
        torch.testing.assert_close(branch.state_dict()[key], value, atol=1e-5, rtol=1e-4)


def test_mixed_precision_gathers_halves_and_keeps_full_weights(
    nano_folder: str, nano_branch: str, tmp_path: Path
) -> None:
    """A float32 student over a bfloat16 model: what is sharded and updated stays float32, and training moves it."""
    settings = DistillationSettings(compute=Compute(dtype="bfloat16"))
    train = sgd(dtype="float32")
    stage = DMDO(
        model=nano_folder,
        init_from=nano_branch,
        method=DMDOMethod(fake_updates=1),
        student=train,
        fake=train,
        settings=settings,
    )
    start = stage.student.norm.weight.detach().clone()
    how: Any = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    fit(stage, batches(2), tmp_path, strategy=how, devices=1, precision="bf16-mixed")
    weight = stage.student.norm.weight
    assert isinstance(weight, DTensor) and weight.dtype == torch.float32
    assert stage.model.understanding.norm.weight.dtype == torch.bfloat16
    layer = stage.student.layers[0].input  # type: ignore[union-attr]
    assert layer._get_fsdp_state()._mp_policy.param_dtype == torch.bfloat16  # type: ignore[operator, union-attr]
    assert torch.isfinite(weight.full_tensor()).all() and not torch.equal(weight.full_tensor(), start)


def test_the_next_layer_is_gathered_while_one_runs(
    nano_folder: str, nano_branch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In passes with gradients and without, and when layers run again; nothing is gathered in vain."""
    turns: list[tuple[FSDPParamGroup, bool]] = []
    own_turn = FSDPParamGroup.pre_forward

    def pre_forward(self: FSDPParamGroup, *arguments: Any) -> Any:
        turns.append((self, self._all_gather_result is not None or self.is_unsharded))
        return own_turn(self, *arguments)

    monkeypatch.setattr(FSDPParamGroup, "pre_forward", pre_forward)
    stage = DMDO(
        model=nano_folder,
        init_from=nano_branch,
        method=DMDOMethod(fake_updates=1),
        student=sgd(),
        fake=sgd(),
        settings=DistillationSettings(compute=Compute(checkpointing=True)),
    )
    how: Any = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    fit(stage, batches(2), tmp_path, strategy=how, devices=1)
    layers = [*stage.model.understanding.layers, *stage.student.layers, *stage.fake.layers]
    units = {id(unit) for layer in layers for unit in (layer.input, layer.output)}
    of_layers = [(group, ready) for group, ready in turns if id(group.modules[0]) in units]
    assert len(of_layers) > 100 and sum(ready for _, ready in of_layers) > 0.9 * len(of_layers)
    assert all(group._all_gather_result is None for group, _ in of_layers)
