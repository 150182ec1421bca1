"""Drawing, editing and answering in batches: seeds decide, company does not."""

import copy
import io

import pytest
import torch
from PIL import Image

from hyperbagel.bagel.branch import IMAGE_SCALE, TEXT_SCALE
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.evaluation.batches import batches_of_equals
from hyperbagel.evaluation.gedit.questions import prepare_images
from hyperbagel.flow.guidance import Guidance
from hyperbagel.flow.sampler import Sampler
from hyperbagel.pipeline.answers import answer
from hyperbagel.pipeline.painter import Painter
from hyperbagel.scenes.vocabulary import tokenizer_folder
from tests.nano import nano_bagel

TEXT = Guidance(interval=(0.0, 1.0))
BOTH = Guidance(image_scale=2.0, renorm="text_channel", interval=(0.0, 1.0))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(tokenizer_folder())


def painter(tokenizer: Tokenizer, guidance: Guidance | None, **options: object) -> Painter:
    return Painter(nano_bagel().eval(), tokenizer, Sampler(2, 3.0, guidance), **options)


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal but for rounding at the border of two grey levels."""
    return int((one.int() - other.int()).abs().max()) <= 1


def test_a_picture_depends_on_its_prompt_and_seed_alone(tokenizer: Tokenizer):
    draw = painter(tokenizer, TEXT)
    prompts = ["a red circle", "two green squares left of a star", "a red circle"]
    images = draw.generate(prompts, [1, 2, 3], (32, 16))
    assert [tuple(image.shape) for image in images] == [(3, 32, 16)] * 3
    assert images[0].dtype == torch.uint8
    assert close(images[1], draw.generate(prompts[1:2], [2], (32, 16))[0])
    assert not torch.equal(images[0], images[2])
    assert (draw.cost.images, draw.cost.nfe) == (4, 4)
    assert draw.cost.seconds_per_image > 0
    assert draw.size == (64, 64)


def test_edits_of_several_sizes_are_drawn_at_the_models_size_for_them(tokenizer: Tokenizer):
    draw = painter(tokenizer, BOTH)
    sources = [Image.new("RGB", (32, 32), "red"), Image.new("RGB", (33, 15), "blue")]
    images = draw.edit(sources, ["remove the circle", "add a star"], [5, 6])
    assert [tuple(image.shape) for image in images] == [(3, 32, 32), (3, 16, 32)]
    assert draw.cost.nfe == 6
    assert close(images[1], draw.edit(sources[1:], ["add a star"], [6])[0])


def test_model_and_judge_see_the_picture_that_a_person_sees(tokenizer: Tokenizer):
    upright = Image.new("RGB", (16, 32), "red")
    upright.paste("blue", (0, 16, 16, 32))
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=exif)
    draw = painter(tokenizer, None)
    (edited,) = draw.edit([Image.open(buffer)], ["add a star"], [1])
    assert torch.equal(edited, draw.edit([upright], ["add a star"], [1])[0])
    source, shown = prepare_images(Image.open(buffer), Image.fromarray(edited.permute(1, 2, 0).numpy()))
    assert source.tobytes() == upright.tobytes() and shown.size == upright.size
    asked = [answer(draw.model, tokenizer, [(picture, "What?")], 4) for picture in (Image.open(buffer), upright)]
    assert asked[0] == asked[1]


def test_a_distilled_branch_draws_in_one_pass_a_step(tokenizer: Tokenizer):
    draw = painter(tokenizer, BOTH)
    branch = draw.model.generation.copy()
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    draw.branch = branch
    draw.generate(["a red circle"], [1], (16, 16))
    draw.edit([Image.new("RGB", (16, 16))], ["add a star"], [1])
    assert draw.cost.nfe == 2


def test_bfloat16_draws_almost_the_same(tokenizer: Tokenizer):
    """Teacher and branch, pictures and edits: within 1 % of the range of the float32 model of the same weights."""
    pictures = {}
    rounded = nano_bagel().eval().bfloat16()
    for model in (rounded, copy.deepcopy(rounded).float()):
        branch = model.generation.copy()
        branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
        drawn = pictures[model.dtype] = []
        for used in (None, branch):
            text, both = (Painter(model, tokenizer, Sampler(2, 3.0, guidance), used) for guidance in (TEXT, BOTH))
            drawn += text.generate(["a red circle"], [1], (16, 16))
            drawn += both.edit([Image.new("RGB", (16, 16), "red")], ["add a star"], [1])
        assert answer(model, tokenizer, [(Image.new("RGB", (16, 16)), "What is it?")], max_tokens=3)
    for one, other in zip(*pictures.values(), strict=True):
        assert float((one.float() - other.float()).abs().mean()) < 2.5


def test_answers_do_not_depend_on_the_batch(tokenizer: Tokenizer):
    model = nano_bagel().eval()
    questions = [(Image.new("RGB", (32, 32), "red"), "What is it?"), (Image.new("RGB", (16, 16)), "How many stars?")]
    together = answer(model, tokenizer, questions, max_tokens=5)
    assert together == [answer(model, tokenizer, [question], max_tokens=5)[0] for question in questions]


def test_batches_hold_equals_and_every_index_once():
    batches = list(batches_of_equals([3, 5, 3, 3, 5], 2))
    assert batches == [[0, 2], [3], [1, 4]]
