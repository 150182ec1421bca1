import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers

from hyperbagel.bagel.config import SpecialTokens
from hyperbagel.bagel.tokenizer import SPECIAL_TOKENS, Tokenizer, TokenizerError
from hyperbagel.scenes.vocabulary import tokenizer_folder

TEXTS = [
    "a red circle left of two blue squares",
    "Punctuation, CAPITALS; 12345 and\n\n  odd   spaces . ",
    "红色圆形 é ñ 🙂 \x00",
    "",
]


@pytest.fixture
def plain_folder(tmp_path):
    """A byte-level tokenizer of a language model without BAGEL's tokens but with a template that adds a bos."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = FastTokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return tmp_path


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_encoding_and_decoding(text):
    tokenizer = Tokenizer.from_pretrained(tokenizer_folder())
    ids = tokenizer.encode(text)
    assert ids.dtype == torch.long and ids.ndim == 1
    assert tokenizer.decode(ids) == text == tokenizer.decode(ids.tolist())


def test_encoding_adds_no_framing_and_decoding_drops_it():
    tokenizer = Tokenizer.from_pretrained(tokenizer_folder())
    ids, special = tokenizer.encode("a red circle"), tokenizer.tokens
    assert not set(ids.tolist()) & {special.bos, special.eos}
    assert tokenizer.decode([special.bos, *ids.tolist(), special.eos]) == "a red circle"


def test_special_tokens_are_the_texts_of_the_official_model():
    tokenizer = Tokenizer.from_pretrained(tokenizer_folder())
    assert tokenizer.tokens == SpecialTokens(bos=1, eos=2, start_of_image=3, end_of_image=4)
    assert tokenizer.encode("<|im_start|>").tolist() == [1]
    assert tokenizer.encode("<|vision_end|>").tolist() == [4]


def test_missing_special_tokens_are_named(plain_folder):
    with pytest.raises(TokenizerError, match=r"no <\|im_start\|>, .*<\|vision_end\|>.*hyperbagel init"):
        Tokenizer.from_pretrained(plain_folder)


def test_special_tokens_are_added_and_survive_saving(plain_folder, tmp_path):
    tokenizer = Tokenizer.from_pretrained(plain_folder, add_special_tokens=True)
    assert tokenizer.tokens == SpecialTokens(256, 257, 258, 259) and tokenizer.size == 260
    tokenizer.save_pretrained(tmp_path / "copy")
    copy = Tokenizer.from_pretrained(tmp_path / "copy")
    assert copy.tokens == tokenizer.tokens
    for text in [*TEXTS, "framed <|im_start|>text<|im_end|>"]:
        assert copy.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert copy.decode(copy.encode("".join(SPECIAL_TOKENS.values()))) == ""


def test_present_special_tokens_are_not_added_again():
    tokenizer = Tokenizer.from_pretrained(tokenizer_folder(), add_special_tokens=True)
    assert tokenizer.size == Tokenizer.from_pretrained(tokenizer_folder()).size


def test_unreadable_tokenizers_give_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(TokenizerError, match=f"{tmp_path}: not a readable tokenizer"):
        Tokenizer.from_pretrained(tmp_path)
