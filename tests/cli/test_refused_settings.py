"""What cannot work is refused in one line before the model is loaded."""

from pathlib import Path

import pytest

from hyperbagel.cli.main import main


@pytest.fixture(autouse=True)
def unloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(*arguments: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("hyperbagel.bagel.model.Bagel.from_pretrained", load)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "in.ppm").write_bytes(b"P6 1 1 255 abc")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "red", "--out", "a"], "a: pictures cannot be written as a name without ending"),
        (["generate", "red", "--out", "a.pngg"], "cannot be written as .pngg; use .png"),
        (["generate", "red", "--out", "folder.png"], "folder.png: is a folder"),
        (["generate", "red", "--out", "/proc/x/p.png"], "/proc/x/p.png: not written: No such file or directory"),
        (["generate", "red", "--steps", "0"], "steps >= 1"),
        (["generate", "red", "--text_scale", "nan"], "text_scale: 'nan' is not float"),
        (["generate", "red", "--text_scale", "-1"], "text_scale is -1"),
        (["generate", "red circle " * 20_000], "tokens, the model reads 4,096 at most"),
        (["edit", "in.ppm", "red circle " * 20_000], "tokens, the model reads 4,096 at most"),
        (["edit", "in.ppm", "red", "--image_scale", "-0.5"], "image_scale is -0.5"),
        (["edit", "in.ppm", "red", "--out", "in.ppm/a.png"], "in.ppm/a.png: not written"),
        (["chat", "-", "red circle " * 20_000], "tokens, the model reads 4,096 at most"),
        (["chat", "-", "red", "--temperature", "0.00001"], "temperature 0"),
        (["chat", "-", "red", "--max_tokens", "0"], "max_tokens >= 1"),
        (["average", "folder.png", "{scenes/nfe1: 1}"], "folder.png: is a folder"),
        (["export", "draft", "scenes/draft", "in.ppm"], "in.ppm: is a file; name a folder"),
        (["init", "in.ppm", "--preset", "nano"], "in.ppm"),
        (["report", "none", "--out", "in.ppm"], "in.ppm: is a file; name a folder"),
        (["data", "vocabulary", "none.tar", "folder.png"], "folder.png: is a folder"),
        (["data", "features", "none.tar", "in.ppm"], "in.ppm: is a file; name a folder"),
        (["data", "regenerate", "none.tar", "in.ppm"], "in.ppm: is a file; name a folder"),
        (["data", "scenes", "in.ppm"], "in.ppm: is a file; name a folder"),
        (["data", "inspect", "none.tar", "--out", "sheet"], "sheet: pictures cannot be written"),
    ],
)
def test_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    told = str(ended.value.code) if isinstance(ended.value.code, str) else capsys.readouterr().err
    assert message in told and "\n" not in told.strip() and sorted(tmp_path.iterdir()) == before
