"""Layers by torch.compile: how many kinds of passes are compiled."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch._dynamo
from torch import Tensor

from hyperbagel.bagel import mot


def test_more_kinds_of_passes_are_compiled_than_pytorch_does_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its limit PyTorch falls back in silence. Here numbers of dimensions stand for kinds of passes."""

    def doubled(x: Tensor) -> Tensor:
        return 2 * x

    monkeypatch.setattr(mot, "layer_forward", doubled)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    # The one of other tests is not touched; the process's limit is put back.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=8):
        forward = mot.compiled_layer_forward.__wrapped__()
        for dimensions in range(12):
            x = torch.ones((2,) * dimensions)
            assert torch.equal(forward(x), 2 * x)
