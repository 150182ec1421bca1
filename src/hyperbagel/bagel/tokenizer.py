"""Text to token ids and back, with the four special tokens that frame BAGEL's blocks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import Tensor

from hyperbagel.bagel.config import SpecialTokens
from hyperbagel.bagel.shipped import is_shipped, resolve

SPECIAL_TOKENS: Final = {
    "bos": "<|im_start|>",
    "eos": "<|im_end|>",
    "start_of_image": "<|vision_start|>",
    "end_of_image": "<|vision_end|>",
}
"""Field of `SpecialTokens` -> text of the token."""


CONTEXT: Final = 32_768
"""Positions that BAGEL's language model was trained on; a tokenizer may name fewer (`model_max_length`)."""


KNOWS: Final = "knows"
"""Key of `tokenizer_config.json`: what a model of a small world knows, in words for people."""

_WORD = re.compile(r"[\u4e00-\u9fff]|[^\W\d_\u4e00-\u9fff]+")


def words(text: str) -> list[str]:
    """The different words of a text, a Chinese character for one each, without numbers and punctuation."""
    return list(dict.fromkeys(_WORD.findall(text)))


def as_plain(text: str, control: Iterable[str]) -> str:
    """A text for a foreign tokenizer that would take the writing of its control tokens for them: a blank within."""
    found = "|".join(re.escape(token) for token in sorted(control, key=len, reverse=True) if len(token) > 1)
    return re.sub(found, lambda match: f"{match[0][0]} {match[0][1:]}", text, flags=re.IGNORECASE) if found else text


class TokenizerError(ValueError):
    """A tokenizer that cannot be read or lacks BAGEL's special tokens; the message names file, token and remedy."""


class Tokenizer:
    """A Hugging Face tokenizer that knows BAGEL's special tokens.

    tokens: their ids; context: most tokens that the model reads; knows: what words the model was taught, where it is
    a small world's, "" for others. Build one with `Tokenizer.from_pretrained`.
    """

    def __init__(self, backend: Any, source: str) -> None:
        vocabulary = backend.get_vocab()
        if missing := [text for text in SPECIAL_TOKENS.values() if text not in vocabulary]:
            raise TokenizerError(
                f"{source}: the tokenizer has no {', '.join(missing)}; "
                "`hyperbagel init` adds them to a language model's tokenizer"
            )
        self.tokens = SpecialTokens(**{name: vocabulary[text] for name, text in SPECIAL_TOKENS.items()})
        self.size = max(vocabulary.values()) + 1
        self.context = min(getattr(backend, "model_max_length", CONTEXT), CONTEXT)
        self.knows = str(getattr(backend, "init_kwargs", {}).get(KNOWS, ""))
        self._backend = backend

    @classmethod
    def from_pretrained(cls, source: str | Path, *, add_special_tokens: bool = False) -> Self:
        """Read the tokenizer of a folder, of a model that comes with the package, or of a language model's GGUF file;
        nothing is downloaded or executed.

        add_special_tokens: append BAGEL's special tokens where they are missing, instead of raising.
        Raises FileNotFoundError, or TokenizerError for a tokenizer that is broken or lacks special tokens.
        """
        path = resolve(source)
        backend: Any = _OfPackage(path) if is_shipped(path) and not add_special_tokens else _read(path)
        if add_special_tokens:
            from transformers import AddedToken

            vocabulary = backend.get_vocab()
            missing = [text for text in SPECIAL_TOKENS.values() if text not in vocabulary]
            backend.add_tokens([AddedToken(text, special=True, normalized=False) for text in missing])
        return cls(backend, str(source))

    def encode(self, text: str, *, control: bool = False) -> Tensor:
        """Ids (n,) int64 of a text, without the bos and eos that frame a block.

        A text that holds the writing of a control token, such as "<|im_end|>", has its characters for ids, as such a
        token is put by programs only. control: take them for control tokens, as in settings.
        """
        ids = self._backend.encode(text, add_special_tokens=False, split_special_tokens=not control)
        return torch.tensor(ids, dtype=torch.long)

    def prompt(self, text: str) -> Tensor:
        """Ids (n,) int64 of a text that somebody gave. Raises ValueError for more than the model reads."""
        ids = self.encode(text)
        if len(ids) > self.context:
            raise ValueError(f"the text has {len(ids):,} tokens, the model reads {self.context:,} at most; shorten it")
        return ids

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that have no token of their own, where `knows` says that all words of the model have."""
        if not self.knows:
            return []
        return [word for word in words(text) if not self._has(word)]

    def _has(self, word: str) -> bool:
        """Whether a word is one token, at the beginning of a text or within it."""
        return any(len(self.encode(written)) == 1 for written in (f" {word}", word))

    def decode(self, ids: Tensor | Iterable[int]) -> str:
        """The text of ids (n,), special tokens left out."""
        numbers = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        text: str = self._backend.decode(numbers, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files."""
        self._backend.save_pretrained(str(folder))


class _OfPackage:
    """A tokenizer of the package's own, as transformers' but by the tokenizers library alone, which takes a second less
    to import."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as FastTokenizer

        self._folder = folder
        self._tokenizer = FastTokenizer.from_file(str(folder / "tokenizer.json"))
        self.init_kwargs = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        self.model_max_length: int = self.init_kwargs["model_max_length"]

    def get_vocab(self) -> dict[str, int]:
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return vocabulary

    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> list[int]:
        self._tokenizer.encode_special_tokens = split_special_tokens
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def save_pretrained(self, folder: str) -> None:
        _read(self._folder).save_pretrained(folder)


def _read(source: Path) -> Any:
    """transformers' tokenizer of a folder or a GGUF file."""
    from transformers import AutoTokenizer  # slow to import

    if source.is_dir():
        if not any((source / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            raise FileNotFoundError(f"{source}: holds no tokenizer (tokenizer.json, vocab.json or tokenizer.model)")
        place, options = source, {}
    elif source.is_file():
        place, options = source.parent, {"gguf_file": source.name}
    else:
        raise FileNotFoundError(f"{source}: no such tokenizer folder or GGUF file")
    try:
        return AutoTokenizer.from_pretrained(str(place), local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # the readers behind it raise anything, a bare Exception for broken JSON
        raise TokenizerError(
            f"{source}: not a readable tokenizer ({type(error).__name__}: {error}); copy its files again"
        ) from error
