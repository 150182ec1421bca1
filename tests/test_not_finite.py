"""Numbers that are none end the work with an error that says where, wherever they come from."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.branch_checkpoint import BranchInfo, average_branches, base_hash, save_branch
from hyperbagel.bagel.finite import NotFiniteError
from hyperbagel.bagel.images import to_pil
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import TextSegment
from hyperbagel.bagel.tensors import write_tensors
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.callbacks.export import write_model
from hyperbagel.callbacks.safeguard import Safeguard
from hyperbagel.cli.studio import Studio
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.decoding.speculative import Speculator
from hyperbagel.decoding.speculative_loop import SpeculationSettings
from hyperbagel.decoding.tree import TreeSettings
from hyperbagel.draft.checkpoint import load_draft, save_draft
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.head import DraftHead
from hyperbagel.evaluation.fidelity import extract_features, frechet_distance
from hyperbagel.evaluation.gedit.samples import Rating
from hyperbagel.evaluation.geneval.protocol import ClassDetections
from hyperbagel.flow.guidance import PAPER_EDITING, PAPER_GENERATION
from hyperbagel.flow.sampler import Sampler
from hyperbagel.pipeline.answers import answer
from hyperbagel.pipeline.painter import Painter
from hyperbagel.rewards.base import Reward, scored
from hyperbagel.scenes.vocabulary import tokenizer_folder
from tests.nano import nano_bagel

RED = Image.new("RGB", (64, 64), "red")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(tokenizer_folder())


def spoiled(part: str, value: float = math.nan) -> Bagel:
    """A nano BAGEL with one number of a weight spoiled; part: the weight's own name."""
    model = nano_bagel().requires_grad_(False)
    model.get_parameter(part).view(-1)[0] = value
    return model


def draw(model: Bagel, tokenizer: Tokenizer, branch: GenerationBranch | None = None) -> list[Tensor]:
    return Painter(model, tokenizer, Sampler(2, 3.0, PAPER_GENERATION), branch).generate(["a red circle"], [0])


def edit(model: Bagel, tokenizer: Tokenizer, *sources: Image.Image) -> list[Tensor]:
    painter = Painter(model, tokenizer, Sampler(2, 3.0, PAPER_EDITING))
    return painter.edit(sources, ["Make it blue."] * len(sources), [0] * len(sources))


# Pictures

GENERATION = "generation.layers.0.input.input_layernorm.weight"


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        (
            GENERATION,
            math.nan,
            r"latents after step 1 of 2 .* model: language_model\.model\.layers\.0\.input_layernorm_moe",
        ),
        (
            GENERATION,
            math.inf,
            r"latents after step 1 of 2 .* model: language_model\.model\.layers\.0\.input_layernorm_moe",
        ),
        ("understanding.layers.0.input.k_proj.weight", math.nan, r"latents after step 1 .*self_attn\.k_proj\.weight"),
        ("understanding.layers.1.input.v_proj.bias", -math.inf, r"latents after step 1 .*self_attn\.v_proj\.bias"),
        ("autoencoder.network.decoder.conv_out.bias", math.nan, "the picture's pixels: .* not finite"),
    ],
)
def test_a_broken_weight_gives_no_picture(part: str, value: float, message: str, tokenizer: Tokenizer) -> None:
    model = spoiled(part, value)
    with pytest.raises(NotFiniteError, match=message):
        draw(model, tokenizer)
    with pytest.raises(NotFiniteError, match=message):
        edit(model, tokenizer, RED)


def test_a_broken_encoder_gives_no_edit(tokenizer: Tokenizer) -> None:
    model = spoiled("autoencoder.network.encoder.conv_in.bias")
    with pytest.raises(NotFiniteError, match=r"latents after step 1 of 2 .* model: autoencoder\."):
        edit(model, tokenizer, RED)


def test_a_broken_branch_is_told_apart_from_its_model(tokenizer: Tokenizer) -> None:
    model = nano_bagel().requires_grad_(False)
    branch = spoiled(GENERATION).generation
    with pytest.raises(NotFiniteError, match=r"weights of the branch: .*input_layernorm_moe_gen\.weight"):
        draw(model, tokenizer, branch)


def test_where_no_weight_is_to_blame_the_error_says_so(tokenizer: Tokenizer) -> None:
    model = nano_bagel().requires_grad_(False)
    model.generation.llm2vae.register_forward_hook(lambda module, inputs, output: output * 1e38 * 1e38)
    with pytest.raises(NotFiniteError, match=r"latents after step 1 of 2 .* though all weights are"):
        draw(model, tokenizer)


def test_pictures_of_different_sizes_are_looked_at_where_they_are(tokenizer: Tokenizer) -> None:
    wide, small = Image.new("RGB", (64, 32), "red"), Image.new("RGB", (32, 32), "blue")
    pictures = edit(nano_bagel(), tokenizer, wide, small)
    assert len({picture.shape for picture in pictures}) == 2


def test_pixels_that_are_no_numbers_are_no_picture() -> None:
    with pytest.raises(NotFiniteError, match=r"1 of 12 numbers"):
        to_pil(torch.tensor([math.nan] + [0.0] * 11).view(3, 2, 2))


# Answers

LOGITS = ["understanding.norm.weight", "understanding.lm_head.weight", "understanding.layers.0.input.q_proj.weight"]
SETTINGS = [DecodingSettings(4), DecodingSettings(4, 1.0), DecodingSettings(4, 0.7, 0.9)]


def draft_of(model: Bagel) -> DraftHead:
    return DraftHead(DraftConfig(), model.config.llm).requires_grad_(False).eval()


@pytest.mark.parametrize("settings", SETTINGS, ids=["greedy", "sampled", "nucleus"])
@pytest.mark.parametrize("part", LOGITS)
@pytest.mark.parametrize("way", ["plain", "undrafted", "chain", "tree"])
def test_a_broken_weight_gives_no_answer(way: str, part: str, settings: DecodingSettings) -> None:
    model, shown = spoiled(part), []
    documents = [[TextSegment(torch.tensor([9, 8, 7]))], [TextSegment(torch.tensor([6, 5]))]]
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(NotFiniteError, match=r"logits of answer 1 of 2 are not finite .* weights of the model: lang"):
        if way == "plain":
            decode_text(model, model.prefill(documents), settings, generator, shown.append)
        else:
            tree = SpeculationSettings(2, tree=TreeSettings(2, 4)) if way == "tree" else SpeculationSettings(2)
            speculator = Speculator(model, None if way == "undrafted" else draft_of(model), tree)
            speculator.decode(speculator.prefill(documents), settings, generator, shown.append)
    assert shown == []  # nothing is said before


def test_answers_in_evaluation_and_on_the_page(tokenizer: Tokenizer) -> None:
    model = spoiled(LOGITS[0])
    with pytest.raises(NotFiniteError, match="logits of answer 1 of 1"):
        answer(model, tokenizer, [(RED, "What is it?")], 3)
    with pytest.raises(ValueError, match="logits of answer 1 of 1"):
        list(Studio(model, tokenizer).ask(None, "What is it?", max_tokens=3))
    with pytest.raises(ValueError, match="latents after step 1 of 2"):
        list(Studio(spoiled(GENERATION), tokenizer, steps=2).generate("a red circle", ["teacher"]))


@pytest.mark.parametrize("temperature", [-1.0, 1e-30, 1e-5, math.nan, math.inf])
def test_temperatures_that_make_logits_infinite_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        DecodingSettings(4, temperature)


# Files


def test_a_broken_branch_is_neither_written_nor_averaged(tmp_path: Path) -> None:
    model = nano_bagel()
    info = BranchInfo("tscd", 6, base_hash(model))
    (good, bad, out) = (tmp_path / f"{name}.safetensors" for name in ("good", "bad", "out"))
    save_branch(model.generation, info, good)
    with pytest.raises(NotFiniteError, match=r"bad\.safetensors: not written: language_model\..*input_layernorm_moe"):
        save_branch(spoiled(GENERATION).generation, info, bad)
    assert not bad.exists()
    broken = bytearray(good.read_bytes())
    broken[-4:] = np.array(math.nan, np.float32).tobytes()  # the file's last number
    bad.write_bytes(broken)
    with pytest.raises(NotFiniteError, match=r"bad\.safetensors: .* 1 of "):
        average_branches({str(good): 1, str(bad): 1}, out)
    assert not out.exists()


def test_a_broken_model_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match=r"ema\.safetensors: not written: language_model\.model\.norm\.weight"):
        write_model(spoiled(LOGITS[0]), str(tokenizer_folder()), tmp_path / "model", torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_infinite_after_conversion_is_not_written_either(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match="weight"):
        write_tensors({"weight": torch.tensor([1e5]).half()}, tmp_path / "a.safetensors")


def test_a_broken_draft_head_is_refused_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nano_bagel()
    head = draft_of(model)
    head.norm.weight[0] = math.nan
    monkeypatch.setattr("hyperbagel.bagel.tensors.require_finite", lambda values, where: None)
    save_draft(head, model, tmp_path / "draft.safetensors")
    with pytest.raises(NotFiniteError, match=r"draft\.safetensors: norm\.weight: 1 of"):
        load_draft(tmp_path / "draft.safetensors", model)


# Scores


class Broken(Reward):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def score(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        return torch.tensor([1.0, self.value])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers(value: float) -> None:
    cases: dict[str, Callable[[], object]] = {
        "rewards by Broken": lambda: scored(Broken(value), [], []),
        "a judge's scores": lambda: Rating((5.0, value)),
        "a detector gave": lambda: ClassDetections(np.zeros((1, 4)), np.array([value])),
        "a detector gave boxes": lambda: ClassDetections(np.array([[0, 0, 1, value]]), np.ones(1)),
        "features of the generated": lambda: frechet_distance(torch.randn(3, 2), torch.full((3, 2), value)),
        "features of the real": lambda: frechet_distance(torch.full((3, 2), value), torch.randn(3, 2)),
        "by Spread": lambda: extract_features([torch.zeros(3, 2, 2, dtype=torch.uint8)], Spread(value)),
    }
    for message, case in cases.items():
        with pytest.raises(ValueError, match=message):
            case()


class Spread(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 2), self.value)


@pytest.mark.parametrize("score", [-0.1, 10.5])
def test_scores_out_of_range(score: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 10"):
        Rating((score,))


# Training


@pytest.mark.parametrize(
    ("command", "name", "stops"),
    [
        ("test", "accuracy", True),
        ("validate", "accuracy", True),
        ("fit", "val/loss/text", True),
        ("fit", "reward/undefined", False),  # of training, where losses and gradients are looked at
    ],
)
def test_measured_figures_of_a_run(command: str, name: str, stops: bool) -> None:
    module = SimpleNamespace(student_step=3, global_step=6)
    for value in (torch.tensor(math.nan), torch.tensor(math.inf), torch.tensor(0.5)):
        trainer = SimpleNamespace(callback_metrics={name: value}, state=SimpleNamespace(fn=command))
        expected = pytest.raises(FloatingPointError, match=f"{name} is (nan|inf) at student update 3")
        with expected if stops and not value.isfinite() else nullcontext():
            Safeguard().on_validation_end(trainer, module)  # type: ignore[arg-type]
