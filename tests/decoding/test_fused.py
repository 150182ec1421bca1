"""Projections of fused layers are the linear maps that they join, in whatever layout their weights are kept."""

import pytest
import torch
from torch import nn

from hyperbagel.decoding import fused
from hyperbagel.decoding.fused import Projection


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 4, 11])
@pytest.mark.parametrize(("fuse", "packed"), [(False, False), (True, False), (True, True)])
def test_a_projection_is_its_linear_maps(
    monkeypatch: pytest.MonkeyPatch, fuse: bool, packed: bool, rows: int, bias: bool
) -> None:
    monkeypatch.setattr(fused, "_PACKED", 0 if packed else 2**30)
    torch.manual_seed(0)
    maps = [nn.Linear(48, 32, bias), nn.Linear(48, 16, bias)]
    x = torch.randn(rows, 48)
    with torch.no_grad():
        projection = Projection(maps, fuse)
        torch.testing.assert_close(projection(x), torch.cat([m(x) for m in maps], -1), atol=1e-5, rtol=1e-5)
        assert projection.packed == (packed and torch.backends.mkldnn.is_available())
        single, stream = nn.Linear(48, 32, bias=False), torch.randn(rows, 32)
        expected = stream + single(x)
        torch.testing.assert_close(Projection([single], fuse).add_to(stream, x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("able", [False, True])
def test_weights_are_rounded_where_that_is_allowed_and_faster(monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    monkeypatch.setattr(fused, "_PACKED", 0)
    monkeypatch.setattr(fused, "cpu_multiplies_bfloat16", lambda: able)
    torch.manual_seed(0)
    linear, x = nn.Linear(48, 32), torch.randn(3, 48)
    with torch.no_grad():
        exact, rounded = Projection([linear], fuse=True), Projection([linear], fuse=True, half=True)
        torch.testing.assert_close(exact(x), linear(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rounded(x), linear(x), atol=0.03, rtol=0.03)
        assert rounded(x).dtype == torch.float32
        assert bool((rounded(x) == exact(x)).all()) == (not (able and exact.packed))


def test_only_large_weights_in_float32_are_packed() -> None:
    with torch.no_grad():
        assert not Projection([nn.Linear(192, 512)], fuse=True).packed
        assert not Projection([nn.Linear(1024, 1024).bfloat16()], fuse=True).packed
