"""The local judge with a tiny, randomly initialised Qwen2-VL: that it runs and asks as published, not what it says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from hyperbagel.evaluation.gedit.judges.transformers import TransformersJudge

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
           "<|video_pad|>")  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def processor() -> Qwen2VLProcessor:
    """A byte-level processor without any merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*SPECIAL, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[0], pad_token=SPECIAL[0], extra_special_tokens=list(SPECIAL)
    )
    images = Qwen2VLImageProcessor(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024)
    videos = Qwen2VLVideoProcessor(patch_size=4, merge_size=2)
    return Qwen2VLProcessor(images, fast, videos, chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-vlm")
    made = processor()
    made.save_pretrained(folder)
    ids = dict(zip(SPECIAL, made.tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(made.tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_scores_greedily_with_images_before_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = TransformersJudge(folder, max_tokens=5, device_map="cpu", dtype="float32")
    prompts: list[dict[str, Any]] = []
    generate = judge.model.generate

    def recorded(**inputs: Any) -> torch.Tensor:
        prompts.append(inputs)
        return generate(**inputs)

    monkeypatch.setattr(judge.model, "generate", recorded)
    pair = Image.new("RGB", (16, 24), "red"), Image.new("RGB", (16, 24), "blue")
    verdict = judge.score("make it blue", *pair)

    assert (judge.name, judge.version) == (folder.name, "qwen2_vl")
    assert [len(p["image_grid_thw"]) for p in prompts] == [2, 1]
    assert all(not p["do_sample"] and p["max_new_tokens"] == 5 for p in prompts)
    text = judge.processor.tokenizer.decode(prompts[0]["input_ids"][0])
    assert text.rindex("<|vision_end|>") < text.index("make it blue")
    assert text.startswith("<|im_start|>user")
    assert verdict.consistency.asked == verdict.quality.asked == 1
    assert verdict.o is None or 0 <= verdict.o <= 10


def test_answer_is_without_the_question(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = TransformersJudge(folder, device_map="cpu", dtype="float32")
    answer = torch.tensor([judge.processor.tokenizer.encode('{"score": [7, 8]}')])
    monkeypatch.setattr(judge.model, "generate", lambda **inputs: torch.cat([inputs["input_ids"], answer], dim=1))
    verdict = judge.score("x", Image.new("RGB", (8, 8)), Image.new("RGB", (9, 9)))
    assert (verdict.sc, verdict.pq) == (7, 7)


def test_folder_without_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config.json; name the folder of a model"):
        TransformersJudge(tmp_path)
