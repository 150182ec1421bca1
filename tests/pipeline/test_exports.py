"""What is exported for other programs computes what it came from, in their layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from hyperbagel.bagel.branch import DURATION, IMAGE_SCALE, TEXT_SCALE, GenerationBranch
from hyperbagel.bagel.branch_checkpoint import BranchInfo, base_hash, context_hash, load_branch, save_branch
from hyperbagel.bagel.checkpoint import CheckpointError, official_key
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document, ImageSegment, TextSegment, ViTSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.cli import main
from hyperbagel.flow.guidance import PAPER_EDITING
from hyperbagel.flow.sampler import Sampler
from hyperbagel.pipeline.exports import folded
from hyperbagel.pipeline.inspection import inspect
from hyperbagel.pipeline.loading import Device, load_model
from hyperbagel.pipeline.pipeline import Pipeline
from hyperbagel.scenes import sample
from tests.runs import nano_folder

FIXTURES = Path(__file__).parents[1] / "fixtures"
PROMPT = "a photo of a red circle"


@pytest.fixture(scope="module")
def scenes() -> tuple[Bagel, Tokenizer]:
    return load_model("scenes", Device("cpu"))


@pytest.fixture(scope="module", params=[("nfe6", None), ("nfe6", 2.0), ("nfe1", None), ("nfe1", 2.0)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float, Path]:
    """Name of a shipped branch, its image scale, and the folder."""
    name, image = request.param
    out = tmp_path_factory.mktemp("merged") / f"{name}-{image}"
    scale = [] if image is None else ["--image-scale", str(image)]
    main(["export", "model", str(out), "--branch", f"scenes/{name}", "--text-scale", "4", *scale])
    return name, image or 0.0, out


def editing(model: Bagel, tokenizer: Tokenizer) -> Document:
    picture = Image.fromarray(sample("test", 1, 0, "editing").images["0.png"])
    pixels = model.config.vit_transform(picture)
    return [ImageSegment(pixels), ViTSegment(pixels), TextSegment(tokenizer.prompt("Make it blue."))]


@torch.no_grad()
def test_velocities_are_the_branchs_at_all_times(
    exported: tuple[str, float, Path], scenes: tuple[Bagel, Tokenizer]
) -> None:
    """Against the same contexts, and against those that the merged weights read themselves; in double precision, where
    rounding hides nothing."""
    name, scale, out = exported
    model, tokenizer = Bagel.from_pretrained("scenes", torch.float64), scenes[1]
    branch, _ = load_branch(f"scenes/{name}", model)
    plain = Bagel.from_pretrained(out, torch.float64)
    assert not plain.generation.conditions
    document: Document = [TextSegment(tokenizer.prompt(PROMPT))] if not scale else editing(model, tokenizer)
    grid, noise = model.latent_grid([(64, 64)]), torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(0))
    scales = {TEXT_SCALE: torch.tensor([4.0]), IMAGE_SCALE: torch.tensor([scale])}
    context = model.prefill([document])
    own = plain.prefill([document])
    read = Sampler(1, guidance=PAPER_EDITING, context="student").read(model, [document], branch).full
    for t in torch.linspace(0, 1, 21):
        at = t.expand(1)
        for ours, theirs in ((context, context), (read, own)):
            expected = model.velocity(noise, at, ours, grid, branch, scales)
            torch.testing.assert_close(plain.velocity(noise, at, theirs, grid), expected, atol=1e-5, rtol=0)


def test_nothing_else_changes(exported: tuple[str, float, Path], scenes: tuple[Bagel, Tokenizer]) -> None:
    model, plain = scenes[0], Bagel.from_pretrained(exported[2])
    for part in ("understanding", "autoencoder"):
        state = getattr(plain, part).state_dict()
        assert all(torch.equal(state[key], value) for key, value in getattr(model, part).state_dict().items())
    assert plain.config == model.config


def test_the_folder_tells_how_it_is_served(exported: tuple[str, float, Path]) -> None:
    name, scale, out = exported
    steps = int(name.removeprefix("nfe"))
    with safe_open(out / "ema.safetensors", framework="pt") as file:
        metadata = file.metadata()
    info = json.loads(metadata["hyperbagel_merged"])
    assert (info["nfe"], info["shift"], info["text_scale"], info["image_scale"]) == (steps, 3.0, [4.0] * 2, [scale] * 2)
    assert len(json.loads(metadata["hyperbagel_schedule"])) == steps + 1
    card = (out / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == "any-to-any"
    assert f"which count grid points | **{steps + 1}** |" in card and f"SGLang, hyperbagel | **{steps}** |" in card
    assert {path.name for path in out.iterdir()} >= {"llm_config.json", "vit_config.json", "ae.safetensors"}


def test_pictures_and_edits_are_those_of_the_branch(
    exported: tuple[str, float, Path], scenes: tuple[Bagel, Tokenizer], caplog: pytest.LogCaptureFixture
) -> None:
    """Export, inspect, load and draw: the folder knows its steps, and that guidance is off."""
    name, scale, out = exported
    facts = inspect(out)
    assert facts["what"].startswith("model with a distilled branch") and facts["text scale"] == "4"
    merged = Pipeline(*load_model(str(out), Device("cpu")))
    source = Pipeline(*scenes, f"scenes/{name}", context="student")
    if scale:
        picture = Image.fromarray(sample("test", 1, 0, "editing").images["0.png"])
        drawn, expected = (pipeline.edit(picture, "Make the circle blue.", seed=3) for pipeline in (merged, source))
    else:
        drawn, expected = (pipeline.generate(PROMPT, seed=3) for pipeline in (merged, source))
    assert drawn.nfe == expected.nfe == int(name.removeprefix("nfe"))
    pixels = [torch.frombuffer(bytearray(p.image.tobytes()), dtype=torch.uint8).int() for p in (drawn, expected)]
    assert (pixels[0] - pixels[1]).abs().max() <= 1
    assert not caplog.records
    merged.generate(PROMPT, steps=2, text_scale=5)
    assert "made for text scales 4 to 4, which 5 is not" in caplog.text


def test_7b_has_the_official_layout() -> None:
    manifest = json.loads((FIXTURES / "bagel_7b_manifest.json").read_text())["bagel"]
    with torch.device("meta"):
        branch = GenerationBranch(BagelConfig())
        branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
        plain = folded(branch, {TEXT_SCALE: 4.0, IMAGE_SCALE: 2.0})
    groups = ("llm_gen", "latent_io", "latent_pos_table")
    assert {official_key(f"generation.{key}"): list(value.shape) for key, value in plain.state_dict().items()} == {
        key: entry["shape"] for key, entry in manifest.items() if entry["group"] in groups
    }


# Adapters


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A nano model's folder, and a guided branch of it."""
    root = tmp_path_factory.mktemp("nano")
    folder, path = nano_folder(root / "model"), root / "branch.safetensors"
    model = Bagel.from_pretrained(folder)
    branch = model.generation.copy()
    branch.add_condition(TEXT_SCALE, IMAGE_SCALE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in branch.parameters():
            value += 0.1 * torch.randn(value.shape, generator=generator)
    info = BranchInfo("TSCD", 6, base_hash(model), 3.0, (1, 5), (1, 2.5), context_hash(model), model="model")
    save_branch(branch, info, path)
    yield folder, str(path)


@torch.no_grad()
def test_adapters_of_full_rank_are_the_branch_over_shared_weights(nano: tuple[str, str], tmp_path: Path) -> None:
    folder, path = nano
    main(["export", "lora", str(tmp_path / "lora"), "--branch", path, "--model", folder, "--rank", "64"])
    model = Bagel.from_pretrained(folder)
    branch, adapted = (load_branch(file, model)[0] for file in (path, str(tmp_path / "lora")))
    layer = adapted.get_submodule("layers.1.output.up_proj")
    assert layer.base_layer.weight is model.generation.get_parameter("layers.1.output.up_proj.weight")
    context = model.prefill([[TextSegment(torch.tensor([7, 8]))]])
    grid, noise = model.latent_grid([(16, 16)]), torch.randn(1, 4, model.config.latent_token_dim)
    scales = {TEXT_SCALE: torch.tensor([4.0]), IMAGE_SCALE: torch.tensor([0.0])}
    first, second = (model.velocity(noise, torch.tensor([0.6]), context, grid, b, scales) for b in (branch, adapted))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
    whole = load_branch(str(tmp_path / "lora"), model, whole=True)[0]
    for key, value in branch.state_dict().items():
        torch.testing.assert_close(whole.state_dict()[key], value, atol=1e-5, rtol=0)


def test_adapters_have_pefts_names_and_tell_their_error(
    nano: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = nano
    out = tmp_path / "lora"
    main(["export", "lora", str(out), "--branch", path, "--model", folder, "--rank", "8", "--dtype", "bfloat16"])
    told = capsys.readouterr().out
    errors = [float(part.split(": ")[-1].rstrip("%\n")) for part in told.split("difference:")[1].split(", ")]
    assert len(errors) == 4 and errors == sorted(errors, reverse=True) and 0 < errors[-1] < 100
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 8, 8)
    with safe_open(out / "adapter_model.safetensors", framework="pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}
    name = "base_model.model.language_model.model.layers.0.mlp_moe_gen.down_proj"
    assert (shapes[f"{name}.lora_A.weight"], shapes[f"{name}.lora_B.weight"]) == ([8, 64], [32, 8])
    assert name.removeprefix("base_model.model.") in config["target_modules"]
    facts = inspect(out, Path(folder))
    assert facts["what"] == "adapters of rank 8" and facts["inputs"] == "time, text scale, image scale"
    assert facts["fits"] == folder
    main(["generate", "a", "--model", folder, "--branch", str(out), "--steps", "1", "--out", str(tmp_path / "a.png")])
    merged = tmp_path / "merged"
    main(["export", "model", str(merged), "--branch", str(out), "--model", folder, "--text-scale", "4"])
    assert not Bagel.from_pretrained(merged).generation.conditions


@torch.no_grad()
def test_peft_puts_adapters_where_official_names_are(nano: tuple[str, str], tmp_path: Path) -> None:
    """Into a model that has linear layers under these names, as the public code's has."""
    peft = pytest.importorskip("peft")
    folder, path = nano
    main(["export", "lora", str(tmp_path / "lora"), "--branch", path, "--model", folder, "--rank", "4"])
    model = Bagel.from_pretrained(folder)
    adapted = load_branch(str(tmp_path / "lora"), model)[0]
    public = torch.nn.Module()
    for name, layer in model.generation.named_modules():
        if isinstance(layer, torch.nn.Linear):
            *places, last = official_key(f"generation.{name}.weight").removesuffix(".weight").split(".")
            owner = public
            for place in places:
                if not hasattr(owner, place):
                    owner.add_module(place, torch.nn.Module())
                owner = owner.get_submodule(place)
            owner.add_module(last, layer)
    config = peft.LoraConfig.from_pretrained(tmp_path / "lora")
    config.modules_to_save = None  # of which this stand-in has not all
    wrapped = peft.PeftModel(public, config)
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    found = peft.set_peft_model_state_dict(wrapped, {key: value for key, value in tensors.items() if "lora_" in key})
    assert not found.unexpected_keys
    x = torch.randn(3, 64)
    theirs = wrapped.get_submodule("base_model.model.language_model.model.layers.1.mlp_moe_gen.down_proj")
    torch.testing.assert_close(theirs(x), adapted.get_submodule("layers.1.output.down_proj")(x))


def test_who_reads_source_pictures_is_told(
    nano: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = ["--branch", nano[1], "--model", nano[0], "--text-scale", "4"]
    main(["export", "model", str(tmp_path / "draws"), *command])
    assert not caplog.records
    main(["export", "model", str(tmp_path / "edits"), *command, "--image-scale", "2"])
    assert "it reads them itself" in caplog.text


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "model", "NEW", "--model", "FOLDER"], "which branch?"),
        (["export", "model", "NEW", "--model", "FOLDER", "--branch", "BRANCH"], "takes a text scale: give one"),
        (["export", "model", "FOLDER", "--model", "FOLDER", "--branch", "BRANCH", "--text-scale", "4"], "not an empty"),
        (["export", "model", "NEW", "--model", "FOLDER", "--branch", "scenes/nfe6", "--text-scale", "4"], "scenes, "),
        (["export", "lora", "FOLDER", "--model", "FOLDER", "--branch", "BRANCH"], "holds a model"),
        (["export", "lora", "NEW", "--model", "FOLDER", "--branch", "BRANCH", "--rank", "0"], "need 1 or more"),
        (["export", "draft", "scenes/draft", "FOLDER", "--model", "scenes"], "holds a model"),
        (["average", "FOLDER/mean.safetensors", "{scenes/nfe1: 1}"], "holds a model"),
    ],
)
def test_impossible_exports_are_refused(
    nano: tuple[str, str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {"NEW": str(tmp_path / "new"), "BRANCH": nano[1]}
    words = [places.get(word, word.replace("FOLDER", nano[0])) for word in arguments]
    with pytest.raises(SystemExit, match=message.replace("?", r"\?")):
        main(words)


def test_what_has_no_constant_is_not_folded() -> None:
    with torch.device("meta"):
        branch = GenerationBranch(BagelConfig())
        branch.add_condition(DURATION)
        with pytest.raises(ValueError, match="duration"):
            folded(branch, {})
    with pytest.raises(ValueError, match="takes no text scale"), torch.device("meta"):
        folded(GenerationBranch(BagelConfig()), {TEXT_SCALE: 4.0})


def test_adapters_that_do_not_fit_are_refused(nano: tuple[str, str], tmp_path: Path) -> None:
    folder, path = nano
    main(["export", "lora", str(tmp_path / "lora"), "--branch", path, "--model", folder, "--rank", "2"])
    other = Bagel.from_pretrained(folder)
    with torch.no_grad():
        other.understanding.embed_tokens.weight += 1
    with pytest.raises(CheckpointError, match=r"another base model \(model, fingerprint"):
        load_branch(str(tmp_path / "lora"), other)
