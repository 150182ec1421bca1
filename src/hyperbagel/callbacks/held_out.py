"""The callback `HeldOut`: draws the captions of documents kept for testing, and compares with their pictures."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import make_grid
from tqdm import tqdm

from hyperbagel.bagel.images import ImageTransform, to_uint8
from hyperbagel.callbacks.evaluation import Evaluation, Findings, Row, Run
from hyperbagel.callbacks.fidelity import Fidelity, ImageKey
from hyperbagel.datamodules.documents import ImagePart, InterleavedDocument, TextPart
from hyperbagel.datamodules.pipeline import member_picture
from hyperbagel.datamodules.sources import Samples
from hyperbagel.evaluation.batches import batches_of_equals
from hyperbagel.evaluation.fidelity import frechet_distance
from hyperbagel.evaluation.reports import OWN
from hyperbagel.pipeline.painter import Painter
from hyperbagel.rewards.base import Reward, scored
from hyperbagel.training.stage import evaluated

PICTURES = "held-out pictures"
"""Row of the documents' own pictures, with their rewards: what a model could reach."""


@dataclass(frozen=True)
class HeldOutSettings:
    """What is drawn, and how."""

    limit: int | None = 256
    """Most documents, evenly spread; None: all."""
    images_per_caption: int = 1
    """Pictures of each caption; with several, `diversity` is measured too."""
    batch_size: int = 32
    """Pictures drawn at once."""
    seed: int = 0
    """Seed of all noise, with the name of the document."""
    shown: int = 8
    """Pictures in the logged grids, of the first documents."""

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        if min(self.limit or 1, self.images_per_caption, self.batch_size, self.shown) < 1:
            raise ValueError(f"held-out pictures need sizes of at least 1, got {self}")


@dataclass(frozen=True)
class _Held:
    """A caption and its picture, (3, H, W) uint8 at the size at which the model draws it. key: name of the document."""

    key: str
    caption: str
    picture: Tensor


_SETTINGS = HeldOutSettings()


class HeldOut(Evaluation):
    """Draws the captions of the data module's test documents (`val` in `fit` and `validate`), at their pictures' sizes.

    It logs the Fréchet distance to these pictures, `fidelity/real`, the mean of each reward, `reward/<name>`, `nfe` and
    `time/seconds_per_image`, and grids of the same captions and noise beside the documents' pictures. Noise depends on
    seed, document and picture alone, so that results of stages and samplers can be compared.

    Args:
        rewards: what scores a picture against its caption, by name, such as a CLIP score; the documents' own pictures
            are scored too.
        rows: what to measure, by name: the stage's own sampler (null), or what differs from it in a row, and the
            distilled branch to measure instead of the stage's.
        settings: documents, pictures per caption, batch size, seed.
        fidelity: how distances are measured, where not by BAGEL's own vision tower and to the documents' pictures.
        sources: names of the data sources whose documents are drawn; None for all.
        every_n_updates: student updates between two runs in `fit`; 0 for none.

    Examples:
        >>> from hyperbagel.callbacks.evaluation import Row
        >>> callback = HeldOut(rows={"teacher": None, "6 steps": Row(steps=6)}, every_n_updates=500)
        >>> callback.settings.limit
        256
    """

    def __init__(
        self,
        rewards: dict[str, Reward] | None = None,
        rows: dict[str, Row | None] | None = None,
        settings: HeldOutSettings = _SETTINGS,
        fidelity: Fidelity | None = None,
        sources: list[str] | None = None,
        every_n_updates: int = 0,
    ) -> None:
        super().__init__(every_n_updates)
        self.rewards, self.rows, self.settings = rewards or {}, rows or {OWN: None}, settings
        self.fidelity = fidelity or Fidelity()
        self.sources = sources
        self._held: list[_Held] = []
        self._real: Tensor | None = None

    def requirements(self, stage: L.LightningModule, command: str) -> Iterator[Callable[[], object]]:
        """Of the rows, and the teacher's features."""
        yield from super().requirements(stage, command)
        if command != "fit" or self.every_n_updates:
            yield self.fidelity.check

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read the documents. Raises ValueError where there are not two captions with pictures at least."""
        super().setup(trainer, pl_module, stage)
        self._held, self._real = [], None
        if (stage == "fit" and not self.every_n_updates) or stage == "predict":
            return
        split = "test" if stage == "test" else "val"
        data: Any = getattr(trainer, "datamodule", None)
        opened = data.opened(split) if hasattr(data, "opened") else {}
        wanted = list(opened) if self.sources is None else self.sources
        if not wanted or set(wanted) - set(opened):
            raise ValueError(
                f"HeldOut draws {', '.join(wanted) or 'documents'} of `data.{split}`, which has "
                f"{', '.join(opened) or 'no sources'}; set `data.{split}` or `sources`"
            )
        transform = evaluated(pl_module, by="HeldOut").model.config.vae_transform
        self._held = self._read([opened[name] for name in wanted], transform)
        if len(self._held) < 2:
            raise ValueError(f"HeldOut needs two documents, `data.{split}` has {len(self._held)}; widen its `part`")

    def _read(self, sources: Sequence[Samples], transform: ImageTransform) -> list[_Held]:
        """The documents, evenly spread over all sources. Raises ValueError for other documents than captions."""
        places = [(source, index) for source in sources for index in range(len(source))]
        number = min(self.settings.limit or len(places), len(places))
        held = []
        for source, index in (places[slot * len(places) // number] for slot in range(number)):
            try:
                sample = source.read(index)
                caption, file = _captioned(sample.document())
                picture = to_uint8(transform(member_picture(file, sample.members[file])))
            except ValueError as error:
                raise ValueError(f"{source.place(index)}: {error}") from error
            held.append(_Held(sample.key, caption, picture))
        return held

    def evaluate(self, run: Run) -> Findings:
        """Every row, and the rewards of the documents' own pictures."""
        for reward in self.rewards.values():
            reward.to(run.stage.model.device)
            reward.attach(run.stage.model, run.tokenizer)
        findings = Findings(captions=[held.caption for held in self._held[: self.settings.shown]])
        for name, row in self.rows.items():
            painter = run.painter(run.stage.sampler, row)
            drawn = self._drawn(run, painter, f"held-out captions, {name}")
            features = self._features(run, drawn)
            metrics = self.fidelity.compare(name, features, run) | self._distance(run, features)
            findings.rows[name] = metrics | self._rewards(run, drawn) | run.gather_cost(painter.cost)
            shown = dict(run.gather([(key, p) for key, p in drawn.items() if self._is_shown(key)]))
            findings.samples[name] = [shown[key] for key in sorted(shown)]
            findings.pictures[f"heldout/{name}"] = _grid(findings.samples[name])
        if self.rewards:
            findings.rows[PICTURES] = self._rewards(run, self._own(run))
        findings.samples[PICTURES] = [held.picture for held in self._held[: self.settings.shown]]
        findings.pictures[f"heldout/{PICTURES}"] = _grid(findings.samples[PICTURES])
        return findings

    def _is_shown(self, key: ImageKey) -> bool:
        return key[0] < self.settings.shown and key[1] == 0

    def _own(self, run: Run) -> dict[ImageKey, Tensor]:
        """This process's share of the documents' pictures."""
        return {(index, 0): self._held[index].picture for index in run.share(range(len(self._held)))}

    def _distance(self, run: Run, features: Mapping[ImageKey, Tensor]) -> dict[str, float]:
        """The distance to the documents' pictures, where `fidelity` names no others."""
        if self.fidelity.real is not None:
            return {}
        if self._real is None:
            self._real = _stacked(self._features(run, self._own(run)))
        return {"fidelity/real": frechet_distance(self._real, _stacked(features))}

    def _drawn(self, run: Run, painter: Painter, title: str) -> dict[ImageKey, Tensor]:
        """This process's pictures, in batches of equal lengths and sizes."""
        number = self.settings.images_per_caption
        keys = [(index, image) for index in range(len(self._held)) for image in range(number)]
        documents = painter.prompts([held.caption for held in self._held])
        sizes = [(held.picture.shape[1], held.picture.shape[2]) for held in self._held]
        lengths = [len(run.tokenizer.encode(held.caption)) for held in self._held]
        alike = [(lengths[index], *sizes[index]) for index, _ in keys]
        drawn: dict[ImageKey, Tensor] = {}
        hidden = True if run.rank else None
        batches = list(batches_of_equals(alike, self.settings.batch_size))
        for batch in tqdm(run.share(batches), title, leave=False, disable=hidden):
            own = [keys[index] for index in batch]
            pictures = painter.draw(
                [documents[i] for i, _ in own], [sizes[i] for i, _ in own], [self._seed(key) for key in own]
            )
            drawn |= zip(own, pictures, strict=True)
        return drawn

    def _seed(self, key: ImageKey) -> int:
        name = f"{self._held[key[0]].key} {key[1]}"
        return (self.settings.seed + zlib.crc32(name.encode(errors="surrogatepass"))) % 2**32

    def _features(self, run: Run, drawn: Mapping[ImageKey, Tensor]) -> dict[ImageKey, Tensor]:
        """Those of all processes' pictures."""
        own = self.fidelity.features(list(drawn.values()), run.stage.model) if drawn else ()
        return dict(run.gather(list(zip(drawn, own, strict=True))))

    def _rewards(self, run: Run, pictures: Mapping[ImageKey, Tensor]) -> dict[str, float]:
        """The mean of each reward over all processes' pictures."""
        found = {}
        for name, reward in self.rewards.items():
            scores: list[float] = []
            items = list(pictures.items())
            for start in range(0, len(items), self.settings.batch_size):
                batch = items[start : start + self.settings.batch_size]
                images = [picture.to(run.stage.model.device).float().div(127.5).sub(1) for _, picture in batch]
                captions = [self._held[index].caption for (index, _), _ in batch]
                scores += scored(reward, images, captions).tolist()
            gathered = run.gather(scores)
            found[f"reward/{name}"] = sum(gathered) / len(gathered)
        return found


def _captioned(document: InterleavedDocument) -> tuple[str, str]:
    """The caption and the picture's file of a document of one text and one picture to be generated."""
    parts = document.parts
    if len(parts) == 2 and isinstance(parts[0], TextPart) and isinstance(parts[1], ImagePart) and parts[1].loss:
        return parts[0].text, parts[1].file
    raise ValueError("HeldOut draws a caption's picture, and this document is of another kind; choose by `sources`")


def _stacked(features: Mapping[ImageKey, Tensor]) -> Tensor:
    """(n, d) in the order of documents."""
    return torch.stack([features[key] for key in sorted(features)])


def _grid(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures (3, H, W) uint8 beside each other, on white where they are smaller than the largest."""
    height, width = (max(picture.shape[side] for picture in pictures) for side in (1, 2))
    padded = [F.pad(p, (0, width - p.shape[2], 0, height - p.shape[1]), value=255) for p in pictures]
    return make_grid(torch.stack(padded), nrow=8)
