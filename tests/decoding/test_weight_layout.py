import torch
from safetensors.torch import load_file

from hyperbagel.bagel.segments import TextSegment
from hyperbagel.decoding.autoregressive import DecodingSettings, decode_text
from hyperbagel.decoding.weight_layout import arrange_for_decoding
from tests.nano import nano_bagel


def test_arranging_changes_where_weights_lie_and_nothing_else(tmp_path):
    model = nano_bagel()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    context = model.prefill([[TextSegment(torch.arange(20, 40))]])
    answer = decode_text(model, context, DecodingSettings(max_tokens=32))
    model.save_pretrained(tmp_path / "before")
    arrange_for_decoding(model)
    assert not model.understanding.lm_head.weight.is_contiguous()
    assert not model.understanding.layers[0].output.gate_proj.weight.is_contiguous()
    assert model.understanding.layers[0].output.down_proj.weight.is_contiguous()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert decode_text(model, context, DecodingSettings(max_tokens=32)) == answer
    model.save_pretrained(tmp_path / "after")
    saved = load_file(tmp_path / "after" / "ema.safetensors")
    assert all(torch.equal(v, saved[k]) for k, v in load_file(tmp_path / "before" / "ema.safetensors").items())


def test_arranged_weights_still_take_gradients():
    model = nano_bagel()
    arrange_for_decoding(model)
    weight = model.understanding.lm_head.weight
    model.logits(torch.ones(1, model.config.llm.hidden_size)).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.ones_like(weight))
