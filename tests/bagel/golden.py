"""Golden backbone files: weights, inputs and the reference's outputs of a tiny BAGEL, see `test_parity.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hyperbagel.bagel.layout import Mode
from hyperbagel.bagel.model import Bagel

DEFAULT = Path(__file__).parents[1] / "fixtures" / "bagel_tiny_a.safetensors"
TOLERANCE = 1e-4
"""|got - expected| <= TOLERANCE * (1 + |expected|) in float32."""

Results = Iterator[tuple[str, Tensor]]


class Golden:
    """One golden file. meta: its JSON metadata; cases: inputs and expected outputs by name."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.meta: dict[str, Any] = json.loads(file.metadata()["meta"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        self.path = path
        self.weights = _under("model/", tensors)
        self.autoencoder = _under("ae/", tensors)
        self.cases = _under("case/", tensors)
        self.expected = self.cases | dict(_expected_of_metadata(self.meta))

    def __getitem__(self, name: str) -> Tensor:
        """An input."""
        return self.cases[name]

    def lacks(self, names: Iterable[str]) -> list[str]:
        """Those of the names that the file does not have."""
        return [name for name in names if name not in self.cases]

    def numbered(self, prefix: str) -> list[Tensor]:
        """`prefix0`, `prefix1`, ... as far as they go."""
        count = 0
        while f"{prefix}{count}" in self.cases:
            count += 1
        return [self.cases[f"{prefix}{i}"] for i in range(count)]

    @property
    def training_cases(self) -> list[str]:
        """Names of the packed training cases."""
        return [name for name in self.meta.get("packing_plan", {}) if name != "about"]

    def save_pretrained(self, folder: Path) -> None:
        """Write the model as an official checkpoint folder."""
        config, tokens = self.meta["config"], self.meta["special_token_ids"]
        own, transforms = config["bagel"], self.meta["image_transforms"]
        limit = {"max_pixels": transforms["max_pixels"]} if "max_pixels" in transforms else {}
        assert own["vit_max_num_patch_per_side"] == config["vit"]["image_size"] // config["vit"]["patch_size"]
        contents = {
            "llm_config.json": config["llm"],
            "vit_config.json": config["vit"] | {"num_hidden_layers": config["vit"]["num_hidden_layers"] + 1},
            "hyperbagel.json": {
                "autoencoder": {k: v for k, v in config["autoencoder"].items() if k != "downsample"},
                "tokens": {
                    "bos": tokens["bos_token_id"],
                    "eos": tokens["eos_token_id"],
                    "start_of_image": tokens["start_of_image"],
                    "end_of_image": tokens["end_of_image"],
                },
                "latent_patch_size": own["latent_patch_size"],
                "max_latent_size": own["max_latent_size"],
                "vae_transform": transforms["vae"] | limit,
                "vit_transform": transforms["vit"] | limit,
            },
        }
        for name, content in contents.items():
            (folder / name).write_text(json.dumps(content))
        save_file(self.weights, folder / "ema.safetensors")
        save_file(self.autoencoder, folder / "ae.safetensors")


@dataclass(frozen=True)
class Subject:
    """A model under test and the golden file that says what it should compute."""

    golden: Golden
    model: Bagel

    @cached_property
    def shift(self) -> float:
        """Timestep shift of training."""
        return float(self.golden.meta["config"]["bagel"].get("timestep_shift", 1.0))


@dataclass(frozen=True)
class Group:
    """A named set of expected tensors. needs: inputs without which it cannot be computed."""

    name: str
    needs: tuple[str, ...]
    compute: Callable[[Subject], Results]


def group(name: str, *needs: str) -> Callable[[Callable[[Subject], Results]], Group]:
    """Make a function that yields (name, tensor) a group."""
    return lambda compute: Group(name, needs, compute)


class Ledger:
    """What came out of the groups, computed once each."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._results: dict[str, dict[str, Tensor]] = {}

    def results(self, group: Group) -> dict[str, Tensor]:
        """Computed tensors that the file has an expectation for."""
        if group.name not in self._results:
            golden = self.subject.golden
            lacking = golden.lacks(group.needs)
            computed = {} if lacking else dict(group.compute(self.subject))
            self._results[group.name] = {k: v.detach() for k, v in computed.items() if k in golden.expected}
        return self._results[group.name]

    def check(self, group: Group) -> None:
        """Compare everything in a group, and name all that differs; skip a group of which the file has nothing."""
        results = self.results(group)
        if not results:
            pytest.skip(f"the file has no {group.name}")
        faults = [fault for name, got in results.items() if (fault := self._fault(name, got))]
        assert not faults, "\n".join([f"{len(faults)} of {len(results)} tensors differ:", *faults])

    def _fault(self, name: str, got: Tensor) -> str:
        expected = self.subject.golden.expected[name]
        if got.shape != expected.shape:
            return f"{name}: shape {tuple(got.shape)} instead of {tuple(expected.shape)}"
        got, expected = got.double(), expected.double()
        # Pictures of eight bits are truncated, so the smallest difference may move a value by one.
        allowed = torch.ones(()) if name.endswith("rgb") else TOLERANCE * (1 + expected.abs())
        difference = (got - expected).abs()
        same = (difference <= allowed) | (got == expected)
        return "" if bool(same.all()) else f"{name}: differs by up to {float(difference.max()):.2e}"

    def largest_difference(self, groups: Iterable[Group]) -> float:
        """Largest |got - expected| / (1 + |expected|) of all floating tensors of some groups."""
        largest = 0.0
        for group in groups:
            for name, got in self.results(group).items():
                expected = self.subject.golden.expected[name]
                if expected.is_floating_point() and expected.isfinite().all():
                    relative = (got - expected).abs() / (1 + expected.abs())
                    largest = max(largest, float(relative.max()))
        return largest


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _expected_of_metadata(meta: dict[str, Any]) -> Results:
    """What the metadata expects, as tensors."""
    for case, norms in meta.get("grad_norms", {}).items():
        if case != "about":
            for name, norm in norms.items():
                # None: never trained.
                yield f"{case}.grad_norms.{name}", torch.tensor(0.0 if norm is None else norm)
    for case, length in meta.get("sequence_length", {}).items():
        yield f"{case}.sequence_length", torch.tensor(length)
    for case, modes in meta.get("attn_modes", {}).items():
        yield f"{case}.attn_modes", torch.tensor([Mode[mode.upper()] for mode in modes])
    for number, example in enumerate(meta.get("resize_examples", [])):
        yield f"resize.{number}", torch.tensor(example["out_wh"])
