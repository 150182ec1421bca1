"""Muon for matrices and AdamW for the rest behave as the two of them, and resume as one."""

import io

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon

from hyperbagel.training.optimizers import BatchedMuon, MuonWithAdamW
from tests.nano import nano_bagel


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(5, 8)
        self.hidden = nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, 5, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.hidden(self.embed_tokens(ids)).relu())


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def learn(model: Net, *optimizers: torch.optim.Optimizer, steps: int = 3, first: int = 0) -> None:
    for step in range(first, first + steps):
        ids = torch.randint(5, (16,), generator=torch.Generator().manual_seed(step))
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), (ids + 1) % 5).backward()
        for optimizer in optimizers:
            optimizer.step()


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for (name, value), expected in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(value, expected), name


def test_it_is_muon_on_hidden_matrices_and_adamw_on_the_rest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # in which PyTorch's Muon computes
    joint, apart = net(), net()
    learn(joint, MuonWithAdamW(joint.named_parameters(), lr=0.02, adamw_lr=0.01, weight_decay=0.1))
    muon = Muon([apart.hidden.weight], 0.02, 0.1, 0.95, adjust_lr_fn="match_rms_adamw")
    rest = [apart.embed_tokens.weight, apart.hidden.bias, apart.lm_head.weight]
    learn(apart, muon, AdamW(rest, 0.01, betas=(0.9, 0.98), weight_decay=0.0))
    for (name, value), expected in zip(joint.named_parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6, msg=name)


def test_named_parts_have_rates_of_their_own():
    joint, apart = net(), net()
    learn(joint, MuonWithAdamW(joint.named_parameters(), adamw_lr=0.01, rates={"hidden": 0.03, "lm_head": 0.0}))
    learn(
        apart,
        AdamW([apart.embed_tokens.weight], 0.01, betas=(0.9, 0.98), weight_decay=0.0),
        AdamW(apart.hidden.parameters(), 0.03, betas=(0.9, 0.98), weight_decay=0.0),
    )
    assert_equal(joint, apart)


@pytest.mark.parametrize(("unit", "precision"), [("none", 1e-4), ("amx_tile", 0.03), ("avx512_bf16", 0.03)])
@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
def test_muons_update_is_near_the_orthogonal_factor_of_the_momentum(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], unit: str, precision: float
):
    for known in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{known}_supported", lambda known=known: known == unit)
    matrices = [nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(i))) for i in range(3)]
    before = [matrix.detach().clone() for matrix in matrices]
    for matrix in matrices:
        matrix.grad = matrix.detach().clone()
    BatchedMuon(matrices, lr=1.0, weight_decay=0.0).step()
    for old, new in zip(before, matrices, strict=True):
        update = (old - new.detach()) / (0.2 * max(shape) ** 0.5)
        u, _, vh = torch.linalg.svd(old, full_matrices=False)
        values = torch.linalg.svdvals(update)
        assert values.min() > 0.6 and values.max() < 1.3
        assert torch.allclose(u.mT @ update @ vh.mT, torch.diag(torch.diag(u.mT @ update @ vh.mT)), atol=precision)


def test_its_state_can_be_saved_and_loaded():
    straight = net()
    learn(straight, MuonWithAdamW(straight.named_parameters(), lr=0.02), steps=5)
    model = net()
    optimizer = MuonWithAdamW(model.named_parameters(), lr=0.02)
    learn(model, optimizer, steps=2)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved, resumed = torch.load(file, weights_only=True), net()
    resumed.load_state_dict(saved["model"])
    optimizer = MuonWithAdamW(resumed.named_parameters(), lr=0.02)
    optimizer.load_state_dict(saved["optimizer"])
    learn(resumed, optimizer, steps=3, first=2)
    assert_equal(resumed, straight)


def test_schedulers_change_both_rates():
    model = net()
    optimizer = MuonWithAdamW(model.named_parameters(), lr=0.02, adamw_lr=0.01)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    learn(model, optimizer)
    assert_equal(model, net())


def test_the_vectors_tables_and_heads_of_a_bagel_go_to_adamw():
    model = nano_bagel()
    optimizer = MuonWithAdamW(model.generation.named_parameters(prefix="generation"))
    names = {id(p): name for name, p in model.named_parameters()}
    muon, adamw = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert all("_proj." in name and name.endswith("weight") for name in muon)
    assert {"generation.llm2vae.weight", "generation.time_embedder.mlp.0.weight", "generation.norm.weight"} <= adamw


@pytest.mark.parametrize("part", ["hidden.weight", "hidden.bias"])
def test_one_kind_of_parameters_is_enough(part: str):
    model = net()
    learn(model, MuonWithAdamW([(part, model.get_parameter(part))], lr=0.02))


def test_unnamed_or_no_parameters_are_refused():
    with pytest.raises(TypeError, match="named parameters"):
        MuonWithAdamW(net().parameters())
    with pytest.raises(ValueError, match="no parameters"):
        MuonWithAdamW([])
