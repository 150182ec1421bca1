"""Builds the tokenizer of the scenes world from its texts: python scripts/scenes_tokenizer.py [FOLDER]

The default folder is the one that is shipped. Models that were trained with the old words need them as they were.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from hyperbagel.files import write_json, write_text
from hyperbagel.scenes.documents import KINDS, sample
from hyperbagel.scenes.vocabulary import SPECIAL_TOKENS, knowledge, tokenizer_folder

MAX_VOCABULARY: Final = 2000


def world_texts(samples_per_kind: int = 4000) -> Iterator[str]:
    """Every text of the first samples of each kind of document, of both splits."""
    for kind in KINDS:
        for split in ("train", "test"):
            for index in range(samples_per_kind // 2):
                segments = sample(split, 0, index, kind).document["segments"]
                yield from (segment["text"] for segment in segments if segment["type"] == "text")


def build_tokenizer(texts: Iterable[str] | None = None) -> Tokenizer:
    """Byte-level BPE over `texts` (the world's own by default), in which every word seen is one token.

    The result depends on which words are seen, not on how often.

    Chinese is cut into single characters first, so that phrases do not fill the vocabulary. Any other text is
    represented by its bytes: encoding and decoding give the same text back.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{Han}"), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        min_frequency=1,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    words: set[str] = set()
    for text in world_texts() if texts is None else texts:
        words.update(text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    tokenizer.train_from_iterator(sorted(words), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, which transformers' AutoTokenizer reads."""
    folder = Path(folder)
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|vision_start|>", "<|vision_end|>"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "knows": knowledge(),
    }
    write_json(folder / "tokenizer_config.json", config, indent=2)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else tokenizer_folder()
    save_tokenizer(built := build_tokenizer(), target)
    print(f"{target}: {built.get_vocab_size()} tokens")
