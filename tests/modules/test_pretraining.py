"""Pretraining: the right loss, gradients where they belong, checkpoints of what trains, and exact resume."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperbagel.bagel.layout import IGNORED
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import DocumentBatch, LatentSegment
from hyperbagel.bagel.vision import patchify
from hyperbagel.flow.randomness import step_generator
from hyperbagel.flow.schedule import shift_time, velocity_target
from hyperbagel.losses.alignment import RepresentationAlignment, picture_features
from hyperbagel.losses.base import LossTerm, Step
from hyperbagel.modules.pretraining import Pretraining, PretrainingMethod, Term
from hyperbagel.training.networks import Training
from hyperbagel.training.noisy_pictures import noisy_latents
from hyperbagel.training.optimizers import MuonWithAdamW
from hyperbagel.training.schedules import WarmupStableDecay
from hyperbagel.training.stage import Compute, StageSettings
from tests.runs import nano_folder, scenes, trainer

ALL = {"generation": 1.0, "editing": 1.0, "multi_turn": 1.0, "caption": 1.0, "dialogue": 1.0}
SINGLE_TURN = {"generation": 1.0, "editing": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return nano_folder(tmp_path_factory.mktemp("nano"))


def batches(kinds: dict[str, float], number: int, size: int = 4) -> list[DocumentBatch]:
    data = scenes(kinds, size)
    data.setup("fit")
    loader = iter(data.train_dataloader())
    return [next(loader) for _ in range(number)]


def stage(folder: str, compute: Compute | None = None, accumulate: int = 1, **method: Any) -> Pretraining:
    scheduler = partial(WarmupStableDecay, warmup=2, total=8, decay=3)
    return Pretraining(
        model=folder,
        method=PretrainingMethod(**method),
        student=Training(partial(MuonWithAdamW, lr=1e-2), scheduler, accumulate=accumulate),
        settings=StageSettings(compute=compute or Compute()),
    )


def weights(module: Pretraining) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_terms_are_sums_over_labels_and_drawn_tokens(folder: str):
    """Against an objective written out in full."""
    module = stage(folder)
    (batch,) = batches(ALL, 1, size=8)
    terms = module.objective(batch, step_generator(0, 0, 0))
    layout = module.model.layout(module.model.encode_documents(batch.documents))
    x_t, t, noise = noisy_latents(layout, module.method.timestep_shift, step_generator(0, 0, 0))
    output = module.model(layout, x_t, t)
    drawn = layout.generated
    error = (output.velocity - velocity_target(layout.latents, noise))[drawn].square().mean(-1).sum()
    labels = layout.labels[layout.labels != IGNORED]
    logits = module.model.logits(output.und[layout.labels != IGNORED])
    cross_entropy = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(terms["image"].total, error)
    torch.testing.assert_close(terms["text"].total, cross_entropy)
    assert (int(terms["image"].count), int(terms["text"].count)) == (int(drawn.sum()), len(labels))
    assert bool((x_t[~drawn] == layout.latents[~drawn]).all())
    assert bool((t[~drawn] == 0).all())


@pytest.mark.parametrize("part", ["generation", "both"])
def test_denoising_against_a_cache_gives_loss_and_gradients_of_the_whole_forward(folder: str, monkeypatch, part: str):
    (batch,) = batches(SINGLE_TURN, 1, size=4)
    model = stage(folder).model
    documents = model.encode_documents(batch.documents)
    assert {len(document) for document in documents} >= {2, 4}  # generation, and editing with clean latents
    # The same noise and time for every picture, however they are drawn.
    drawn = "hyperbagel.training.noisy_pictures"
    monkeypatch.setattr(f"{drawn}.normal", lambda shape, _: torch.full(tuple(shape), 0.3))
    monkeypatch.setattr(f"{drawn}.uniform", lambda count, *_: torch.special.ndtr(torch.full((count,), 0.3)))
    results = []
    for cached in (True, False):
        module = stage(folder, train=part)
        monkeypatch.setattr("hyperbagel.modules.pretraining._draws_last", lambda document, cached=cached: cached)
        terms = module.objective(batch, torch.Generator())
        assert ("text" in terms) == (part == "both" and not cached)
        term = terms["image"]
        (term.total / term.count).backward()
        parameters = dict(module.model.named_parameters())
        results.append((term, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters.items()}))
        learnt = any(p.grad is not None for p in module.model.understanding.parameters())
        assert learnt == (part == "both")
    (one, one_grads), (other, other_grads) = results
    assert int(one.count) == int(other.count) == 4 * 16
    torch.testing.assert_close(one.total, other.total)
    torch.testing.assert_close(one_grads, other_grads, atol=1e-5, rtol=1e-4)


def test_texts_to_be_learnt_need_the_whole_forward(folder: str):
    (batch,) = batches({"caption": 1.0, "generation": 1.0}, 1, size=8)
    assert set(stage(folder).objective(batch, torch.Generator())) == {"text", "image"}
    assert set(stage(folder).objective(batches({"generation": 1.0}, 1)[0], torch.Generator())) == {"image"}


def test_noisy_versions_share_a_context_and_take_turns_in_time(folder: str):
    steps: list[Step] = []

    class Spy(LossTerm):
        def forward(self, step: Step) -> Tensor:
            steps.append(step)
            return step.velocity.sum() * 0

    (batch,) = batches(SINGLE_TURN, 1, size=4)
    module = stage(folder, train="generation", timestep_shift=2, draws=3)
    module.add_loss(Spy("spy"))
    image = module.objective(batch, step_generator(0, 0, 0))["image"]
    (step,) = steps
    assert step.batch.keys == batch.keys * 3
    thirds = torch.tensor([0.0, 1 / 3, 2 / 3, 1])
    low, high = (shift_time(torch.sigmoid(torch.special.ndtri(edge)), 2) for edge in (thirds[:-1], thirds[1:]))
    t = step.t.view(3, 4)
    assert bool(((t >= low[:, None]) & (t <= high[:, None])).all())
    documents = module.model.encode_documents(step.batch.documents)
    context = module.model.prefill([document[:-1] for document in documents])
    torch.testing.assert_close(step.velocity, module.model.velocity(step.x_t, step.t, context, step.grid))
    assert step.target_velocity is not None
    torch.testing.assert_close(image.total, (step.velocity - step.target_velocity).square().mean(-1).sum())
    assert int(image.count) == 3 * 4 * 16
    module.eval()
    assert int(module.objective(batch, step_generator(0, 0, 0))["image"].count) == 4 * 16
    with pytest.raises(ValueError, match="at least one noisy version"):
        PretrainingMethod(draws=0)


def test_means_are_taken_over_the_tokens_of_all_ranks(folder: str, monkeypatch):
    """Two ranks with unequal batches: the mean of their gradients is that of the joint batch."""
    module = stage(folder)
    (batch,) = batches({"caption": 1.0}, 1, size=4)
    parts = [DocumentBatch(batch.documents[s], batch.keys[s], batch.metas[s]) for s in (slice(0, 1), slice(1, 4))]
    terms = [module.objective(part, torch.Generator()) for part in parts]
    counts = [torch.stack([term.count.float() for term in each.values()]) for each in terms]

    class Strategy:
        def reduce(self, counts_: Tensor, reduce_op: str) -> Tensor:
            return (counts[0] + counts[1]) / 2

    class Trainer:
        world_size = 2
        strategy = Strategy()

    monkeypatch.setattr(Pretraining, "trainer", Trainer())
    joint = module.objective(batch, torch.Generator())["text"]
    means = [module._reduced(each)["text"] for each in terms]
    torch.testing.assert_close((means[0] + means[1]) / 2, joint.total / joint.count)


@pytest.mark.parametrize("part", ["both", "understanding", "generation"])
def test_only_the_chosen_part_changes(folder: str, tmp_path: Path, part: str):
    module = stage(folder, train=part)
    before = weights(module)
    kinds = {"both": ALL, "understanding": {"caption": 1.0}, "generation": SINGLE_TURN}[part]
    trainer(tmp_path, max_steps=2).fit(module, scenes(kinds, batch_size=8))
    expected = {"understanding", "generation"} if part == "both" else {part}
    assert changed(before, weights(module)) == expected
    assert int(module.student_step) == 2


def test_a_batch_without_anything_to_learn_is_refused(folder: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"'scenes' has no usable sample.*the stage learns from texts with loss"):
        trainer(tmp_path, max_steps=1).fit(stage(folder, train="understanding"), scenes({"generation": 1.0}))


def test_a_checkpoint_holds_what_trains_and_loading_is_strict(folder: str, tmp_path: Path):
    runner = trainer(tmp_path, max_steps=1)
    runner.fit(stage(folder, train="generation"), scenes({"generation": 1.0}))
    runner.save_checkpoint(tmp_path / "one.ckpt")
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=True)
    names = set(checkpoint["state_dict"])
    assert all(name == "student_step" or name.startswith("model.generation.") for name in names)
    assert not any("pos_embed" in name for name in names)
    del checkpoint["state_dict"]["model.generation.norm.weight"]
    torch.save(checkpoint, tmp_path / "gap.ckpt")
    with pytest.raises(ValueError, match=r"model\.generation\.norm\.weight"):
        trainer(tmp_path, max_steps=2).fit(
            stage(folder, train="generation"), scenes({"generation": 1.0}), ckpt_path=tmp_path / "gap.ckpt"
        )
    with pytest.raises(ValueError, match="other frozen weights"):
        trainer(tmp_path, max_steps=2).fit(stage(folder), scenes(ALL), ckpt_path=tmp_path / "one.ckpt")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(folder: str, tmp_path: Path, accumulate: int):
    options = {"precision": "bf16-mixed"}
    straight = stage(folder, accumulate=accumulate)
    trainer(tmp_path, max_steps=5, **options).fit(straight, scenes(ALL))
    first = trainer(tmp_path, max_steps=2, **options)
    first.fit(stage(folder, accumulate=accumulate), scenes(ALL))
    first.save_checkpoint(tmp_path / "two.ckpt")
    torch.manual_seed(99)  # no draw may come from the global state
    resumed = stage(folder, accumulate=accumulate)
    trainer(tmp_path, max_steps=5, **options).fit(resumed, scenes(ALL), ckpt_path=tmp_path / "two.ckpt")
    assert int(resumed.student_step) == 5
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_accumulated_batches_get_different_noise(folder: str, tmp_path: Path, monkeypatch):
    seen = []

    def step(self: Pretraining, batch: DocumentBatch, generator: torch.Generator) -> dict[str, Term]:
        seen.append(generator.initial_seed())
        return {"text": Term(self.model.understanding.norm.weight.sum(), torch.ones(()))}

    monkeypatch.setattr(Pretraining, "objective", step)
    trainer(tmp_path, max_steps=1).fit(stage(folder, accumulate=2), scenes(ALL))
    assert len(seen) == len(set(seen)) == 2


def test_validation_has_the_same_noise_each_time(folder: str, tmp_path: Path):
    module = stage(folder)
    runner = trainer(tmp_path, limit_val_batches=1.0)
    one = runner.validate(module, scenes(ALL), verbose=False)
    other = runner.validate(module, scenes(ALL), verbose=False)
    assert one == other
    assert set(one[0]) == {"val/loss/text", "val/loss/image", "step"}


def test_answers_can_be_reweighted_by_length(folder: str):
    (batch,) = batches({"dialogue": 1.0, "caption": 1.0}, 1, size=8)
    plain, reweighted = (
        stage(folder, reweight_answers=flag).objective(batch, torch.Generator())["text"] for flag in (False, True)
    )
    assert float(plain.count) > float(reweighted.count)
    assert float(plain.total / plain.count) != pytest.approx(float(reweighted.total / reweighted.count), rel=1e-4)


def test_weights_can_be_bfloat16(folder: str):
    module = stage(folder, compute=Compute(dtype="bfloat16", checkpointing=True))
    (batch,) = batches(ALL, 1)
    terms = module.objective(batch, step_generator(0, 0, 0))
    sum(term.total for term in terms.values()).backward()
    assert module.model.dtype == torch.bfloat16
    assert module.model.checkpointing


@pytest.mark.slow
def test_compiled_layers_give_the_same_gradients(folder: str):
    (batch,) = batches(SINGLE_TURN, 1)
    gradients = []
    for compiled in (False, True):
        module = stage(folder, train="generation", compute=Compute(compile=compiled))
        module.objective(batch, step_generator(0, 0, 0))["image"].total.backward()
        gradients.append({n: p.grad for n, p in module.model.generation.named_parameters()})
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_compiled_layers_sample_batches_of_all_sizes_without_compiling_for_each(folder: str):
    torch.compiler.reset()
    plain, compiled = (stage(folder, compute=Compute(compile=compiled)).model for compiled in (False, True))
    side = 4 * plain.config.latent_stride
    counts = []
    for size in (2, 3, 5, 7):
        (batch,) = batches({"generation": 1.0}, 1, size=size)
        documents = [document[:-1] for document in batch.documents]
        grid = plain.latent_grid([(side, side)] * size)
        x_t, t = torch.randn(size, 16, plain.config.latent_token_dim), torch.full((size,), 0.5)
        with torch.no_grad():
            expected, got = (m.velocity(x_t, t, m.prefill(documents), grid) for m in (plain, compiled))
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        counts.append(sum(torch._dynamo.utils.counters["frames"].values()))
    assert counts[-1] == counts[1], counts


def test_a_document_draws_last_if_its_only_target_ends_it():
    from hyperbagel.modules.pretraining import _draws_last

    clean, target = (LatentSegment(torch.zeros(4, 8, 8), loss=loss) for loss in (False, True))
    assert _draws_last([clean, target])
    assert not _draws_last([target, clean])
    assert not _draws_last([target, target])
    assert not _draws_last([clean])


@pytest.mark.parametrize("start", ["fresh", "understanding"])
def test_a_generation_side_without_weights_can_be_trained(folder: str, tmp_path: Path, start: str):
    empty = Bagel.from_pretrained(folder)
    for parameter in empty.generation.parameters():
        nn.init.zeros_(parameter)
    empty.save_pretrained(tmp_path / "empty")
    module = stage(str(tmp_path / "empty"), train="generation", start=start)
    model = module.model
    for own, other in zip(model.generation.layers, model.understanding.layers, strict=True):
        assert own.input.q_proj.weight.any() and own.input.q_proj.weight is not other.input.q_proj.weight
        assert torch.equal(own.input.q_proj.weight, other.input.q_proj.weight) == (start == "understanding")
    assert not model.generation.llm2vae.weight.any()
    assert torch.equal(model.generation.latent_pos_embed.pos_embed, empty.generation.latent_pos_embed.pos_embed)
    before = model.generation.layers[0].input.q_proj.weight.clone()
    trainer(tmp_path, max_steps=2).fit(module, scenes(SINGLE_TURN))
    assert model.generation.llm2vae.weight.any()
    assert not torch.equal(model.generation.layers[0].input.q_proj.weight, before)


def test_alignment_trains_its_projector_and_the_layers_below(folder: str):
    module = stage(folder, train="generation")
    module.add_loss(RepresentationAlignment(layer=1, weight=0.5, width=16))
    (batch,) = batches(SINGLE_TURN, 1)
    terms = module.objective(batch, step_generator(0, 0, 0))
    assert 0 < float(terms["alignment"].total / terms["alignment"].count) < 2
    terms["alignment"].total.backward()
    first, second = ([p.grad for p in layer.parameters()] for layer in module.model.generation.layers)
    assert any(grad is not None and bool(grad.any()) for grad in first)
    assert not any(grad is not None and bool(grad.any()) for grad in second)
    assert all(p.grad is None for p in module.model.understanding.parameters())
    ((optimizer,), _) = module.configure_optimizers()
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in module.terms[0].parameters()} <= trained
    with pytest.raises(ValueError, match="already has a loss term 'alignment'"):
        module.add_loss(RepresentationAlignment(layer=1))


def test_pictures_are_compared_patch_by_patch(folder: str):
    """Features of a picture at its places, for any grid; of half the picture's size here."""
    model = stage(folder).model
    (batch,) = batches({"generation": 1.0}, 1, size=1)
    pixels = batch.documents[0][-1].pixels
    grid = model.latent_grid([tuple(pixels.shape[1:])])
    side, patch = grid.sizes[0][0], model.config.vit.patch_size
    resized = torch.nn.functional.interpolate(pixels[None], (side * patch,) * 2, mode="bilinear", antialias=True)
    places = [row * model.config.vit.patches_per_side + column for row in range(side) for column in range(side)]
    expected = model.understanding.vision(patchify(resized, patch), torch.tensor([places]))
    torch.testing.assert_close(picture_features(model, batch, grid), expected)


def test_added_losses_need_training_of_generation_and_a_layer_that_exists(folder: str):
    with pytest.raises(ValueError, match="train: generation"):
        stage(folder).add_loss(RepresentationAlignment(layer=1))
    with pytest.raises(ValueError, match="choose 1 to 2"):
        stage(folder, train="generation").add_loss(RepresentationAlignment(layer=3))
