import pytest
from PIL import Image

from hyperbagel.evaluation.gedit.answers import read_answer
from hyperbagel.evaluation.gedit.questions import (
    JudgeUnavailable,
    ask_until_valid,
    consistency_question,
    prepare_images,
    quality_question,
)

ORIENTATION = 0x0112


def test_edited_image_takes_the_size_of_the_upright_source(tmp_path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned by 90 degrees
    Image.new("RGB", (40, 20), "red").save(tmp_path / "source.jpg", exif=exif)
    edited = Image.new("RGBA", (16, 16), (0, 0, 255, 128))
    source, edited = prepare_images(Image.open(tmp_path / "source.jpg"), edited)
    assert source.size == edited.size == (20, 40)
    assert source.mode == edited.mode == "RGB"


def test_edited_image_of_the_right_size_is_not_resampled() -> None:
    edited = Image.effect_noise((12, 8), 90).convert("RGB")
    _, prepared = prepare_images(Image.new("L", (12, 8)), edited)
    assert prepared.tobytes() == edited.tobytes()


def test_content_of_the_questions() -> None:
    image = Image.new("RGB", (4, 4))
    instruction = '把天空变成{橙色}, "now"'
    consistency, quality = consistency_question(instruction, image, image), quality_question(image)
    assert instruction in consistency.text
    assert instruction not in quality.text
    order = ["professional digital artist", "privacy", '"score"', "first is the original", "editing success",
             "overediting", "in this order", instruction]  # fmt: skip
    positions = [consistency.text.index(phrase) for phrase in order]
    assert positions == sorted(positions)
    assert quality.text.index("naturalness") < quality.text.index("artifacts")


def test_a_judge_that_only_repeats_the_format_gets_no_score() -> None:
    image = Image.new("RGB", (4, 4))
    for question in (consistency_question("x", image, image), quality_question(image)):
        assert not read_answer(question.text).ok


def test_unavailable_judge_costs_a_try_and_other_errors_go_through() -> None:
    def unavailable() -> str:
        raise JudgeUnavailable("busy")

    assert ask_until_valid(unavailable, 3).reasons == ("transport",) * 3

    def broken() -> str:
        raise RuntimeError("wrong key")

    with pytest.raises(RuntimeError, match="wrong key"):
        ask_until_valid(broken, 3)
