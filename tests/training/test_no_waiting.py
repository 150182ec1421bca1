"""Updates that never wait for a device: everything of a GPU's training but the GPU.

On PyTorch's "meta" device tensors have shapes and no values, so whatever looks at one fails, as a look at a GPU's would
have waited for all that it still had to compute.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hyperbagel.datamodules.pipeline import CondDropout
from hyperbagel.losses.base import LossTerm, Step
from hyperbagel.modules.pretraining import Pretraining, PretrainingMethod
from hyperbagel.training.networks import Training
from hyperbagel.training.optimizers import MuonWithAdamW
from hyperbagel.training.stage import Stage
from tests.distillation import batches
from tests.runs import scenes
from tests.stages import STAGES

META = torch.device("meta")


class DrawnThere(TorchFunctionMode):
    """Random numbers are drawn on the device, as they are on a GPU; lists do not go there by themselves."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func in (torch.randn, torch.rand, torch.randint) and "generator" in given:
            given |= {"generator": None, "device": META}
        if func in (torch.tensor, torch.as_tensor):
            assert torch.device(given.get("device") or "cpu").type == "cpu", "a list waits on its way to a device"
        return func(*args, **given)


class NoWaiting(TorchDispatchMode):
    """Copies to the device are queued behind its work."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is torch.ops.aten._to_copy.default and given.get("device") == META and not args[0].is_meta:
            assert given.get("non_blocking"), "a copy waits for all that the device still has to do"
        return func(*args, **given)


def prepared(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> tuple[Stage, dict[str, torch.optim.Optimizer]]:
    """A stage on the device, with the trainer's part of an update written out."""
    stage.to(META)
    stage.model.multiple = 16
    optimizers = {
        name: training.optimizer(stage._named_parameters_of(name)) for name, training in stage.networks.items()
    }
    limits = {"max_steps": -1, "world_size": 1, "global_rank": 0, "callback_metrics": {}}
    monkeypatch.setattr(type(stage), "trainer", SimpleNamespace(**limits))
    monkeypatch.setattr(type(stage), "global_rank", 0)
    monkeypatch.setattr(stage, "manual_backward", lambda loss: loss.backward())
    monkeypatch.setattr(stage, "_optimizer_of", lambda name: optimizers[name])
    stage.watch.deferring = True

    def logged(metrics: dict[str, Any], **options: Any) -> None:
        assert all(isinstance(value, Tensor) for value in metrics.values())

    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which this device does not know
    monkeypatch.setattr(stage, "log_dict", logged)
    monkeypatch.setattr(stage, "log", lambda name, value, **options: logged({name: value}))
    return stage, optimizers


def pretraining(part: Any) -> Callable[[str, str | None, Training], Stage]:
    return lambda folder, branch, train: Pretraining(
        model=folder, method=PretrainingMethod(train=part, draws=2), student=train
    )


CASES = {
    "generation": (pretraining("generation"), {"generation": 1, "editing": 1}),
    "both": (pretraining("both"), {"generation": 1, "editing": 1}),
    "understanding": (pretraining("understanding"), {"caption": 1, "dialogue": 1}),
    "mixed": (pretraining("both"), {"generation": 1, "multi_turn": 1, "caption": 1}),
    "draft_head": (STAGES["draft_head"].make, {"caption": 1, "dialogue": 1}),
} | {
    name: (STAGES[name].make, {"generation": 1, "editing": 1})
    for name in STAGES
    if name not in ("pretraining", "draft_head")
}


@pytest.mark.parametrize("name", CASES)
def test_an_update_never_looks_at_the_device(
    name: str, nano_folder: str, nano_branch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, kinds = CASES[name]
    stage, _ = prepared(make(nano_folder, nano_branch, Training(MuonWithAdamW)), monkeypatch)
    data = scenes(kinds, batch_size=6)
    data.dropout = CondDropout(0, 0.3, 0.3)
    data.setup("fit")
    loaded = data.train_dataloader()
    loaded.device = META
    with DrawnThere(), NoWaiting():
        for index, batch in zip(range(1), loaded, strict=False):
            stage.training_step(batch.to(META), index)
    assert int(stage.student_step) >= 1


def test_what_waits_to_be_looked_at_keeps_no_step(
    nano_folder: str, nano_branch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensors of a step are most of a device's memory, and losses are looked at once in many updates."""
    steps: list[weakref.ref[Step]] = []

    class Spy(LossTerm):
        def forward(self, step: Step) -> Tensor:
            steps.append(weakref.ref(step))
            return step.velocity.square().mean()

    stage = STAGES["cfg_distillation"].make(nano_folder, nano_branch, Training(MuonWithAdamW))
    stage.add_loss(Spy("spy"))
    prepared(stage, monkeypatch)
    batch = batches(1)[0].to(META)
    with DrawnThere():
        stage.training_step(batch, 0)
    gc.collect()
    assert len(stage.watch._pending) == 2 and [step() for step in steps] == [None]


def test_batches_for_a_gpu_come_through_page_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are put there by a thread of the loader, not by the trainer."""
    locked: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: locked.append(self) or self)
    data = scenes({"generation": 1}, batch_size=2)
    data.setup("fit")
    monkeypatch.setattr(type(data), "_device", torch.device("cuda"))
    loader = data.train_dataloader()
    assert loader._loader.pin_memory
    packed = loader.dataset[loader.order[0]]
    pixels = packed.pin_memory().pixels
    assert [id(value) for value in locked] == [id(pixels), id(packed.latents)]
