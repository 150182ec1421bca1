"""Training of the draft head: what counts in the loss, what trains, what is saved, and exact resume."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hyperbagel.bagel.build.assemble import NANO
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import DocumentBatch, TextSegment, ViTSegment
from hyperbagel.draft.checkpoint import load_draft
from hyperbagel.draft.config import DraftConfig
from hyperbagel.draft.head import DraftHead
from hyperbagel.draft.losses import AcceptanceLikelihood, DraftLoss, DraftStep, KLDivergence, TotalVariation
from hyperbagel.draft.unroll import unroll
from hyperbagel.draft.vocabulary import count_tokens, frequent_tokens, read_vocabulary, write_vocabulary
from hyperbagel.modules.draft_head import DraftHeadMethod, DraftTraining
from hyperbagel.training.networks import Training
from tests.nano import nano_bagel
from tests.runs import nano_folder, scenes, trainer

CONFIG = dataclasses.replace(NANO, llm=dataclasses.replace(NANO.llm, num_hidden_layers=4, vocab_size=64))
WITHOUT_ZEROS = DraftConfig(layers=1, zero_init=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("draft") / "nano"
    nano_bagel(CONFIG).save_pretrained(path)
    return str(path)


class Answers(Dataset[DocumentBatch]):
    """Batches of two documents each: picture, question, answer."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> DocumentBatch:
        generator = torch.Generator().manual_seed(index)

        def text(length: int, loss: bool = False) -> TextSegment:
            return TextSegment(torch.randint(5, 64, (length,), generator=generator), loss)

        picture = ViTSegment(torch.rand(3, 16, 24, generator=generator))
        documents = ([picture, text(3), text(6, True)], [text(2), text(4, True), text(3), text(5, True)])
        return DocumentBatch(documents, (f"{index}a", f"{index}b"), ({}, {}))


def loader() -> DataLoader[DocumentBatch]:
    return DataLoader(Answers(), batch_size=None)


def stage(folder: str, losses: Sequence[DraftLoss] | None = None, **method: Any) -> DraftTraining:
    return DraftTraining(
        model=folder,
        method=DraftHeadMethod(**{"draft": WITHOUT_ZEROS, "steps": 3} | method),
        losses=losses,
        student=Training(partial(torch.optim.AdamW, lr=3e-3)),
    )


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("kind", ["hyper", "parallel"])
def test_only_the_draft_trains_and_is_saved_and_runs_resume_exactly(
    tmp_path: Path, kind: Literal["hyper", "parallel"]
) -> None:
    """Two updates, a checkpoint, three more: the same bits as five at once, and a target that did not change."""
    folder = nano_folder(tmp_path / "nano")
    data = partial(scenes, {"caption": 1.0, "dialogue": 1.0})
    config = replace(WITHOUT_ZEROS, kind=kind, ahead=4)
    one, resumed = stage(folder, draft=config), stage(folder, draft=config)
    fresh, target = state(one.draft), state(one.model)
    trainer(tmp_path / "one", max_steps=5).fit(one, data())
    assert all(torch.equal(value, target[name]) for name, value in one.model.state_dict().items())
    assert all(p.grad is None for p in one.model.parameters())
    assert not [name for name, value in one.draft.state_dict().items() if torch.equal(value, fresh[name])]

    half, path = trainer(tmp_path / "two", max_steps=2), tmp_path / "half.ckpt"
    half.fit(stage(folder, draft=config), data())
    half.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in saved} == {"draft", "student_step"}
    trainer(tmp_path / "two", max_steps=5).fit(resumed, data(), ckpt_path=path)
    assert int(resumed.student_step) == 5
    torch.testing.assert_close(resumed.draft.state_dict(), one.draft.state_dict(), atol=0, rtol=0)
    # What is left in the run's folder is the head itself.
    exported = load_draft(tmp_path / "two" / "draft.safetensors", Bagel.from_pretrained(folder))
    torch.testing.assert_close(exported.state_dict(), one.draft.state_dict(), atol=0, rtol=0)
    lost = torch.load(path, weights_only=True)
    del lost["state_dict"]["draft.norm.weight"]
    torch.save(lost, path)
    with pytest.raises(ValueError, match=r"draft\.norm\.weight"):
        trainer(tmp_path / "two", max_steps=5).fit(stage(folder, draft=config), data(), ckpt_path=path)


class Shares(L.LightningDataModule):
    """Each batch of `Answers`, its documents dealt out to the ranks."""

    def train_dataloader(self) -> DataLoader[DocumentBatch]:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        batches = [Answers()[index] for index in range(3)]
        return DataLoader(
            [DocumentBatch(b.documents[rank::world], b.keys[rank::world], b.metas[rank::world]) for b in batches],
            batch_size=None,
        )

    val_dataloader = train_dataloader


@pytest.mark.slow
@pytest.mark.parametrize("reduced", [False, True])
def test_two_processes_train_as_one_does(folder: str, tmp_path: Path, reduced: bool) -> None:
    """Ranks have different numbers of rows, and at some steps of the unroll none; means are over the rows of both."""
    vocabulary = None
    if reduced:
        write_vocabulary(list(range(2, 40)), tmp_path / "ids.json")
        vocabulary = str(tmp_path / "ids.json")
    heads, logged = [], []
    for processes in (1, 2):
        strategy = DDPStrategy(process_group_backend="gloo", start_method="spawn") if processes > 1 else "auto"
        method = DraftHeadMethod(draft=WITHOUT_ZEROS, steps=7, vocabulary=vocabulary)
        student = Training(partial(torch.optim.SGD, lr=0.1), clip=0)
        module = DraftTraining(model=folder, method=method, student=student)
        options = {"max_epochs": 1, "devices": processes, "strategy": strategy, "limit_val_batches": 1.0}
        run = trainer(tmp_path / str(processes), num_sanity_val_steps=0, **options)
        run.fit(module, Shares())
        heads.append(load_file(tmp_path / str(processes) / "draft.safetensors"))
        logged.append({name: float(value) for name, value in run.callback_metrics.items()})
    fresh = DraftHead.from_target(WITHOUT_ZEROS, Bagel.from_pretrained(folder)).state_dict()
    assert any(not torch.equal(value, fresh[name]) for name, value in heads[0].items() if name in fresh)
    torch.testing.assert_close(heads[1], heads[0], atol=2e-6, rtol=1e-4)
    assert logged[1] == pytest.approx(logged[0], abs=1e-4) and "val/draft/acceptance_length" in logged[0]


def reference(module: DraftTraining, batch: DocumentBatch) -> tuple[list[list[float]], list[int]]:
    """KL of every counting row of each step, and the number of hits, from logits written out in full."""
    values, hits = [], []
    with torch.no_grad():
        for step in unroll(module.draft, module.features(batch), module.method.steps):
            p = module.model.next_logits(step.target)
            choice = p.argmax(-1)
            q = module.draft.logits(step.hidden)
            vocabulary = module.draft.vocabulary
            ids = torch.arange(64) if vocabulary is None else vocabulary
            kept = torch.isin(choice, ids)
            log_p, log_q = p[:, ids].log_softmax(-1), q.log_softmax(-1)
            values.append((log_p.exp() * (log_p - log_q)).sum(-1)[kept].tolist())
            hits.append(int((ids[q.argmax(-1)] == choice).sum()))
    return values, hits


@pytest.mark.parametrize("reduced", [False, True])
def test_loss_is_the_mean_over_rows_that_count_and_misses_stay_misses(
    folder: str, tmp_path: Path, reduced: bool
) -> None:
    vocabulary = None
    if reduced:
        write_vocabulary(list(range(2, 40)), tmp_path / "ids.json")
        vocabulary = str(tmp_path / "ids.json")
    module = stage(folder, vocabulary=vocabulary, losses=[KLDivergence()])
    batch = Answers()[0]
    values, hits = reference(module, batch)
    sums = module.sums(batch)
    # Labels: 7; 5 and 6. Each further step loses the last position of each answer.
    counts = [7 + 5 + 6, 6 + 4 + 5, 5 + 3 + 4]
    assert int(sums[0].reached) == counts[0]
    assert len(values) == 3 and [int(step.rows) for step in sums] == [len(v) for v in values]
    if reduced:
        assert sum(map(len, values)) < sum(counts), "no choice lies outside the vocabulary"
    else:
        assert [len(v) for v in values] == counts
    for step, expected in zip(sums, values, strict=True):
        torch.testing.assert_close(step.terms[0].detach(), torch.tensor(expected).sum())
    assert int(sums[0].accepted) == hits[0] and int(sums[1].reached) <= hits[0]

    class Trainer:
        world_size = 1

    module._trainer = Trainer()  # type: ignore[assignment]
    mean = sum(0.8**i * sum(v) / len(v) for i, v in enumerate(values) if v)
    torch.testing.assert_close(float(module._means(sums, module._totals(sums))[0]), mean, rtol=1e-4, atol=1e-5)


def test_chunks_bound_the_logits_and_change_nothing(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, chunked = stage(folder), stage(folder, logits=64 * 4)
    largest = 0
    compare = DraftTraining._compare_chunk

    def watched(self: DraftTraining, index: int, hidden: Tensor, *target: Tensor) -> object:
        nonlocal largest
        if self is chunked:
            largest = max(largest, len(hidden))
        return compare(self, index, hidden, *target)

    monkeypatch.setattr(DraftTraining, "_compare_chunk", watched)
    for module in (whole, chunked):
        torch.stack([step.terms.sum() for step in module.sums(Answers()[1])]).sum().backward()
    assert largest == 4
    gradients = [{name: p.grad for name, p in module.draft.named_parameters()} for module in (whole, chunked)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_training_finds_what_the_target_says(folder: str, tmp_path: Path) -> None:
    """On a handful of documents the head soon predicts the target, in every configuration of the ablation."""
    for config in (
        DraftConfig(layers=1),
        DraftConfig(kind="eagle3", layers=1),
        DraftConfig(kind="parallel", layers=1, ahead=3),
    ):
        module = stage(folder, draft=config)
        before = sum(float(step.accepted) for step in module.sums(Answers()[0]))
        run = trainer(tmp_path, max_steps=60)
        run.fit(module, loader())
        after = [(int(step.accepted), int(step.reached)) for step in module.sums(Answers()[0])]
        assert after[0][0] > 0.7 * after[0][1] and sum(a for a, _ in after) > before, (config, after)


def test_a_parallel_head_learns_all_its_places_at_once(folder: str) -> None:
    """Whatever the number of unrolled steps; and a chosen head's own number counts."""
    module = stage(folder, draft=DraftConfig(kind="parallel", layers=1, ahead=5), steps=2)
    sums = module.sums(Answers()[0])
    assert len(sums) == 5 and module.steps == 5
    torch.stack([step.terms.sum() for step in sums]).sum().backward()
    embedding = module.draft.ahead_embedding
    assert embedding is not None and embedding.grad is not None and bool(embedding.grad.abs().sum(1).all())
    assert all(p.grad is None for p in module.model.parameters())


def test_terms_come_by_class_and_name(folder: str) -> None:
    module = stage(folder, losses=[TotalVariation(0.5)])
    module.add_loss(AcceptanceLikelihood())
    assert [(term.name, term.weight) for term in module.terms] == [("total_variation", 0.5), ("lk", 1.0)]
    with pytest.raises(ValueError, match="already has a loss term 'lk'"):
        module.add_loss(AcceptanceLikelihood())
    with pytest.raises(ValueError, match="DraftLoss"):
        module.add_loss(torch.nn.MSELoss())  # type: ignore[arg-type]


def test_acceptance_losses_against_hand_computed_cases() -> None:
    p, q = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])
    step = DraftStep(0, q.log(), p.log())
    torch.testing.assert_close(TotalVariation().rows(step), torch.tensor([0.3, 0.0]))
    torch.testing.assert_close(AcceptanceLikelihood().rows(step), -torch.tensor([0.7, 1.0]).log())
    assert KLDivergence().rows(step)[1].abs() < 1e-6 < KLDivergence().rows(step)[0]
    assert float(KLDivergence()(step)) == pytest.approx(float((p[0] * (p[0] / q[0]).log()).sum()) / 2)


def test_documents_without_answers_are_named(folder: str, tmp_path: Path) -> None:
    batch = DocumentBatch(([TextSegment(torch.tensor([5, 6]))],), ("lonely",), ({},))
    with pytest.raises(ValueError, match=r"lonely.*no answers"):
        trainer(tmp_path, max_steps=1).fit(stage(folder), DataLoader([batch], batch_size=None))


def test_vocabularies_hold_the_most_frequent_ids_of_answers(tmp_path: Path) -> None:
    def documents() -> Iterator[list[TextSegment]]:
        yield [TextSegment(torch.tensor([9, 9, 9])), TextSegment(torch.tensor([3, 3, 4, 5, 5, 5]), loss=True)]

    ids = frequent_tokens(count_tokens(documents(), vocab_size=16), size=3, always=(2,))
    assert ids == [2, 3, 5]
    write_vocabulary(ids, tmp_path / "ids.json")
    assert read_vocabulary(tmp_path / "ids.json", 16) == ids
    with pytest.raises(ValueError, match=r"ids.json.*below 4"):
        read_vocabulary(tmp_path / "ids.json", 4)
    with pytest.raises(ValueError, match="vocabulary of 0"):
        frequent_tokens(count_tokens(documents(), 16), 0)
