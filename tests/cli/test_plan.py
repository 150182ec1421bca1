"""Planned memory against shapes that are known; every configuration of BAGEL-7B-MoT is built without weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyperbagel.bagel.model import Bagel
from hyperbagel.cli import main
from hyperbagel.cli.plan import GIB, Planned, PlanOptions, planned, table
from hyperbagel.modules.consistency.cfg_distillation import CFGDistillation
from hyperbagel.modules.dmdo import DMDO, DMDOMethod
from hyperbagel.modules.reward_tuning import RewardTuning, RewardTuningMethod
from hyperbagel.rewards.bagel import BagelReward
from hyperbagel.training.memory import Workload, expert_activations
from hyperbagel.training.networks import LoRA
from hyperbagel.training.planning import Cluster, optimizer_states, plan
from tests.distillation import adam
from tests.runs import nano_folder

BAGEL7B = Path(__file__).parents[2] / "configs" / "bagel7b"
STAGES = sorted(path.stem for path in BAGEL7B.glob("[!_]*.yaml"))
ADAPTED = sorted(path.stem for path in (BAGEL7B / "lora").glob("[!_]*.yaml"))
DOCUMENT = Workload(side=32, text=5)


def of(stage: str, *overlays: str, **options: object) -> Planned:
    return planned([BAGEL7B / f"{name}.yaml" for name in (stage, *overlays)], PlanOptions(**options))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return nano_folder(tmp_path_factory.mktemp("nano"))


def shapes(folder: str, **training: object) -> DMDO:
    with torch.device("meta"):
        train = adam(**training)
        return DMDO(model=folder, init_from="not read", student=train, fake=train)


def test_weights_gradients_and_states_are_those_of_a_real_stage(folder: str) -> None:
    """Two trained branches with AdamW: weights, one network's gradients at a time, two moments each."""
    model = Bagel.from_pretrained(folder)
    branch = sum(p.nbytes for p in CFGDistillation(model=folder).student.parameters())
    fixed = plan(shapes(folder), Cluster(), DOCUMENT).fixed
    understanding = (*model.understanding.parameters(), *model.understanding.buffers())
    assert fixed["understanding"] == sum(value.nbytes for value in understanding)
    assert fixed["gradients"] == branch
    states = fixed["optimizer"] - 2 * 2 * branch
    assert 0 <= states < 8 * 2 * len(list(model.generation.parameters())) + 200  # the counters of steps
    accumulated = plan(shapes(folder, accumulate=2), Cluster(), DOCUMENT).fixed
    assert accumulated["gradients"] == 2 * branch


def test_sharding_divides_what_is_sharded(folder: str) -> None:
    """Layers and branches; embeddings, LM head and vision tower stay whole."""
    whole, four = (plan(shapes(folder), cluster, DOCUMENT).fixed for cluster in (Cluster(), Cluster(4, True)))
    assert four["gradients"] == pytest.approx(whole["gradients"] / 4, rel=0.01)
    layers = sum(p.nbytes for p in Bagel.from_pretrained(folder).understanding.layers.parameters())
    assert whole["understanding"] - four["understanding"] == pytest.approx(layers * 3 / 4, rel=0.01)
    assert four["gathered layers"] > 0 and "gathered layers" not in whole
    assert plan(shapes(folder), Cluster(4), DOCUMENT).fixed == whole


def test_adapters_share_the_weights_of_the_branch_they_adapt(folder: str) -> None:
    full, adapted = (plan(shapes(folder, **t), Cluster(), DOCUMENT).fixed for t in ({}, {"lora": LoRA(2, 2)}))
    assert adapted["optimizer"] < 0.7 * full["optimizer"]
    assert adapted["gradients"] < 0.7 * full["gradients"]


def test_fused_optimizers_keep_what_others_do() -> None:
    """Their kernels do not run on shapes alone."""
    weight = torch.nn.Parameter(torch.empty(4, 3, device="meta"))
    plain, fused = (torch.optim.AdamW([weight], fused=fused) for fused in (False, True))
    shapes = [[value.shape for _, value in optimizer_states(optimizer)] for optimizer in (plain, fused)]
    assert shapes[0] == shapes[1] and torch.Size([4, 3]) in shapes[0]


def test_states_of_other_optimizers_are_found(folder: str) -> None:
    with torch.device("meta"):
        weight = torch.nn.Parameter(torch.zeros(10, 10))
    kept = [dict(optimizer_states(torch.optim.SGD([weight], lr=1, momentum=m))) for m in (0.0, 0.9)]
    assert [sum(value.nbytes for value in states.values()) for states in kept] == [0, 400]


def test_activations_grow_with_documents_and_shrink_with_checkpointing(folder: str) -> None:
    config = Bagel.from_pretrained(folder).config
    plain, recomputed = (expert_activations(config, 16, 8, 2, checkpointing) for checkpointing in (False, True))
    assert recomputed < plain
    assert expert_activations(config, 32, 8, 2, False) > 1.9 * plain
    found = plan(shapes(folder), Cluster(), DOCUMENT)
    assert found.total(3) - found.total(1) == 2 * sum(found.per_document.values())
    assert found.largest_batch(found.total(5)) == 5 and found.largest_batch(found.total(5) - 1) == 4
    assert found.largest_batch(0) == 0
    edit, prompt = (Workload(32, 5, editing).context_tokens(config) for editing in (True, False))
    assert prompt == 5 and edit == 5 + 16 + 16 + 4


def test_a_gradient_through_the_trajectory_keeps_all_its_steps(folder: str) -> None:
    with torch.device("meta"):
        whole = DMDO(model=folder, method=DMDOMethod(through="trajectory"), student=adam(), fake=adam())
    step, trajectory = (plan(stage, Cluster(), DOCUMENT).per_document for stage in (shapes(folder), whole))
    assert trajectory["activations: student"] == 6 * step["activations: student"]
    assert trajectory["activations: fake"] == step["activations: student"] and "activations: fake" not in step


def test_reward_tuning_keeps_every_picture_of_a_document_and_every_look_at_it(folder: str) -> None:
    with torch.device("meta"):
        one, more = (
            RewardTuning(model=folder, reward=BagelReward(), method=RewardTuningMethod(group=2, draws=draws))
            for draws in (1, 3)
        )
    few, many = (plan(stage, Cluster(), DOCUMENT).per_document for stage in (one, more))
    plain = plan(shapes(folder), Cluster(), DOCUMENT).per_document["activations: student"]
    assert (few["activations: student"], many["activations: student"]) == (2 * plain, 6 * plain)
    assert few["key-value caches"] == many["key-value caches"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_of_the_7b_model_is_built_without_weights(stage: str) -> None:
    """They fit on devices of 80 GiB, and nothing needs a file."""
    found = of(stage)
    assert any("taken for BAGEL-7B-MoT" in note for note in found.notes)
    weights = sum(size for part, size in found.plan.fixed.items() if part in ("understanding", "generation"))
    assert (weights < 12 * GIB) if found.cluster.sharded else (26 * GIB < weights < 30 * GIB)
    assert found.plan.largest_batch(80 * GIB) >= 1
    shown = table(found, PlanOptions())
    assert "largest batch in" in shown and "understanding" in shown


@pytest.mark.parametrize("stage", ADAPTED)
def test_adapters_of_the_7b_model_fit_on_one_device(stage: str) -> None:
    found = of(stage, f"lora/{stage}")
    assert found.cluster == Cluster(1, False)
    assert found.plan.largest_batch(80 * GIB) >= 1
    assert found.plan.fixed["optimizer"] < 10 * GIB


def test_the_configuration_gives_way_to_options() -> None:
    """16 devices need less on each, adapters keep smaller states."""
    eight, sixteen = of("dmdo"), of("dmdo", devices=16)
    assert sixteen.plan.total(0) < eight.plan.total(0)
    adapted = of("dmdo", lora=16, sharding="none", devices=1)
    assert adapted.cluster == Cluster(1, False)
    assert adapted.plan.fixed["optimizer"] < eight.plan.fixed["optimizer"]


def test_the_command_prints_a_table_or_one_line_of_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    cfg = str(BAGEL7B / "cfg_distillation.yaml")
    adapted = str(BAGEL7B / "lora" / "cfg_distillation.yaml")
    main(["plan", "--config", cfg, "--config", adapted, "--memory", "24"])
    shown = capsys.readouterr().out
    assert shown.startswith("CFGDistillation, on each of 1 device; GiB a device")
    assert "largest batch in 24 GiB: none: shard over more devices\n" in shown  # adapters train already
    main(["plan", "--config", cfg, adapted, "--memory", "24"])
    assert capsys.readouterr().out == shown
    with pytest.raises(SystemExit, match=r"hyperbagel plan: nowhere\.yaml"):
        main(["plan", "--config", "nowhere.yaml"])
