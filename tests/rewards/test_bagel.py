"""BAGEL's own opinion as a reward."""

from __future__ import annotations

import pytest
import torch

from hyperbagel.bagel.context import DecodeCache
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Segment, TextSegment, ViTSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.rewards.bagel import BagelReward, CaptionReward, UnderstandingReward
from hyperbagel.scenes.vocabulary import tokenizer_folder
from tests.nano import nano_bagel


@pytest.fixture(scope="module")
def model() -> Bagel:
    return nano_bagel().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(tokenizer_folder(), add_special_tokens=True)


@pytest.fixture
def reward(model: Bagel, tokenizer: Tokenizer) -> BagelReward:
    result = BagelReward()
    result.attach(model, tokenizer)
    return result


@pytest.fixture(params=[BagelReward, CaptionReward])
def any_reward(request: pytest.FixtureRequest, model: Bagel, tokenizer: Tokenizer) -> UnderstandingReward:
    result: UnderstandingReward = request.param()
    result.attach(model, tokenizer)
    return result


def picture(seed: int, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 1.8 - 0.9


def test_is_the_log_odds_of_the_decoded_answer(model: Bagel, tokenizer: Tokenizer, reward: BagelReward) -> None:
    """The same question through the cache that answers questions."""
    document: list[Segment] = [
        ViTSegment(picture(0)),
        TextSegment(tokenizer.encode("Does this picture show a red circle?")),
    ]
    with torch.no_grad():
        context = model.prefill([document])
        stream = model.decode(torch.tensor([[model.config.tokens.bos]]), DecodeCache(context, 4)).streams.und[:, -1]
        logits = model.next_logits(stream)[0].log_softmax(-1)
    yes, no = (int(tokenizer.encode(word)[0]) for word in ("yes", "no"))
    score = reward.score([picture(0)], ["a photo of a red circle"])
    torch.testing.assert_close(score[0], logits[yes] - logits[no], atol=1e-4, rtol=1e-4)
    assert decode_text(model, context, DecodingSettings(max_tokens=1))  # the cache is the one that answers


def test_is_the_likelihood_of_the_caption_token_by_token(model: Bagel, tokenizer: Tokenizer) -> None:
    """The same caption through the cache that answers questions, and its end."""
    reward = CaptionReward("What is it?")
    reward.attach(model, tokenizer)
    caption = tokenizer.encode("a red circle on white")
    tokens = model.config.tokens
    with torch.no_grad():
        context = model.prefill([[ViTSegment(picture(0)), TextSegment(tokenizer.encode("What is it?"))]])
        ids = torch.cat([torch.tensor([tokens.bos]), caption])
        streams = model.decode(ids[None], DecodeCache(context, len(ids) + 1)).streams.und[0]
        log_p = model.next_logits(streams).log_softmax(-1)
    following = torch.cat([caption, torch.tensor([tokens.eos])])
    expected = log_p[torch.arange(len(ids)), following].mean()
    (score,) = reward.score([picture(0)], ["a red circle on white"])
    torch.testing.assert_close(score, expected, atol=1e-4, rtol=1e-4)
    reward.temperature = 20.0
    (power,) = reward.score([picture(0)], ["a red circle on white"])
    torch.testing.assert_close(power, (len(ids) * expected / 20).exp(), atol=1e-4, rtol=1e-3)


def test_each_picture_by_itself(any_reward: UnderstandingReward) -> None:
    reward = any_reward
    pictures, prompts = [picture(0), picture(1, 16, 32)], ["a red circle", "two blue squares on a white background"]
    alone = torch.cat([reward.score([p], [t]) for p, t in zip(pictures, prompts, strict=True)])
    torch.testing.assert_close(reward.score(pictures, prompts), alone, atol=1e-4, rtol=1e-4)


def test_gradient_of_the_pixels_is_the_slope(any_reward: UnderstandingReward) -> None:
    """Against a difference quotient along a random direction."""
    reward = any_reward
    x = picture(3, 24, 24).double().float().requires_grad_()
    reward.score([x], ["a red circle"]).sum().backward()
    assert x.grad is not None
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ahead, behind = (reward.score([x + step * direction], ["a red circle"])[0] for step in (1e-3, -1e-3))
    torch.testing.assert_close((ahead - behind) / 2e-3, (x.grad * direction).sum(), rtol=2e-2, atol=1e-3)


def test_asks_another_model_where_one_is_given(
    model: Bagel, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("judge")
    nano_bagel(seed=7).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    own = BagelReward(model=str(folder))
    own.attach(model, tokenizer)
    shared = BagelReward()
    shared.attach(model, tokenizer)
    assert own.score([picture(0)], ["a circle"]) != shared.score([picture(0)], ["a circle"])
    assert not any(p.requires_grad for p in own.parameters()) and not list(shared.parameters())


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\{prompt\}"):
        BagelReward(question="Is it good?")
    with pytest.raises(RuntimeError, match="no model to ask"):
        BagelReward().score([picture(0)], ["a circle"])
    with pytest.raises(RuntimeError, match="CaptionReward has no model to ask"):
        CaptionReward().score([picture(0)], ["a circle"])
    with pytest.raises(ValueError, match="temperature > 0"):
        CaptionReward(temperature=0)
