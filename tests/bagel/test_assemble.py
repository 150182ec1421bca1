import dataclasses
import json
from itertools import cycle

import pytest
import torch
from jsonargparse import auto_cli
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from hyperbagel.bagel.autoencoder import Autoencoder
from hyperbagel.bagel.build.assemble import NANO, SCENES, Parts, assemble, build, compose
from hyperbagel.bagel.build.initial import restart_generation
from hyperbagel.bagel.checkpoint import CheckpointError, official_key, read_config
from hyperbagel.bagel.config import BagelConfig
from hyperbagel.bagel.grid import grid_ids
from hyperbagel.bagel.images import ImageTransform
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import TextSegment, ViTSegment
from hyperbagel.bagel.tensors import write_tensors
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.bagel.vision import patchify
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.scenes.vocabulary import tokenizer_folder

TOKENIZER = str(tokenizer_folder())
SIZES = dict(
    vocab_size=2048,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
)
VIT_SIZES = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, patch_size=8, image_size=32
)


def randomise(model: PreTrainedModel, scale: float = 0.15) -> PreTrainedModel:
    """No zeros and ones anywhere, weights large enough that greedy answers vary."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value += scale * torch.randn(value.shape, generator=generator)
    return model.eval()


def language_model(kind: str, **changes) -> PreTrainedModel:
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}
    models = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES | rope | changes)),
        "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES | rope | changes, tie_word_embeddings=True)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES | rope | changes)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES | rope | {"head_dim": 8} | changes)),
    }
    return randomise(models[kind]())


def same_answers(reference: PreTrainedModel, model: Bagel, prompts: list[list[int]], tokens: int) -> None:
    """Greedy answers of the assembled BAGEL are those of transformers, token for token."""
    special = model.config.tokens
    for prompt in prompts:
        framed = torch.tensor([[special.bos, *prompt, special.eos, special.bos]])
        expected = reference.generate(
            framed,
            attention_mask=torch.ones_like(framed),
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=special.eos,
            pad_token_id=special.eos,
        )[0, framed.shape[1] :].tolist()
        if expected[-1] == special.eos:
            expected.pop()
        context = model.prefill([[TextSegment(torch.tensor(prompt))]])
        assert decode_text(model, context, DecodingSettings(max_tokens=tokens)) == [expected]
        assert len(set(expected)) > 1, "an answer of a single token would show little"


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "qwen2", "qwen3"])
def test_answers_equal_those_of_the_language_model(kind, tmp_path):
    reference = language_model(kind)
    reference.save_pretrained(tmp_path / "llm")
    assembled = assemble(Parts(llm=str(tmp_path / "llm"), tokenizer=TOKENIZER, sizes=NANO), tmp_path / "bagel")
    saved = Bagel.from_pretrained(tmp_path / "bagel")
    assert saved.config == assembled.config
    assert saved.config.llm.qk_norm is (kind == "qwen3")
    prompts = [[17, 300, 1952, 1999], [5], torch.arange(30, 70).tolist()]
    same_answers(reference, saved, prompts, tokens=48)


def test_generation_experts_start_as_independent_copies(tmp_path):
    language_model("qwen2").save_pretrained(tmp_path)
    model, _ = build(Parts(llm=str(tmp_path), tokenizer=TOKENIZER, sizes=NANO))
    understanding = dict(model.understanding.named_parameters())
    for name, value in model.generation.named_parameters():
        if name.startswith(("layers.", "norm.")):
            assert torch.equal(value, understanding[name])
            assert value.data_ptr() != understanding[name].data_ptr()
    assert model.generation.llm2vae.weight.count_nonzero() == model.generation.llm2vae.bias.count_nonzero() == 0
    assert model.understanding.lm_head.weight.data_ptr() != model.understanding.embed_tokens.weight.data_ptr()


def test_new_tokens_get_mean_embeddings(tmp_path):
    vocabulary = Tokenizer.from_pretrained(TOKENIZER).size - 7
    reference = language_model("llama-tied", vocab_size=vocabulary)
    reference.save_pretrained(tmp_path)
    model, tokenizer = build(Parts(llm=str(tmp_path), tokenizer=TOKENIZER, sizes=NANO))
    assert model.config.llm.vocab_size == tokenizer.size == vocabulary + 7
    for weight in (model.understanding.embed_tokens.weight, model.understanding.lm_head.weight):
        old = reference.get_input_embeddings().weight
        assert torch.equal(weight[:vocabulary], old)
        assert torch.allclose(weight[vocabulary:], old.mean(0).expand(7, -1))


def test_q_and_k_norms_are_added_only_when_asked_for(tmp_path):
    language_model("qwen2").save_pretrained(tmp_path)
    parts = Parts(llm=str(tmp_path), tokenizer=TOKENIZER, sizes=NANO)
    assert build(parts)[0].config.llm.qk_norm is False  # though the sizes of fresh parts have them
    model, _ = build(dataclasses.replace(parts, add_qk_norm=True))
    norm = model.understanding.layers[1].input.q_norm.weight
    assert model.config.llm.qk_norm and torch.equal(norm, torch.ones(8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(head_dim=16), "head_dim 16"),
        (dict(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), "rope type 'linear'"),
        (dict(hidden_act="gelu"), "hidden_act 'gelu'"),
        (dict(attention_bias=True), r"o_proj\.bias"),
        (dict(mlp_bias=True), r"mlp\.\w+\.bias"),
    ],
)
def test_language_models_of_another_build_are_refused(changes, message, tmp_path):
    language_model("llama", **changes).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"{tmp_path}.*{message}"):
        build(Parts(llm=str(tmp_path), tokenizer=TOKENIZER, sizes=NANO))


def test_a_sliding_window_is_refused_before_weights_are_read(tmp_path):
    MistralConfig(**SIZES, sliding_window=128).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="sliding window of 128"):
        build(Parts(llm=str(tmp_path), tokenizer=TOKENIZER, sizes=NANO))


def test_other_architectures_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="'gpt2' is not supported; use one of llama, mistral, qwen2, qwen3"):
        build(Parts(llm=str(tmp_path), tokenizer=TOKENIZER, sizes=NANO))


def test_incomplete_language_models_are_refused(tmp_path):
    language_model("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing keys: model\.layers\.1\.mlp\.up_proj\.weight"):
        build(Parts(llm=str(tmp_path), tokenizer=TOKENIZER, sizes=NANO))
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="cannot be read as a language model"):
        build(Parts(llm=str(tmp_path), tokenizer=TOKENIZER, sizes=NANO))


def test_missing_and_wrong_files_are_named(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"something else")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(CheckpointError, match=f"{path}: neither a GGUF file nor a language model folder"):
            build(Parts(llm=str(path), tokenizer=TOKENIZER))
        with pytest.raises(CheckpointError, match=f"{path}: not a SigLIP folder"):
            build(Parts(vit=str(path), sizes=NANO))
    with pytest.raises(CheckpointError, match=r"model\.bin: not a GGUF file"):
        build(Parts(llm=str(tmp_path / "model.bin"), tokenizer=TOKENIZER))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build(Parts(llm=str(tmp_path / "nowhere")))
    with pytest.raises(CheckpointError, match="nowhere: no such file"):
        build(Parts(autoencoder=str(tmp_path / "nowhere"), sizes=NANO))


# Vision


def vision_model() -> SiglipVisionModel:
    return randomise(SiglipVisionModel(SiglipVisionConfig(**VIT_SIZES)))


def save_siglip(reference: SiglipVisionModel, layout: str, folder) -> None:
    """The vision model alone, with the older key prefix of published files, or inside a model of both towers."""
    if layout == "both":
        text = SiglipTextConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9
        )
        both = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=reference.config.to_dict()))
        both.vision_model.load_state_dict(reference.state_dict())
        both.save_pretrained(folder)
        return
    reference.save_pretrained(folder)
    if layout == "prefixed":
        tensors = {f"vision_model.{k}": v for k, v in load_file(folder / "model.safetensors").items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("layout", ["alone", "prefixed", "both"])
def test_the_vision_tower_computes_what_siglip_does(layout, tmp_path):
    reference = vision_model()
    save_siglip(reference, layout, tmp_path)
    model, _ = build(Parts(vit=str(tmp_path), sizes=NANO))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        states = reference(images, output_hidden_states=True).hidden_states
        expected = reference.post_layernorm(states[-2])
        positions = grid_ids((4, 4), 4).expand(2, -1)
        got = model.understanding.vision(patchify(images, 8), positions)
    assert model.config.vit.num_hidden_layers == 2
    assert torch.allclose(got, expected, atol=1e-5), (got - expected).abs().max()


def test_picture_limits_follow_the_vision_tower(tmp_path):
    vision_model().save_pretrained(tmp_path)
    model, _ = build(Parts(vit=str(tmp_path), sizes=BagelConfig(llm=NANO.llm, autoencoder=NANO.autoencoder)))
    config = model.config
    assert config.vit_transform == ImageTransform(max_size=32, min_size=32, stride=8)
    assert config.vae_transform == ImageTransform(max_size=512, min_size=512, stride=16)  # 64 tokens of 8 pixels
    pixels = torch.zeros(3, *config.vit_transform.size(100, 40)[::-1])
    assert model.prefill([[ViTSegment(pixels)]]).length > 2


def test_other_vision_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    with pytest.raises(CheckpointError, match="'clip_vision_model' is not supported; use a SigLIP"):
        build(Parts(vit=str(tmp_path), sizes=NANO))


# Autoencoder


def test_an_autoencoder_file_tells_its_widths(tmp_path):
    config = dataclasses.replace(NANO.autoencoder, ch_mult=(2, 1), num_res_blocks=2, z_channels=3, pixel_unshuffle=2)
    reference = Autoencoder(config)
    write_tensors(reference.official_state_dict(), tmp_path / "ae.safetensors")
    model, _ = build(Parts(autoencoder=str(tmp_path / "ae.safetensors"), sizes=NANO))
    assert model.config.autoencoder == config
    images = torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        assert torch.equal(model.autoencoder.encode(images), reference.encode(images))


def test_files_that_are_no_autoencoder_are_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors: not an autoencoder in the official layout"):
        build(Parts(autoencoder=str(tmp_path / "x.safetensors"), sizes=NANO))


# Fresh


def test_a_fresh_bagel_is_saved_with_its_tokenizer(tmp_path):
    model = assemble(Parts(sizes=NANO), tmp_path / "out")
    loaded = Bagel.from_pretrained(tmp_path / "out")
    assert loaded.config == model.config == NANO == read_config(tmp_path / "out")
    state = loaded.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    tokenizer = Tokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokens == model.config.tokens
    answer = decode_text(loaded, loaded.prefill([[TextSegment(tokenizer.encode("what is this?"))]]), None)
    assert tokenizer.decode(answer[0]) is not None


def test_fresh_weights_depend_on_the_seed_alone():
    first, again, other = (compose(NANO, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    changed = {name for name, value in first.items() if not torch.equal(value, other[name])}
    assert "autoencoder.network.encoder.conv_in.weight" in changed
    assert "understanding.layers.1.output.up_proj.weight" in changed


def test_every_fresh_part_can_learn():
    """Nothing but the velocity head starts where its output, or what feeds it, is stuck at zero."""
    model = compose(NANO)
    for name, value in model.named_parameters():
        if not name.startswith("autoencoder.") and not name.endswith("bias") and "llm2vae" not in name:
            assert value.count_nonzero() == value.numel(), official_key(name)


def test_fresh_generation_experts_look_at_what_lies_near():
    model = compose(SCENES)
    restart_generation(model)
    branch, side, heads = model.generation, SCENES.max_latent_size, SCENES.llm.num_attention_heads
    tokens = branch.vae2llm(torch.randn(side**2, branch.vae2llm.in_features)) + branch.latent_pos_embed.pos_embed
    inner = [(row, column) for row in range(2, side - 2) for column in range(2, side - 2)]
    moves = cycle([(1, 0), None, (0, 1), None, (-1, 0), None, (0, -1), None])
    for layer in branch.layers:
        q, k = (p(tokens).unflatten(-1, (heads, -1)) for p in (layer.input.q_proj, layer.input.k_proj))
        for head, move in zip(range(heads), moves, strict=False):
            if move is None:
                continue
            weight = (q[:, head] @ k[:, head].T / q.shape[-1] ** 0.5).softmax(-1).unflatten(-1, (side, side))
            seen = [weight[side * r + c].roll((1 - r - move[1], 1 - c - move[0]), (0, 1)) for r, c in inner]
            assert torch.stack(seen).mean(0)[:3, :3].sum() > 0.3  # 9 of 64 places around the one meant


def test_half_precision_is_stored(tmp_path):
    assemble(Parts(sizes=NANO, dtype="bfloat16"), tmp_path)
    assert {value.dtype for value in load_file(tmp_path / "ema.safetensors").values()} == {torch.bfloat16}


def test_files_are_not_overwritten(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(FileExistsError, match="not an empty folder"):
        assemble(Parts(sizes=NANO), tmp_path)


def test_parts_parse_from_a_command_line():
    args = ["--llm", "some/folder", "--sizes.vit.hidden_size", "48", "--sizes.autoencoder.ch_mult", "[1, 2]"]
    parts = auto_cli(Parts, args=args)
    assert parts.llm == "some/folder" and parts.sizes.vit.hidden_size == 48
    assert parts.sizes.autoencoder.ch_mult == (1, 2)
