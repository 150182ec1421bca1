"""Several pictures and several questions by one command, and texts that the model cannot take."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.cli import main
from hyperbagel.cli.commands import with_list
from hyperbagel.cli.options import Chat, Generate
from hyperbagel.cli.pictures import numbered, read_prompts
from hyperbagel.scenes.vocabulary import knowledge, tokenizer_folder


def test_the_words_at_the_end_are_one_list() -> None:
    words = ["a.png", "--draft", "d", "one", "--seed=3", 'two "x"', "--temperature", "-1"]
    assert with_list(Chat, words) == [
        "a.png",
        '["one", "two \\"x\\""]',
        "--draft",
        "d",
        "--seed=3",
        "--temperature",
        "-1",
    ]
    assert with_list(Chat, ["a.png"]) == ["a.png", "[]"]
    assert with_list(Chat, ["--seed", "1"]) == ["--seed", "1"]
    assert with_list(Generate, ["--help"]) == ["[]", "--help"]


def test_prompts_come_from_words_and_files_and_seeds_count_up(
    studio_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a blue star\n\n", encoding="utf-8")
    common = ["--model", str(studio_folder), "--steps", "1", "--width", "16", "--height", "16"]
    several = ["generate", "a red circle", "--prompts", str(tmp_path / "prompts.txt"), "--number", "2", "--seed", "5"]
    main([*several, *common, "--batch-size", "3", "--out", str(tmp_path / "out.png")])
    assert capsys.readouterr().out.count("2 NFE") == 4
    for file, prompt, seed in (("out-1", "a red circle", "6"), ("out-2", "a blue star", "5")):
        main(["generate", prompt, *common, "--seed", seed, "--out", str(tmp_path / "one.png")])
        assert near(tmp_path / f"{file}.png", tmp_path / "one.png")


def near(one: Path, other: Path) -> bool:
    """Equal but for rounding at the border of two grey levels."""
    pairs = zip(Image.open(one).tobytes(), Image.open(other).tobytes(), strict=True)
    return max(abs(a - b) for a, b in pairs) <= 1


def test_files_of_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a red circle", "tag": 1}\n{"prompt": "a star"}\n')
    assert read_prompts(file) == ["a red circle", "a star"]
    for content, told in (
        ('{"text": "a"}', 'line 1: give an object with a key "prompt"'),
        ('{"prompt": 3}', "line 1: the prompt is no text"),
        ("", "holds no prompts"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=told):
            read_prompts(file)
    assert numbered(Path("a/b.png"), 1) == [Path("a/b.png")]
    assert numbered(Path("a/b.png"), 11)[::10] == [Path("a/b-00.png"), Path("a/b-10.png")]


def test_questions_are_answered_together_or_line_by_line(
    studio_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [
        "--model",
        str(studio_folder),
        "--max-tokens",
        "4",
        "--draft",
        str(studio_folder / "branches" / "draft.safetensors"),
    ]
    questions = ["What is a circle?", "How many stars are there?"]
    alone = []
    for question in questions:
        main(["chat", "-", question, *common])
        alone.append(capsys.readouterr().out.removesuffix("\n"))
    main(["chat", "-", *questions, *common])
    assert capsys.readouterr().out == "".join(f"{q}\n{a}\n\n" for q, a in zip(questions, alone, strict=True))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{questions[0]}\n\n"))
    main(["chat", "-", *common])
    assert capsys.readouterr().out == f"{alone[0]}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["generate", ""], "the text is empty: say what the picture should show"),
        (["generate", "a", "--number", "0"], "number is 0: give at least 1"),
        (["generate", "a", "--prompts", "none.txt"], "none.txt: No such file"),
        (["chat", "-", " "], "the text is empty"),
        (["chat", "What is it?"], "What is it\\?: no such picture; name one, or - for none"),
    ],
)
def test_what_cannot_be_drawn_or_answered_is_told(arguments: list[str], told: str, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "a.png")] if arguments[0] == "generate" else []
    with pytest.raises(SystemExit, match=f"^hyperbagel {arguments[0]}: {told}"):
        main([*arguments, *out])


def test_words_that_the_model_had_to_spell_are_named(
    studio_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = ["--model", str(studio_folder), "--steps", "1", "--width", "16", "--height", "16"]
    main(["generate", "a photo of a fluffy unicorn left of a red circle", *small, "--out", str(tmp_path / "a.png")])
    (record,) = caplog.records
    assert record.getMessage() == f"words that the model does not know: fluffy, unicorn; it knows {knowledge()}"


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("a photo of two green stars", []),
        ("red circle, blue STAR", ["STAR"]),
        ("A photo of a Red circle", ["Red"]),
        ("What colour is the circle?", ["colour"]),
        ("把红色圆形变成蓝色。", []),
    ],
)
def test_words_of_the_world(text: str, unknown: list[str]) -> None:
    tokenizer = Tokenizer.from_pretrained(tokenizer_folder())
    assert tokenizer.unknown_words(text) == unknown and tokenizer.knows == knowledge()
    assert Tokenizer.from_pretrained("scenes").knows == knowledge()
