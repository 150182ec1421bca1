"""The backbone computes what BAGEL's public code does.

`--fixture FILE` checks another golden file instead of the project's own. A file holds a tiny model (`model/`, `ae/`, in
official names), inputs and expected outputs (`case/`), and its configuration in the metadata; what it lacks is skipped.
"""

from __future__ import annotations

import pytest
import torch

from hyperbagel.bagel.model import Bagel

from . import golden_inference, golden_sampling
from .golden import DEFAULT, Golden, Group, Ledger, Subject
from .golden_training import training_group

FIXED = [*golden_inference.GROUPS, *golden_sampling.GROUPS]


def groups_of(golden: Golden) -> list[Group]:
    return [*FIXED, *(training_group(case) for case in golden.training_cases)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "checked_group" in metafunc.fixturenames:
        groups = groups_of(Golden(metafunc.config.getoption("--fixture") or DEFAULT))
        metafunc.parametrize("checked_group", groups, ids=[group.name for group in groups])


@pytest.fixture(scope="module")
def ledger(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """The file's model, loaded from an official checkpoint folder."""
    golden, folder = Golden(pytestconfig.getoption("--fixture") or DEFAULT), tmp_path_factory.mktemp("checkpoint")
    golden.save_pretrained(folder)
    return Ledger(Subject(golden, Bagel.from_pretrained(folder)))


@torch.no_grad()
def test_group_agrees_with_the_reference(ledger: Ledger, checked_group: Group) -> None:
    ledger.check(checked_group)


@torch.no_grad()
def test_no_tensor_of_the_file_is_forgotten(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    golden = ledger.subject.golden
    groups = groups_of(golden)
    compared = {name for group in groups for name in ledger.results(group)}
    inputs = {name for name in golden.cases if is_input(name)}
    assert not set(golden.expected) - compared - inputs
    from_metadata = len(compared - set(golden.cases))
    with capsys.disabled():
        print(
            f"\n{golden.path.name}: {len(compared) - from_metadata} tensors and {from_metadata} entries of the "
            f"metadata compared, largest relative difference {ledger.largest_difference(groups):.1e}"
        )


def is_input(name: str) -> bool:
    numbered = name.rstrip("0123456789").endswith(".image")
    return name in golden_inference.INPUTS or numbered or name.endswith((".padded_latent", ".noise"))
