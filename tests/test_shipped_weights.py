"""What comes with the package works as it is."""

import pytest
import torch
from PIL import Image

from hyperbagel.bagel.branch_checkpoint import load_branch
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, TextSegment, ViTSegment
from hyperbagel.bagel.shipped import WEIGHTS
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.decoding.speculative import SpeculationSettings, Speculator
from hyperbagel.draft.checkpoint import load_draft
from hyperbagel.evaluation.geneval.scene_parser import parse_scene
from hyperbagel.flow.guidance import GENERATION
from hyperbagel.flow.sampler import Sampler
from hyperbagel.pipeline.answers import answer
from hyperbagel.pipeline.painter import Painter
from hyperbagel.scenes import sample
from hyperbagel.scenes.captions import caption_facts, parse_caption
from hyperbagel.scenes.documents import CAPTION_PROMPT
from hyperbagel.scenes.world import Scene

NAME = "scenes"


def test_weights_are_small_safetensors() -> None:
    sizes = [path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")]
    assert max(sizes) < 16e6
    assert sum(sizes) < 48e6
    assert {path.suffix for path in WEIGHTS.rglob("*.*") if path.is_file()} <= {".safetensors", ".json"}


def test_the_scenes_model_describes_held_out_pictures() -> None:
    model, tokenizer = Bagel.from_pretrained(NAME), Tokenizer.from_pretrained(NAME)
    samples = [sample("test", 1, i, "caption") for i in range(12)]
    asked = [(Image.fromarray(drawn.images["0.png"]), CAPTION_PROMPT) for drawn in samples]
    said = answer(model, tokenizer, asked, max_tokens=128)
    facts = [
        (fact, set(parse_caption(text)))
        for drawn, text in zip(samples, said, strict=True)
        for fact in caption_facts(Scene.from_dict(drawn.document["meta"]["scenes"][0]))
    ]
    assert sum(fact in stated for fact, stated in facts) > 0.95 * len(facts)


@pytest.mark.parametrize(("branch", "steps"), [(None, 12), ("nfe6", 6), ("nfe1", 1)])
def test_the_scenes_model_draws_what_is_asked_for(branch: str | None, steps: int) -> None:
    """By its own generation branch with guidance, and by the distilled one with one pass a step."""
    model = Bagel.from_pretrained(NAME)
    distilled = None if branch is None else load_branch(f"{NAME}/{branch}", model)[0]
    painter = Painter(model, Tokenizer.from_pretrained(NAME), Sampler(steps, guidance=GENERATION), distilled)
    wanted = [(color, shape) for color in ("red", "blue", "yellow") for shape in ("circle", "square", "triangle")]
    pictures = painter.generate([f"a photo of a {color} {shape}" for color, shape in wanted], range(len(wanted)))
    seen = [[(thing.color, thing.shape) for thing in parse_scene(picture).objects] for picture in pictures]
    assert sum(things == [thing] for things, thing in zip(seen, wanted, strict=True)) >= 6, seen
    assert branch is None or painter.cost.nfe == steps


def test_the_draft_head_is_accepted_and_changes_nothing() -> None:
    model, tokenizer = Bagel.from_pretrained(NAME), Tokenizer.from_pretrained(NAME)
    speculator = Speculator(model, load_draft(f"{NAME}/draft", model), SpeculationSettings(10))
    pictures = [Image.fromarray(sample("test", 2, i, "caption").images["0.png"]) for i in range(4)]
    plain = answer(model, tokenizer, [(picture, CAPTION_PROMPT) for picture in pictures], max_tokens=128)
    documents: list[Document] = [
        [ViTSegment(model.config.vit_transform(picture)), TextSegment(tokenizer.encode(CAPTION_PROMPT))]
        for picture in pictures
    ]
    said = [speculator.decode(speculator.prefill([document]), DecodingSettings(128))[0] for document in documents]
    assert [tokenizer.decode(ids) for ids in said] == plain
    assert speculator.statistics.acceptance_length > 5


def test_the_autoencoder_keeps_pictures() -> None:
    autoencoder = Bagel.from_pretrained(NAME).autoencoder
    pictures = [sample("test", 1, i, "generation").images["0.png"] for i in range(16)]
    pixels = torch.stack([torch.from_numpy(picture) for picture in pictures]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = autoencoder.encode(pixels)
        error = (autoencoder.decode(latents) - pixels).square().mean()
    assert float(error) < 0.003
    assert 0.8 < float(latents.std()) < 1.2
