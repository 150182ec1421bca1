"""Which pairs are regressed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hyperbagel.modules.pair_filter import PairFilter, PairFilters
from hyperbagel.modules.pair_term import PairRegression
from torch import Tensor, nn

from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.losses.reduction import cauchy_error
from hyperbagel.modules.adversarial_reward import ADP, ADPSettings
from hyperbagel.modules.dmdo import DMDO, DMDOSettings
from hyperbagel.rewards.base import Reward
from hyperbagel.training.distillation import StageSettings

from .distillation import Batches, adam, documents, fit, sgd, steps_of, trainer

PAIRS_ALONE = ADPSettings(pair_weight=1, latent_weight=0, pixel_weight=0)


class Asked(Reward):
    """The number that the prompt is. It has a weight, which must stay out of checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def score(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        assert all(image.shape[0] == 3 for image in images)
        return self.scale * torch.tensor([float(prompt) for prompt in prompts])


def batch_of(*rewards: float, source: str = "generation") -> DocumentBatch:
    batch = documents(0, False, [(16, 16)] * len(rewards))
    return replace(batch, metas=tuple({"reward_prompt": str(r), "worth": str(-r)} for r in rewards), source=source)


def attached(model: Bagel, folder: str, *filters: PairFilter) -> PairFilters:
    result = PairFilters(filters)
    result.attach(model, folder)
    return result


def test_keeps_what_every_filter_finds_good_enough(nano_folder: str) -> None:
    model = Bagel.from_pretrained(nano_folder)
    batch, grid = batch_of(1, 2, 3), model.latent_grid([(16, 16)] * 3)
    x_0 = torch.zeros(3, 4, model.config.latent_token_dim)
    low, high = PairFilter(Asked(), 2.0), PairFilter(Asked(), -2.0, prompt_key="worth")
    assert attached(model, nano_folder)(x_0, grid, batch) is None
    assert attached(model, nano_folder, low)(x_0, grid, batch).tolist() == [False, True, True]
    assert attached(model, nano_folder, low, high)(x_0, grid, batch).tolist() == [False, True, False]


def test_other_sources_are_not_judged(nano_folder: str) -> None:
    model = Bagel.from_pretrained(nano_folder)
    judge = attached(model, nano_folder, PairFilter(Asked(), 9.0, sources=["generation"]))
    x_0, grid = torch.zeros(2, 4, model.config.latent_token_dim), model.latent_grid([(16, 16)] * 2)
    assert judge(x_0, grid, batch_of(1, 2)).tolist() == [False, False]
    assert judge(x_0, grid, batch_of(1, 2, source="editing")).tolist() == [True, True]


def test_a_missing_caption_is_not_replaced_by_another_text(nano_folder: str) -> None:
    model = Bagel.from_pretrained(nano_folder)
    judge = attached(model, nano_folder, PairFilter(Asked(), 0.0, prompt_key="caption"))
    x_0, grid = torch.zeros(1, 4, model.config.latent_token_dim), model.latent_grid([(16, 16)])
    with pytest.raises(ValueError, match="document 0-0 of source 'generation' has no 'caption' in its meta"):
        judge(x_0, grid, batch_of(1))


def test_sources_that_the_data_lacks_are_refused(nano_folder: str, tmp_path: Path) -> None:
    stage = ADP(nano_folder, student=adam(), adp=PAIRS_ALONE, filters=[PairFilter(Asked(), 1.0, sources=["pictures"])])
    with pytest.raises(ValueError, match=r"pair filter: no source of `data.train` is named pictures"):
        trainer(tmp_path).fit(stage, datamodule=Batches([batch_of(1)], "generation"))


@pytest.mark.parametrize("rewards", [(1, 5), (1, 1)])
def test_adp_regresses_on_kept_pairs_alone(
    rewards: tuple[float, float], nano_folder: str, nano_branch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kept pair counts as it does without filters; where none is kept, nothing moves."""
    monkeypatch.setattr("tests.modules.distillation.batches", lambda count: [batch_of(*rewards)] * count)
    stage = ADP(nano_folder, nano_branch, student=sgd(0.1), adp=PAIRS_ALONE, filters=[PairFilter(Asked(), 2.0)])
    before = {name: p.detach().clone() for name, p in stage.student.named_parameters()}
    (step,) = steps_of(stage, 1, tmp_path)
    assert step.target is not None
    errors = (step.output - step.target).square().mean((1, 2))
    (term,) = stage.loss_terms
    torch.testing.assert_close(term(step), errors[1] / 2 if 5 in rewards else torch.zeros(()))
    moved = any(not torch.equal(p, before[name]) for name, p in stage.student.named_parameters())
    assert moved == (5 in rewards)
    assert not [key for key in stage.state_dict() if "filters" in key]


def test_a_term_beside_distribution_matching_does_so_too(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    one = StageSettings(steps=1, text_scale=(3.0, 3.0))
    stage = DMDO(nano_folder, None, adam(), adam(), DMDOSettings(fake_updates=1), one)
    term = PairRegression(nano_branch, 2, scale=0.5, filters=[PairFilter(Asked(), 2.0)])
    stage.add_loss(term)
    run = fit(stage, [batch_of(1, 5)], tmp_path)
    assert run.logged_metrics["kept/pairs"] == 0.5
    assert not [key for key in stage.state_dict() if "reward" in key]
    stage.total = lambda step, update: seen.append(step) or original(step, update)
    seen: list = []  # type: ignore[type-arg]
    original = DMDO.total.__get__(stage)
    fit(stage, [batch_of(1, 5)], tmp_path)
    step = next(step for step in seen if bool((step.t == 1).all()))
    expected = cauchy_error(step.x0_hat[1:], term.pairs(step)[1:], 0.5) / 2
    torch.testing.assert_close(term(step), expected, atol=1e-5, rtol=1e-4)
