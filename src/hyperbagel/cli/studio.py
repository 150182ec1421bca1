"""What the interactive page does, without the page: one model with its branches and draft head, ready for requests."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hyperbagel.bagel.branch import GenerationBranch
from hyperbagel.bagel.branch_checkpoint import load_branch
from hyperbagel.bagel.images import load_image, of_uint8
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.decoding.speculative import Speculator
from hyperbagel.decoding.statistics import SpeculationStatistics
from hyperbagel.draft.head import DraftHead
from hyperbagel.flow.guidance import PAPER_EDITING, PAPER_GENERATION, Guidance
from hyperbagel.flow.sampler import Reader, Sampler
from hyperbagel.pipeline.answers import TextStream, question_document
from hyperbagel.pipeline.painter import Cost, Painter, warn_of_misfits

TEACHER, MERGED = "teacher", "merged"
"""Names of a model's own branch among the networks: of an original, and of one that a distilled one was merged into."""


@dataclass(frozen=True)
class Network:
    """A branch that denoises (None: the model's own), in how many steps, with which shift; reader: of sources."""

    name: str
    branch: GenerationBranch | None
    steps: int
    shift: float
    reader: Reader = "original"

    def painter(self, model: Bagel, tokenizer: Tokenizer, guidance: Guidance) -> Painter:
        """Draws with this network and counts what that costs."""
        guides = None if self.branch is None and model.merged is not None else guidance  # merged weights have it inside
        return Painter(model, tokenizer, Sampler(self.steps, self.shift, guides, self.reader), self.branch, Cost())


def load_network(path: str | Path, model: Bagel, nfe: int) -> Network:
    """A distilled branch for `nfe` evaluations. Warns when it was not made for the scales that `Studio` draws with.

    Raises CheckpointError as `load_branch`, ValueError for another NFE.
    """
    branch, info = load_branch(path, model)
    if info.nfe not in (0, nfe):
        raise ValueError(f"{path}: this branch was made for {info.nfe} evaluations, give one for {nfe}")
    warn_of_misfits(str(path), info, Sampler(nfe, info.shift, PAPER_EDITING))
    return Network(f"{nfe} NFE", branch, nfe, info.shift, info.reader)


@dataclass(frozen=True)
class Drawing:
    """A finished picture. nfe: network evaluations; milliseconds: from text to pixels."""

    picture: Image.Image
    network: str
    nfe: int
    milliseconds: float

    @property
    def caption(self) -> str:
        """What it cost, for people."""
        return f"{self.network}: {self.nfe} NFE, {self.milliseconds:.0f} ms, {self.picture.width}x{self.picture.height}"


@dataclass(frozen=True)
class Piece:
    """A bit of an answer. drafted: the draft head proposed it and the model accepted it."""

    text: str
    drafted: bool


@dataclass(frozen=True)
class Reply:
    """An answer so far. passes: verification passes of the model; milliseconds: since the question was asked."""

    pieces: tuple[Piece, ...]
    tokens: int
    passes: int
    milliseconds: float

    @property
    def text(self) -> str:
        """All pieces together."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def caption(self) -> str:
        """What it cost, for people."""
        return (
            f"{self.tokens} tokens in {self.passes} passes ({self.tokens / max(self.passes, 1):.2f} tokens a pass), "
            f"{self.milliseconds:.0f} ms"
        )


class Studio:
    """Generates, edits and answers; one request at a time, from any thread.

    Args:
        model: what reads, and with its own branch draws.
        tokenizer: its tokenizer.
        networks: what else can draw, besides the teacher; fewest evaluations last.
        draft: speeds answers up without changing them.
        steps: of the teacher.
    """

    def __init__(
        self,
        model: Bagel,
        tokenizer: Tokenizer,
        networks: Sequence[Network] = (),
        draft: DraftHead | None = None,
        steps: int = 50,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        if model.merged is None:
            own = Network(TEACHER, None, steps, model.config.timestep_shift)
        else:
            own = Network(MERGED, None, model.merged.nfe or steps, model.merged.shift)
        self.networks = {network.name: network for network in (own, *networks)}
        self.speculator = Speculator(model, draft)
        self._lock = threading.Lock()

    @property
    def live(self) -> str | None:
        """The network that draws while a prompt is typed: one of a single evaluation, where there is one."""
        return next((name for name, network in self.networks.items() if network.branch and network.steps == 1), None)

    def generate(self, prompt: str, network: str, seed: int = 0) -> Drawing:
        """A picture of a prompt. Raises ValueError for an empty prompt or an unknown network."""
        text = _present(prompt, "say what the picture shall show")
        painter = self._network(network).painter(self.model, self.tokenizer, PAPER_GENERATION)
        with self._lock:
            (picture,) = painter.generate([text], [int(seed)])
        return _drawing(picture, network, painter.cost)

    def edit(self, source: str | Path | None, instruction: str, network: str, seed: int = 0) -> Drawing:
        """A picture file changed by an instruction. Raises ValueError when one is missing or the file is no picture."""
        text = _present(instruction, "say what shall change")
        if source is None:
            raise ValueError("give a picture to edit")
        painter = self._network(network).painter(self.model, self.tokenizer, PAPER_EDITING)
        picture = read_picture(source)
        with self._lock:
            (edited,) = painter.edit([picture], [text], [int(seed)])
        return _drawing(edited, network, painter.cost)

    def ask(self, source: str | Path | None, question: str, max_tokens: int = 256) -> Iterator[Reply]:
        """The answer as it grows, about a picture file or about none. Raises ValueError as `edit`."""
        text = _present(question, "ask something")
        picture = None if source is None else read_picture(source)
        updates: queue.SimpleQueue[Reply | BaseException | None] = queue.SimpleQueue()
        worker = threading.Thread(target=self._answer, args=(picture, text, max_tokens, updates), daemon=True)
        worker.start()
        while (update := updates.get()) is not None:
            if isinstance(update, BaseException):
                raise update
            yield update

    def _answer(
        self,
        picture: Image.Image | None,
        question: str,
        max_tokens: int,
        updates: queue.SimpleQueue[Reply | BaseException | None],
    ) -> None:
        """Decode, and put a reply into `updates` for each token, None at the end."""
        try:
            with self._lock, torch.inference_mode():
                started = time.perf_counter()
                statistics = self.speculator.statistics = SpeculationStatistics()
                stream = TextStream(self.tokenizer, self.model.config.tokens.eos)
                origin = Origin(statistics)
                pieces: list[Piece] = []

                def show(new: Tensor) -> None:
                    drafted = origin.drafted()
                    if part := stream.add(int(new[0])):
                        pieces.append(Piece(part, drafted))
                    spent = 1000 * (time.perf_counter() - started)
                    updates.put(Reply(tuple(pieces), stream.count, statistics.passes, spent))

                context = self.speculator.prefill([question_document(self.model, self.tokenizer, question, picture)])
                self.speculator.decode(context, DecodingSettings(max_tokens), on_tokens=show)
            updates.put(None)
        except BaseException as error:
            updates.put(error)

    def _network(self, name: str) -> Network:
        if name not in self.networks:
            raise ValueError(f"no network {name!r}; there are {', '.join(self.networks)}")
        return self.networks[name]


class Origin:
    """Whether each token came from the draft: in a verification pass, the accepted ones come before the model's own."""

    def __init__(self, statistics: SpeculationStatistics) -> None:
        self._statistics = statistics
        self._passes = self._accepted_before = self._accepted = self._index = 0

    def drafted(self) -> bool:
        """Of the next token."""
        if self._statistics.passes != self._passes:
            accepted = sum(self._statistics.accepted)
            self._accepted, self._accepted_before = accepted - self._accepted_before, accepted
            self._passes, self._index = self._statistics.passes, 0
        self._index += 1
        return self._index <= self._accepted


def read_picture(source: str | Path) -> Image.Image:
    """A picture file of a usual kind. Raises ImageError, without the file's place on this machine."""
    return load_image(source, name=Path(source).name)


def _drawing(picture: Tensor, network: str, cost: Cost) -> Drawing:
    image = of_uint8(picture)
    return Drawing(image, network, cost.nfe, 1000 * cost.seconds)


def _present(text: str, remedy: str) -> str:
    if not text.strip():
        raise ValueError(remedy)
    return text.strip()
