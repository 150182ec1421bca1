"""Draft heads on the command line: the target's own answers to train on, and heads for serving engines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hyperbagel.bagel.branch_checkpoint import base_hash
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import TextSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.cli import main
from hyperbagel.datamodules.writer import ShardWriter
from hyperbagel.draft.batch import extract_features
from hyperbagel.draft.checkpoint import save_draft
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.head import DraftHead
from hyperbagel.draft.store import FeatureShards
from hyperbagel.scenes.vocabulary import tokenizer_folder
from tests.datamodules.samples import make_png
from tests.nano import nano_bagel


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that says a few words and stops: from time to time its eos is the likeliest."""
    folder = tmp_path_factory.mktemp("cli") / "nano"
    model = nano_bagel(seed=1)
    with torch.no_grad():
        model.understanding.lm_head.weight[model.config.tokens.eos] *= -6
    model.save_pretrained(folder)
    Tokenizer.from_pretrained(tokenizer_folder()).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def draft(nano: str, tmp_path: Path) -> str:
    model = Bagel.from_pretrained(nano)
    path = tmp_path / "draft.safetensors"
    save_draft(DraftHead.from_target(DraftConfig(kind="eagle3", layers=1), model), model, path)
    return str(path)


def test_regenerated_shards_hold_the_models_own_answers(
    nano: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, answered = tmp_path / "asked", tmp_path / "answered"
    main(["data", "scenes", str(asked), "--size", "6", "--shard-size", "3", "--weights", "{caption: 1, question: 1}"])
    arguments = ["data", "regenerate", str(asked), str(answered), "--model", nano, "--max-tokens", "100"]
    main([*arguments, "--batch-size", "2"])
    shown = capsys.readouterr().out
    assert "0 that ask nothing, 0 unusable" in shown and "\n0 documents" not in shown
    shards = {path.name: path.read_bytes() for path in answered.glob("*.tar")}
    assert shards.keys() <= {path.name for path in asked.glob("*.tar")}
    # A second run finds everything done, and another batch size gives the same answers.
    main(arguments)
    assert "0 documents with 0 answers" in capsys.readouterr().out
    shutil.rmtree(answered)
    main(arguments)
    assert {path.name: path.read_bytes() for path in answered.glob("*.tar")} == shards
    main(["data", "inspect", str(answered), "--out", str(tmp_path / "sheet.png")])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_come_in_every_type(
    nano: str, draft: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    """`chat`, with and without a draft head, and `data regenerate` are the commands that decode."""
    chat = ["chat", "-", "what is this?", "--model", nano, "--max-tokens", "8", "--device.dtype", dtype]
    for options in ([], ["--draft", draft], ["--temperature", "0.7", "--top-p", "0.9"]):
        main([*chat, *options])
        shown = capsys.readouterr()
        assert shown.out.strip() and "tokens/s]" in shown.err
    asked, answered = tmp_path / "asked", tmp_path / "answered"
    main(["data", "scenes", str(asked), "--size", "4", "--weights", "{caption: 1, question: 1}"])
    command = ["data", "regenerate", str(asked), str(answered), "--model", nano, "--device.dtype", dtype]
    main([*command, "--max-tokens", "100", "--keep-long", "true"])
    assert "\n0 documents" not in capsys.readouterr().out


def test_long_answers_are_dropped_or_cut(nano: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = tmp_path / "asked"
    main(["data", "scenes", str(asked), "--size", "4", "--weights", "{caption: 1}"])
    command = ["data", "regenerate", str(asked), "--model", nano, "--max-tokens", "2", "--answer-prefix", "the"]
    written = {}
    for keep in ("false", "true"):
        main([*command, str(tmp_path / keep), "--keep-long", keep])
        shown = capsys.readouterr().out.splitlines()[-1]
        written[keep] = int(shown.split(" documents")[0])
    assert written["false"] < written["true"] == 4


def test_stored_features_are_those_of_the_answers_documents(
    nano: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, stored = tmp_path / "asked", tmp_path / "stored"
    with ShardWriter(asked / "asked-{:06d}.tar") as writer:
        for number, answer in enumerate(("a red circle.", "two", "three blue squares.")):
            segments = [{"type": "text", "text": "what?"}, {"type": "text", "text": answer, "loss": True}]
            writer.write(str(number), {"segments": segments}, {})
        writer.write("silent", {"segments": segments[:1]}, {})
        picture = {"type": "image", "file": "torn.png"}
        writer.write("broken", {"segments": [picture, *segments]}, {"torn.png": make_png(0)[:-40]})
    command = ["data", "features", str(asked), str(stored), "--model", nano, "--batch-size", "2"]
    main([*command, "--draft", "{queries: 1}", "--answer-prefix", "the"])
    assert "of 3 documents written; left out: 1 without answers, 1 unusable" in capsys.readouterr().out
    model, config = Bagel.from_pretrained(nano), DraftConfig(queries=1)
    shards = FeatureShards(stored, base_hash(model), config.entries(model.config.llm))
    tokenizer = Tokenizer.from_pretrained(nano)
    question, answer = (tokenizer.encode(text) for text in ("what?", "three blue squares."))
    document = [TextSegment(question), TextSegment(torch.cat([tokenizer.encode("the"), answer]), True, prefix=1)]
    online = extract_features(model, [document], shards[2].layers)
    assert shards.keys == ["1", "0", "2"], "short ones first"
    for entry, values in shards[2].layers.items():
        expected = online.layers[entry][:, : values.shape[1]].bfloat16()
        torch.testing.assert_close(values, expected, atol=0.02, rtol=0.02)
    with pytest.raises(SystemExit, match="holds feature shards already"):
        main(command)


def test_vocabularies_are_the_frequent_tokens_of_answers(
    nano: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Words of the questions alone do not count."""
    asked, out = tmp_path / "asked", tmp_path / "ids.json"
    main(["data", "scenes", str(asked), "--size", "8", "--weights", "{yes_no: 1}"])
    main(["data", "vocabulary", str(asked), str(out), "--model", nano, "--size", "3"])
    assert "3 of" in (shown := capsys.readouterr().out) and "100.00%" in shown
    tokenizer = Tokenizer.from_pretrained(nano)
    answers = [int(tokenizer.encode(word)) for word in ("yes", "no")]
    assert json.loads(out.read_text()) == sorted([tokenizer.tokens.eos, *answers])
    main(["data", "scenes", str(tmp_path / "drawn"), "--size", "2", "--weights", "{generation: 1}"])
    with pytest.raises(SystemExit, match="no document has an answer"):
        main(["data", "vocabulary", str(tmp_path / "drawn"), str(out), "--model", nano])


def test_an_exported_draft_head_has_the_wanted_type(
    nano: str, draft: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "eagle3"
    main(["export", "draft", draft, str(out), "--model", nano, "--format", "eagle3", "--dtype", "bfloat16"])
    assert "M parameters, eagle3, bfloat16" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert file.get_tensor("midlayer.mlp.up_proj.weight").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "draft", "none.safetensors", "out", "--model", "NANO"], "none.safetensors: no such file"),
        (["data", "regenerate", "none.tar", "out", "--model", "NANO"], "none.tar"),
        (["data", "regenerate", "none.tar", "out", "--model", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_input_ends_in_one_line(nano: str, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main([nano if argument == "NANO" else argument for argument in arguments])
