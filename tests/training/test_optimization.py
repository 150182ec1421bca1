"""Networks, their updates and the loss terms of them: accumulation, clipping, schedules, limits, and useful errors."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from hyperbagel.bagel.segments import DocumentBatch
from hyperbagel.losses.base import LossTerm, Step, Update
from hyperbagel.modules.consistency.cfg_distillation import CFGDistillation
from hyperbagel.modules.consistency.tscd import TSCD, TSCDMethod
from hyperbagel.training.distillation import DistillationSettings, DistillationStage
from hyperbagel.training.schedules import WarmupStableDecay
from tests.distillation import adam, batches, changed, fit, sgd, snapshot, updates
from tests.stages import DISTILLATION, HEADS, STAGES, make_stage


class Watched(TSCD):
    """Notes which networks have gradients after each backward pass."""

    reached: list[set[str]]

    def manual_backward(self, loss: Tensor, *arguments: Any, **options: Any) -> None:
        super().manual_backward(loss, *arguments, **options)
        self.reached.append({name.partition(".")[0] for name, p in self.named_parameters() if p.grad is not None})


def test_gradients_reach_only_the_network_of_the_update(nano_folder: str, nano_branch: str, tmp_path: Path) -> None:
    """With a learning rate of 0 for one network, what it feeds on still trains, and it keeps its weights."""
    for still, moving in (("student", "critic"), ("critic", "student")):
        rates = {still: sgd(0.0), moving: sgd(0.1)}
        stage = Watched(model=nano_folder, init_from=nano_branch, student=rates["student"], critic=rates["critic"])
        stage.reached = []
        before = {name: snapshot(stage.get_submodule(name)) for name in rates}
        fit(stage, batches(1), tmp_path)
        assert stage.reached == [{"critic"}, {"student"}]
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


class Deferring(CFGDistillation):
    """Looks at losses as on an accelerator, which would have to be waited for."""

    def on_train_start(self) -> None:
        super().on_train_start()
        self.watch.deferring = True


@pytest.mark.parametrize("saves", [False, True])
def test_what_is_looked_at_later_still_names_the_first_documents_and_is_not_saved(
    nano_folder: str, tmp_path: Path, saves: bool
) -> None:
    stage = Deferring(model=nano_folder)
    stage.add_loss(Broken())
    checkpoints = ModelCheckpoint(tmp_path, every_n_train_steps=1)
    options = {"callbacks": [checkpoints], "enable_checkpointing": True} if saves else {}
    with pytest.raises(FloatingPointError, match=r"'broken' is nan at student update 0 on documents 0-0, 0-1"):
        fit(stage, batches(4), tmp_path, log_every_n_steps=3, **options)
    assert stage.student_step == (1 if saves else 3)
    assert not list(tmp_path.glob("*.ckpt"))


def test_the_last_losses_are_looked_at_before_the_export(nano_folder: str, tmp_path: Path) -> None:
    settings = DistillationSettings(export=str(tmp_path / "branch.safetensors"))
    stage = Deferring(model=nano_folder, settings=settings)
    stage.add_loss(Broken())
    with pytest.raises(FloatingPointError, match="'broken' is nan"):
        fit(stage, batches(2), tmp_path)
    assert not (tmp_path / "branch.safetensors").exists()


def test_nan_is_reported_with_its_documents(nano_folder: str, tmp_path: Path) -> None:
    stage = CFGDistillation(model=nano_folder)
    stage.add_loss(Broken())
    before = snapshot(stage.student)
    with pytest.raises(FloatingPointError, match=r"'broken' is nan at student update 0 on documents 0-0, 0-1"):
        fit(stage, batches(1), tmp_path)
    assert not changed(before, stage.student)
