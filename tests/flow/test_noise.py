"""Noise that is shared but for its coarse structure."""

from __future__ import annotations

import pytest
import torch

from hyperbagel.flow.noise import SharedNoise, low_pass


def test_the_mean_is_each_pictures_own_and_the_rest_is_shared() -> None:
    """One frequency is the mean over a grid: by hand, shared - mean(shared) + mean(own)."""
    own = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    shared = torch.randn(4, 5, generator=torch.Generator().manual_seed(7))
    mixed = SharedNoise(frequencies=1, seed=7)(own, [(2, 2)] * 3)
    torch.testing.assert_close(mixed, shared - shared.mean(0) + own.mean(1, keepdim=True))


def test_all_frequencies_are_the_pictures_own_and_none_are_shared() -> None:
    own = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(SharedNoise(4)(own, [(3, 4)] * 2), own)
    shared = SharedNoise(0)(own, [(3, 4)] * 2)
    assert torch.equal(shared[0], shared[1])


def test_shares_by_size_and_leaves_padding_alone() -> None:
    own = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(1))
    own[0, 4:] = 0
    mixed = SharedNoise(1)(own, [(2, 2), (4, 4)])
    torch.testing.assert_close(mixed[:1, :4], SharedNoise(1)(own[:1, :4], [(2, 2)]))
    torch.testing.assert_close(mixed[1:], SharedNoise(1)(own[1:], [(4, 4)]))
    assert not mixed[0, 4:].any()


def test_other_noise_leads_to_the_same_picture() -> None:
    """What a sampler starts with stays; what the student sees does not, but for its coarse part."""
    g = torch.Generator().manual_seed(1)
    own, fresh, sizes = torch.randn(2, 16, 4, generator=g), torch.randn(2, 16, 4, generator=g), [(4, 4), (2, 4)]
    noise = SharedNoise(2, seed=3)
    other = noise.other(own, fresh, sizes)
    torch.testing.assert_close(noise(other, sizes), noise(own, sizes))
    fine = (other - own)[0].unflatten(0, (4, 4))
    assert fine.abs().mean() > 0.5
    coarse = torch.einsum("ij,jkc,kl->ilc", low_pass(4, 2), fine, low_pass(4, 2))
    torch.testing.assert_close(coarse, torch.zeros(4, 4, 4))
    torch.testing.assert_close(SharedNoise(0).other(own, fresh, [(4, 4)] * 2), fresh)
    assert not other[1, 8:].any()


def test_stays_standard_normal() -> None:
    """Over seeds of what is shared; a projection and its complement keep the covariance the identity."""
    own = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(1))
    mixed = torch.cat([SharedNoise(2, seed)(own, [(4, 4)]) for seed in range(200)])
    torch.testing.assert_close(mixed.var(), torch.tensor(1.0), atol=0.05, rtol=0)
    keep = low_pass(4, 2)
    torch.testing.assert_close(keep @ keep, keep)
    torch.testing.assert_close(keep, keep.T)


def test_no_negative_number_of_frequencies() -> None:
    with pytest.raises(ValueError, match="frequencies"):
        SharedNoise(-1)
