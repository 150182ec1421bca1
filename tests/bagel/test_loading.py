"""Loading: straight to the wanted place, little more in memory than what stays, and without parts that nobody asks."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperbagel.bagel import tensors
from hyperbagel.bagel.absent import NotLoadedError
from hyperbagel.bagel.checkpoint import CheckpointError
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.segments import Document
from hyperbagel.flow.guidance import Guidance
from hyperbagel.flow.sampler import Sampler
from tests.bagel.test_checkpoint import edit_weights
from tests.bagel.tiny import CONFIG, Maker, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model"
    tiny_model().save_pretrained(path)
    return path


class Watched:
    """`safe_open` whose tensors are copies, so that it can be told how many bytes of them there are at once."""

    def __init__(self, opened: Any, most: list[int]) -> None:
        self.opened, self.most = opened, most
        self.alive = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        watch = self

        class File:
            def __enter__(self) -> Any:
                self.file = watch.opened(*arguments, **options).__enter__()
                return self

            def __exit__(self, *error: Any) -> None:
                self.file.__exit__(*error)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

            def get_tensor(self, key: str) -> Tensor:
                value: Tensor = self.file.get_tensor(key).clone()
                watch.alive += value.nbytes
                weakref.finalize(value, watch.forget, value.nbytes)
                watch.most.append(watch.alive)
                return value

        return File()

    def forget(self, size: int) -> None:
        self.alive -= size


@pytest.mark.parametrize(("device", "dtype"), [("meta", torch.float32), ("cpu", torch.bfloat16)])
def test_beside_what_stays_two_tensors_are_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype
) -> None:
    """The meta device stands for one with memory of its own."""
    most: list[int] = []
    monkeypatch.setattr(tensors, "safe_open", Watched(tensors.safe_open, most))
    model = Bagel.from_pretrained(folder, dtype, device)
    sizes = sorted(value.nbytes for value in tiny_model().state_dict().values())
    assert {value.device.type for value in model.state_dict().values()} == {device}
    assert max(most) <= sizes[-1] + sizes[-2] < sum(sizes) / 8


def test_files_are_mapped_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that pages of tensors that have moved leave memory; nothing is left out or read twice."""
    opened: list[Path] = []
    safe_open = tensors.safe_open

    def counted(path: Path, **options: Any) -> Any:
        opened.append(path)
        return safe_open(path, **options)

    monkeypatch.setattr(tensors, "safe_open", counted)
    monkeypatch.setattr(tensors, "_MAPPED", 20_000)
    path = folder / "ema.safetensors"
    read = tensors.read_tensors(path)
    total = sum(value.nbytes for value in read.values())
    assert total / 60_000 < len(opened) < total / 20_000 + 2
    with safe_open(path, framework="pt") as file:
        assert list(read) == list(file.keys())
        assert all(torch.equal(read[key], file.get_tensor(key)) for key in read)


def documents() -> list[Document]:
    make = Maker()
    return [[make.vit(8, 8), make.text(3)], [make.text(5)]]


@torch.no_grad()
def test_text_is_read_and_drawn_from_without_the_models_own_generation(folder: Path) -> None:
    whole, light = Bagel.from_pretrained(folder), Bagel.from_pretrained(folder, without=["generation"])
    assert count(light) == count(whole) - count(whole.generation)
    branch = whole.generation.copy()
    contexts = [model.prefill_guided(documents()) for model in (whole, light)]
    for one, other in zip(contexts[0].full.past, contexts[1].full.past, strict=True):
        assert torch.equal(one, other)
    grid = whole.latent_grid([(16, 8), (8, 16)])
    noise = Maker().noise(2, 2, CONFIG.latent_token_dim)
    sampler = Sampler(2, 3.0, Guidance(interval=(0.0, 1.0)))
    drawn = [
        model.decode_latents(sampler.sample(model, context, grid, noise, branch).latents, grid)
        for model, context in zip((whole, light), contexts, strict=True)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))


def count(module: torch.nn.Module) -> int:
    return sum(value.numel() for value in module.state_dict().values())


@torch.no_grad()
def test_answers_need_the_understanding_stack_alone(folder: Path) -> None:
    whole = Bagel.from_pretrained(folder)
    light = Bagel.from_pretrained(folder, without=["generation", "autoencoder"])
    with torch.device("meta"):
        planned = Bagel.from_pretrained(folder, without=["generation", "autoencoder"])
    assert count(light) == count(planned) == count(whole.understanding)
    for one, other in zip(whole.prefill(documents()).past, light.prefill(documents()).past, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_a_part_that_is_missing_is_named_by_whoever_needs_it(folder: Path, tmp_path: Path) -> None:
    light = Bagel.from_pretrained(folder, without=["generation", "autoencoder"])
    make = Maker()
    context = light.prefill(documents())
    grid = light.latent_grid([(16, 8), (8, 16)])
    noise = make.noise(2, 2, CONFIG.latent_token_dim)
    for act, part in (
        (lambda: light.prefill([[make.latent(2, 2)]]), "generation"),
        (lambda: light.velocity(noise, torch.tensor([1.0, 1.0]), context, grid), "generation"),
        (lambda: light.encode([torch.zeros(3, 16, 16)]), "autoencoder"),
        (lambda: light.decode_latents(noise, grid), "autoencoder"),
        (lambda: light.autoencoder(noise), "autoencoder"),
        (lambda: light.save_pretrained(tmp_path / "half"), "generation and autoencoder"),
    ):
        with pytest.raises(NotLoadedError, match=f"without its {part}"):
            act()
    assert not (tmp_path / "half").exists()
    assert light.to(torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("file", "key"), [("ema.safetensors", "llm2vae.bias"), ("ae.safetensors", "encoder.conv_in.bias")]
)
def test_files_of_parts_that_are_left_out_are_checked_too(folder: Path, tmp_path: Path, file: str, key: str) -> None:
    broken = tmp_path / "broken"
    Bagel.from_pretrained(folder).save_pretrained(broken)
    edit_weights(broken / file, **{key: None})
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        Bagel.from_pretrained(broken, without=["generation", "autoencoder"])


def test_wrong_files_are_found_before_weights_are_read(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    broken = tmp_path / "broken"
    Bagel.from_pretrained(folder).save_pretrained(broken)
    edit_weights(broken / "ema.safetensors", **{"llm2vae.bias": None})
    monkeypatch.setattr("hyperbagel.bagel.checkpoint.read_tensors", None)
    with pytest.raises(CheckpointError, match=r"1 missing keys: llm2vae\.bias"):
        Bagel.from_pretrained(broken)
