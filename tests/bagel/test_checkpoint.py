"""Official checkpoint folders: names and shapes of the 7B model, round trips, and every kind of broken folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from hyperbagel.bagel.checkpoint import CheckpointError, generation_keys, official_names, read_config
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.model import Bagel

from .tiny import CONFIG, tiny_model

MANIFEST = json.loads((Path(__file__).parents[1] / "fixtures" / "bagel_7b_manifest.json").read_text())
GENERATION_GROUPS = ("llm_gen", "latent_io", "latent_pos_table")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path)
    return tmp_path


def test_weights_may_be_read_by_those_who_may_read_other_new_files(folder: Path) -> None:
    (folder / "other").touch()
    for weights in folder.glob("*.safetensors"):
        assert weights.stat().st_mode == (folder / "other").stat().st_mode


def shard(folder: Path, parts: int = 3) -> None:
    """Turn the weights into shards with an index."""
    whole = folder / "ema.safetensors"
    tensors = load_file(whole)
    names = [f"ema-{i}-of-{parts}.safetensors" for i in range(parts)]
    weight_map = {key: names[i % parts] for i, key in enumerate(tensors)}
    for name in names:
        save_file({k: v for k, v in tensors.items() if weight_map[k] == name}, folder / name)
    (folder / "ema.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    whole.unlink()


def edit_weights(file: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors of a file."""
    tensors = load(file.read_bytes()) | changes  # load_file would map the file that is written next
    save_file({k: v for k, v in tensors.items() if v is not None}, file)


def test_7b_has_the_official_names_and_shapes() -> None:
    with torch.device("meta"):
        model = Bagel(BagelConfig())
    state, names = model.state_dict(), official_names(model)
    assert {names[own]: list(state[own].shape) for own in names} == {
        k: v["shape"] for k, v in MANIFEST["bagel"].items()
    }
    official_ae = model.autoencoder.official_state_dict()
    assert {k: list(v.shape) for k, v in official_ae.items()} == {k: v["shape"] for k, v in MANIFEST["ae"].items()}
    expected = {k for k, v in MANIFEST["bagel"].items() if v["group"] in GENERATION_GROUPS}
    assert set(generation_keys(names.values())) == expected
    assert {names[own] for own in names if own.startswith("generation.")} == expected


def test_7b_configuration_is_read_from_official_files(tmp_path: Path) -> None:
    """Without `hyperbagel.json`; `vit_config.json` counts the layer that is dropped."""
    llm, vit = MANIFEST["config"]["llm"], MANIFEST["config"]["vit"]
    vit = vit | {"num_hidden_layers": vit["num_hidden_layers_in_vit_config"]}
    (tmp_path / "llm_config.json").write_text(json.dumps(llm))
    (tmp_path / "vit_config.json").write_text(json.dumps(vit))
    assert read_config(tmp_path) == BagelConfig()


@pytest.mark.parametrize("sharded", [False, True])
def test_save_and_load_are_exact(folder: Path, sharded: bool) -> None:
    original = tiny_model()
    if sharded:
        shard(folder)
    loaded = Bagel.from_pretrained(folder)
    assert loaded.config == original.config == CONFIG
    state = loaded.state_dict()
    assert state.keys() == original.state_dict().keys()
    for name, value in original.state_dict().items():
        assert torch.equal(state[name], value), name
    assert not loaded.training and not any(p.is_meta for p in loaded.parameters())


def test_weights_convert_to_the_wanted_type(folder: Path) -> None:
    loaded = Bagel.from_pretrained(folder, torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    loaded.save_pretrained(folder)
    again = Bagel.from_pretrained(folder, torch.bfloat16).state_dict()
    for name, value in loaded.state_dict().items():
        assert torch.equal(again[name], value), name


@pytest.mark.parametrize("name", ["llm_config.json", "vit_config.json", "ema.safetensors", "ae.safetensors"])
def test_missing_files_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: no such file"):
        Bagel.from_pretrained(folder)


def test_missing_folders_and_shards_are_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        Bagel.from_pretrained(folder / "nowhere")
    shard(folder)
    (folder / "ema-1-of-3.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"ema-1-of-3\.safetensors: no such file"):
        Bagel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["ema.safetensors", "ae.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "pickle", "empty"])
def test_broken_weights_are_named(folder: Path, name: str, damage: str) -> None:
    file = folder / name
    if damage == "pickle":
        torch.save(load(file.read_bytes()), file)
    else:
        file.write_bytes(file.read_bytes()[:-10] if damage == "truncated" else b"")
    with pytest.raises(CheckpointError, match=f"{name}: not a whole safetensors file"):
        Bagel.from_pretrained(folder)


def test_wrong_keys_are_listed_together(folder: Path) -> None:
    edit_weights(
        folder / "ema.safetensors",
        **{"vae2llm.bias": None, "surplus.weight": torch.zeros(1), "connector.fc1.bias": torch.zeros(3)},
    )
    with pytest.raises(CheckpointError) as caught:
        Bagel.from_pretrained(folder)
    message = str(caught.value)
    assert str(folder) in message
    for part in (
        "1 missing keys: vae2llm.bias",
        "1 unknown keys: surplus.weight",
        "connector.fc1.bias is (3,), expected (32,)",
    ):
        assert part in message


def test_wrong_autoencoder_keys_are_listed_together(folder: Path) -> None:
    edit_weights(folder / "ae.safetensors", **{"encoder.conv_in.bias": None, "surplus": torch.zeros(1)})
    with pytest.raises(
        CheckpointError, match=r"ae\.safetensors: .*2 problems(.|\n)*encoder\.conv_in\.bias(.|\n)*surplus"
    ):
        Bagel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("llm_config.json", "{", r"llm_config\.json: not valid JSON"),
        ("llm_config.json", "[]", r"llm_config\.json: expected a JSON object"),
        (
            "llm_config.json",
            '{"hidden_size": 30, "num_attention_heads": 4}',
            "impossible configuration: hidden_size 30",
        ),
        ("vit_config.json", "{}", r"vit_config\.json: .*num_hidden_layers"),
        (
            "hyperbagel.json",
            '{"tokens": {"bos": 1}, "autoencoder": {"ch": 33}}',
            "impossible configuration: autoencoder ch=33",
        ),
        ("hyperbagel.json", '{"latent_patch_sise": 2}', "latent_patch_sise"),
        ("ema.safetensors.index.json", "{}", r"ema\.safetensors\.index\.json: .*weight_map"),
    ],
)
def test_broken_settings_are_named(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        Bagel.from_pretrained(folder)


def test_a_failed_save_leaves_the_old_file(folder: Path) -> None:
    before = (folder / "ema.safetensors").read_bytes()
    (folder / "ema.safetensors.tmp").mkdir()
    with pytest.raises(Exception, match=r"ema\.safetensors\.tmp|[Dd]irectory"):
        tiny_model(seed=1).save_pretrained(folder)
    assert (folder / "ema.safetensors").read_bytes() == before
