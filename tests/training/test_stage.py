"""What every stage keeps: only its networks change, checkpoints without the model, exact resuming, useful errors."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.branch_checkpoint import base_hash, context_hash, load_branch
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.losses.base import LossTerm, Step, Update
from hyperbagel.modules.consistency.cfg_distillation import CFGDistillation
from hyperbagel.modules.consistency.tscd import TSCD, TSCDMethod
from hyperbagel.training.distillation import DistillationSettings, DistillationStage
from hyperbagel.training.networks import LoRA
from hyperbagel.training.schedules import WarmupStableDecay
from hyperbagel.training.stage import FINGERPRINT
from tests.distillation import adam, batches, changed, documents, episode_of, fit, sgd, snapshot, updates
from tests.stages import DISTILLATION, HEADS, STAGES, make_stage


@pytest.mark.parametrize("name", DISTILLATION)
def test_two_updates_change_the_networks_and_nothing_else(
    name: str, nano_folder: str, nano_branch: str, tmp_path: Path
) -> None:
    """Generation and editing batches, images of different sizes; the model stays as it is bit for bit."""
    stage = make_stage(name, nano_folder, nano_branch, adam())
    model, networks = snapshot(stage.model), {n: snapshot(stage.get_submodule(n)) for n in STAGES[name].networks}
    run = fit(stage, batches(2, mixed_sizes=True), tmp_path)
    assert int(stage.student_step) == 2
    assert not changed(model, stage.model)
    assert all(changed(before, stage.get_submodule(n)) for n, before in networks.items())
    assert all(p.grad is None for p in stage.model.parameters())
    assert all(torch.isfinite(torch.as_tensor(v)) for v in run.logged_metrics.values())
    assert {"loss/", "grad_norm/", "time/"} <= {k.partition("/")[0] + "/" for k in run.logged_metrics}
    branch, info = load_branch(tmp_path / "branch.safetensors", stage.model)
    assert info.stage == type(stage).__name__ and info.nfe == stage.nfe
    assert (info.base, info.context) == (base_hash(stage.model), context_hash(stage.model))
    assert not changed(snapshot(stage.branch), branch)


@pytest.mark.parametrize("name", DISTILLATION)
def test_the_cost_of_an_update_is_logged_by_part(name: str, nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """The parts that follow each other make up the step, apart from what lies between them."""
    run = fit(make_stage(name, nano_folder, nano_branch, adam()), batches(2), tmp_path)
    seconds = {k.removeprefix("time/"): float(v) for k, v in run.logged_metrics.items() if k.startswith("time/")}
    row = STAGES[name]
    assert set(seconds) == {*row.timed, *row.inner, "data", "prefill", "step"}
    assert 0 < sum(seconds[part] for part in (*row.timed, "prefill")) <= seconds["step"] * 1.001


@pytest.mark.parametrize("name", DISTILLATION)
def test_resuming_equals_an_uninterrupted_run(name: str, nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """Bit for bit, from a checkpoint that holds no weight of the model."""
    data = batches(4)
    whole = make_stage(name, nano_folder, nano_branch, adam())
    fit(whole, data, tmp_path)
    saver = ModelCheckpoint(tmp_path, "half", save_last=False)
    fit(
        make_stage(name, nano_folder, nano_branch, adam()),
        data[:2],
        tmp_path,
        callbacks=[saver],
        enable_checkpointing=True,
    )
    checkpoint = torch.load(tmp_path / "half.ckpt", weights_only=True)
    kept = {key.partition(".")[0] for key in checkpoint["state_dict"]}
    assert kept == {*STAGES[name].networks, *STAGES[name].saved, "student_step", "batches_seen"}
    assert not any("encoder" in key or "reward" in key for key in checkpoint["state_dict"])
    half = make_stage(name, nano_folder, nano_branch, adam())
    fit(half, data[2:], tmp_path, ckpt_path=tmp_path / "half.ckpt", max_epochs=2)
    assert int(half.student_step) == 4
    assert not changed(whole.state_dict(), half)


def test_loading_still_finds_gaps_and_other_models(nano_folder: str, nano_branch: str) -> None:
    stage = make_stage("tscd", nano_folder, nano_branch, adam())
    state = stage.state_dict()
    stage.load_state_dict(state)
    del state["student.vae2llm.weight"]
    with pytest.raises(ValueError, match=r"student\.vae2llm\.weight"):
        stage.load_state_dict(state)
    checkpoint: dict[str, Any] = {}
    stage.on_save_checkpoint(checkpoint)
    stage.on_load_checkpoint(checkpoint)
    for wrong in ({}, checkpoint | {FINGERPRINT: "0" * 16}):
        with pytest.raises(ValueError, match="other frozen weights"):
            stage.on_load_checkpoint(wrong)


def test_gradients_reach_only_the_network_of_the_update(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """With a learning rate of 0 for one network, what it feeds on still trains, and it keeps its weights."""
    for still, moving in (("student", "critic"), ("critic", "student")):
        rates = {still: sgd(0.0), moving: sgd(0.1)}
        stage = TSCD(model=nano_folder, init_from=nano_branch, student=rates["student"], critic=rates["critic"])
        before = {name: snapshot(stage.get_submodule(name)) for name in rates}
        seen: dict[str, set[str]] = {}
        original = stage.manual_backward

        def spy(loss: Tensor, stage: TSCD = stage, seen: dict[str, set[str]] = seen, call=original) -> None:  # type: ignore[no-untyped-def]
            call(loss)
            reached = {n.partition(".")[0] for n, p in stage.named_parameters() if p.grad is not None}
            seen[str(len(seen))] = reached

        stage.manual_backward = spy  # type: ignore[method-assign, assignment]
        fit(stage, batches(1), tmp_path)
        assert seen == {"0": {"critic"}, "1": {"student"}}
        assert not changed(before[still], stage.get_submodule(still))
        assert changed(before[moving], stage.get_submodule(moving))


def test_accumulated_batches_make_one_clipped_update(nano_folder: str, tmp_path: Path) -> None:
    """SGD at rate 1 moves by the clipped gradient; four batches in pairs are two updates."""
    stage = CFGDistillation(model=nano_folder, student=sgd(1.0, clip=1e-3, accumulate=2))
    before = snapshot(stage.student)
    fit(stage, batches(2), tmp_path)
    moved = torch.stack([(p - before[n]).norm() for n, p in stage.student.named_parameters()]).norm()
    assert int(stage.student_step) == 1
    torch.testing.assert_close(moved, torch.tensor(1e-3), rtol=1e-2, atol=0)
    stage = CFGDistillation(model=nano_folder, student=adam(accumulate=2))
    fit(stage, batches(4), tmp_path)
    assert int(stage.student_step) == 2


def test_stops_after_the_wanted_updates(nano_folder: str, tmp_path: Path) -> None:
    stage = CFGDistillation(model=nano_folder, student=adam(), settings=DistillationSettings(max_updates=2))
    fit(stage, batches(4), tmp_path)
    assert int(stage.student_step) == 2


def test_schedules_follow_each_networks_updates_and_resume(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """The student's rate halves with each of its updates, the critic's with each of the critic's."""

    def stage() -> TSCD:
        torch.manual_seed(0)
        halving = {"scheduler": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)}
        train = sgd(0.8, **halving)
        method = TSCDMethod(student_every=2, heads=HEADS)
        return TSCD(model=nano_folder, init_from=nano_branch, method=method, student=train, critic=train)

    saver, whole = ModelCheckpoint(tmp_path, "half"), stage()
    run = fit(whole, batches(4), tmp_path)
    assert [o.param_groups[0]["lr"] for o in run.optimizers] == pytest.approx([0.8 / 4, 0.8 / 16])
    fit(stage(), batches(4)[:3], tmp_path, callbacks=[saver], enable_checkpointing=True)
    resumed = stage()
    run = fit(resumed, batches(4)[3:], tmp_path, ckpt_path=tmp_path / "half.ckpt", max_epochs=2)
    assert [o.param_groups[0]["lr"] for o in run.optimizers] == pytest.approx([0.8 / 4, 0.8 / 16])
    assert not changed(whole.state_dict(), resumed)


def test_the_students_schedule_ends_with_its_updates(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """Those of the stage, or, where one network trains, of the trainer; others' schedules end when they say."""
    train = adam(scheduler=partial(WarmupStableDecay, decay=2))
    settings = DistillationSettings(max_updates=4)
    stage = TSCD(model=nano_folder, init_from=nano_branch, student=train, critic=train, settings=settings)
    _, (student, critic) = stage.configure_optimizers()
    assert (student.total, critic.total) == (4, None)
    run = fit(CFGDistillation(model=nano_folder, student=train), batches(4), tmp_path, max_steps=3)
    assert run.lr_scheduler_configs[0].scheduler.total == 3
    assert run.optimizers[0].param_groups[0]["lr"] == 0


def test_resuming_keeps_how_full_each_accumulation_is(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """Three batches leave one too few for the critic, and two for the student."""

    def stage() -> TSCD:
        method = TSCDMethod(heads=HEADS)
        student, critic = adam(accumulate=5), adam(accumulate=2)
        return TSCD(model=nano_folder, init_from=nano_branch, method=method, student=student, critic=critic)

    saver = ModelCheckpoint(tmp_path, "half")
    fit(stage(), batches(3), tmp_path, callbacks=[saver], enable_checkpointing=True)
    for more, expected in ((1, (0, 2)), (2, (1, 2))):
        resumed = stage()
        run = fit(resumed, batches(more), tmp_path, ckpt_path=tmp_path / "half.ckpt", max_epochs=2)
        critic = next(iter(run.optimizers[1].state.values()))
        assert (int(resumed.student_step), int(critic["step"])) == expected


class Crowd(CFGDistillation):
    """The student and four critics, two of which share a loss."""

    def __init__(self, folder: str) -> None:
        super().__init__(model=folder, student=adam())
        for number, accumulate in enumerate((1, 2, 2, 4)):
            training = adam(accumulate=accumulate)
            self.add_module(f"critic_{number}", self.branch_like_teacher(training))
            self.add_network(f"critic_{number}", training, "critic")

    def training_step(self, batch: DocumentBatch, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        episode = self.begin(batch)
        for names in (("critic_0",), ("critic_1", "critic_2"), ("critic_3",)):
            branches = [self.get_submodule(name) for name in names]
            velocities = [episode.velocity(b)(episode.noise, episode.uniform()) for b in branches]  # type: ignore[arg-type]
            self.update(names, torch.stack(velocities).square().mean())


def test_a_stage_may_have_five_networks(nano_folder: str, tmp_path: Path) -> None:
    stage = Crowd(nano_folder)
    before = {name: snapshot(stage.get_submodule(name)) for name in stage.networks}
    assert len(before) == 5
    run = fit(stage, batches(4), tmp_path)
    assert updates(run) == [4, 4, 2, 2, 1]
    assert all(changed(state, stage.get_submodule(name)) for name, state in before.items())
    assert {f"grad_norm/{name}" for name in before} <= run.logged_metrics.keys()


class Elsewhere(LossTerm):
    """Evaluates the student at other inputs than the step's own, and notes what gradient it gets."""

    def __init__(self, stage: DistillationStage) -> None:
        super().__init__("elsewhere")
        self.weights, self.gradients = [stage.student.llm2vae.weight], [torch.zeros(())]

    def forward(self, step: Step) -> Tensor:
        assert step.student is not None
        value = step.student(step.x_t / 2, step.t / 2).square().mean()
        self.gradients += torch.autograd.grad(value, self.weights, retain_graph=True)
        return value


@pytest.mark.parametrize("name", DISTILLATION)
def test_a_term_can_evaluate_the_student(name: str, nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    stage = make_stage(name, nano_folder, nano_branch, adam())
    stage.add_loss(term := Elsewhere(stage))
    run = fit(stage, batches(1), tmp_path)
    assert term.gradients[-1].any() and run.logged_metrics["loss/elsewhere"] > 0


class Decay(LossTerm):
    """A user's term with a parameter of its own."""

    def __init__(self, update: Update = "student", name: str = "decay") -> None:
        super().__init__(name, 0.5, update)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, step: Step) -> Tensor:
        return (self.scale * step.x0_hat.square()).mean() + step.pixels[0].square().mean()


class Broken(LossTerm):
    def __init__(self) -> None:
        super().__init__("broken")

    def forward(self, step: Step) -> Tensor:
        return step.velocity.mean() * float("nan")


@pytest.mark.parametrize("name", DISTILLATION)
def test_added_losses_train_are_logged_and_saved(name: str, nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    stage = make_stage(name, nano_folder, nano_branch, adam())
    terms = [Decay()] + ([Decay("critic", "critic_decay")] if len(STAGES[name].networks) > 1 else [])
    for term in terms:
        stage.add_loss(term)
    run = fit(stage, batches(1), tmp_path)
    for term in terms:
        assert term.scale != 1
        assert f"loss/{term.name}" in run.logged_metrics
    assert sum(key.endswith("scale") for key in stage.state_dict()) == len(terms)


def test_terms_that_do_not_fit_are_refused(nano_folder: str) -> None:
    stage = CFGDistillation(model=nano_folder)
    stage.add_loss(Decay())
    with pytest.raises(ValueError, match="already has a loss term 'decay'"):
        stage.add_loss(Decay())
    with pytest.raises(ValueError, match="has no critic"):
        stage.add_loss(Decay("critic", "other"))


def test_nan_is_reported_with_its_documents(nano_folder: str, tmp_path: Path) -> None:
    stage = CFGDistillation(model=nano_folder)
    stage.add_loss(Broken())
    before = snapshot(stage.student)
    with pytest.raises(FloatingPointError, match=r"'broken' is nan at student update 0 on documents 0-0, 0-1"):
        fit(stage, batches(1), tmp_path)
    assert not changed(before, stage.student)


def test_documents_without_an_image_to_draw_are_named(nano_folder: str, tmp_path: Path) -> None:
    batch = documents(3, False, [(16, 16)])
    bare = type(batch)((batch.documents[0][:1],), ("lonely",), ({},), "captions")
    with pytest.raises(ValueError, match=r"'captions': lonely hold no image"):
        fit(CFGDistillation(model=nano_folder), [bare], tmp_path)


@pytest.mark.parametrize("name", DISTILLATION)
def test_low_rank_branches_train_and_export_as_plain_ones(
    name: str, nano_folder: str, nano_branch: str, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    adapted = adam(lora=LoRA(rank=2, alpha=2))
    stage = make_stage(name, nano_folder, nano_branch, adapted)
    base = {n: p.detach().clone() for n, p in stage.student.named_parameters() if not p.requires_grad}
    fit(stage, batches(2), tmp_path)
    assert base and all(torch.equal(p, stage.student.get_parameter(n)) for n, p in base.items())
    saved = {key for key in stage.state_dict() if key.startswith("student.")}
    assert any("lora_B" in key for key in saved)
    assert not any("base_layer" in key for key in saved)
    branch, _ = load_branch(tmp_path / "branch.safetensors", stage.model)
    assert denoised(stage.model, branch).allclose(denoised(stage.model, stage.branch), atol=1e-5)
    start, _ = load_branch(nano_branch, stage.model)
    assert not denoised(stage.model, branch).allclose(denoised(stage.model, start), atol=1e-5)
    again = make_stage(name, nano_folder, nano_branch, adapted)
    again.load_state_dict(stage.state_dict())
    assert torch.equal(denoised(stage.model, stage.branch), denoised(again.model, again.branch))


def denoised(model: Bagel, branch: GenerationBranch) -> Tensor:
    """The velocity of a fixed input."""
    episode = episode_of(model, batches(1)[0], scales=(torch.full((2,), 3.0), torch.zeros(2)))
    with torch.no_grad():
        return episode.velocity(branch)(torch.ones_like(episode.noise), torch.full((2,), 0.5))
