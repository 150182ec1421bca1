"""What the interactive page does, without the page: one model with its branches and draft head, ready for requests."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from hyperbagel.bagel.branch_checkpoint import branch_file, read_info
from hyperbagel.bagel.images import load_image
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.decoding.autoregressive import DecodingSettings
from hyperbagel.flow.guidance import PAPER_EDITING
from hyperbagel.pipeline.answering import Answering
from hyperbagel.pipeline.device import Runtime
from hyperbagel.pipeline.pipeline import STEPS, Pipeline, settle_together
from hyperbagel.pipeline.results import Answer, Picture, Piece
from hyperbagel.pipeline.thinking import BEFORE_PICTURE

TEACHER: Final = "teacher"
MERGED: Final = "merged"
"""Names of a model's own branch among the networks: of an original, and of one that a distilled one was merged into."""


@dataclass(frozen=True)
class Network:
    """What draws, in how many steps."""

    pipeline: Pipeline
    steps: int


@dataclass(frozen=True)
class Reply:
    """An answer so far. passes: of the model; seconds: of the whole answer, 0 while it is being written."""

    pieces: tuple[Piece, ...]
    tokens: int
    passes: int
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """All pieces together."""
        return "".join(self.pieces)


class Studio:
    """Draws, edits and answers by several pipelines over one model; one request at a time, from any thread.

    networks: what draws, by name: the model's own branch, then the distilled ones.

    Args:
        model: what reads, and with its own branch draws.
        tokenizer: its tokenizer.
        branches: files of distilled branches by their evaluations.
        draft: file of a draft head, or of phrases, which speeds answers up without changing them.
        steps: of the teacher.
    """

    def __init__(
        self,
        model: Bagel,
        tokenizer: Tokenizer,
        branches: Mapping[int, str | Path] | None = None,
        draft: str | Path | None = None,
        steps: int = STEPS,
    ) -> None:
        own = Pipeline(model, tokenizer)
        merged = model.merged
        name, own_steps = (TEACHER, steps) if merged is None else (MERGED, merged.nfe or steps)
        self.networks = {name: Network(own, own_steps)}
        for nfe, file in (branches or {}).items():
            network = Network(Pipeline(model, tokenizer, file), nfe)
            network.pipeline.painter(PAPER_EDITING, nfe)  # warns of what it was not made for
            self.networks[f"{nfe} step{'s' * (nfe > 1)}"] = network
        self.plain: Answering = own
        self.drafting = None if draft is None else Answering(model, tokenizer, draft)
        self._lock = threading.Lock()

    def settle(self, runtime: Runtime) -> Studio:
        """As `Pipeline.settle`, for all networks together."""
        drafting = [] if self.drafting is None else [self.drafting]
        settle_together(runtime, [*(network.pipeline for network in self.networks.values()), *drafting])
        return self

    @property
    def thinks(self) -> bool:
        """Whether the model can read what asks for a thought; small ones do not know the words."""
        return not self.plain.advice(BEFORE_PICTURE)

    @property
    def live(self) -> str | None:
        """The network that draws while a prompt is typed: a distilled one of a single step, where there is one."""
        _, *distilled = self.networks
        return next((name for name in distilled if self.networks[name].steps == 1), None)

    def generate(
        self, prompt: str, networks: Sequence[str], seed: int = 0, think: bool = False
    ) -> Iterator[tuple[str, Picture]]:
        """Pictures of a prompt by networks, all from the same noise, each with the network's name; the quickest first.

        Raises ValueError for an empty prompt and for unknown networks.
        """
        for name, network in self._chosen(networks):
            with self._lock:
                picture = network.pipeline.generate(prompt.strip(), steps=network.steps, seed=seed, think=think)
            yield name, picture

    def edit(
        self, source: Image.Image, instruction: str, networks: Sequence[str], seed: int = 0, think: bool = False
    ) -> Iterator[tuple[str, Picture]]:
        """A picture changed as an instruction says, by networks as in `generate`."""
        for name, network in self._chosen(networks):
            with self._lock:
                picture = network.pipeline.edit(
                    source, instruction.strip(), steps=network.steps, seed=seed, think=think
                )
            yield name, picture

    def ask(
        self,
        source: Image.Image | None,
        question: str,
        think: bool = False,
        draft: bool = True,
        max_tokens: int | None = None,
    ) -> Iterator[Reply]:
        """The answer as it grows, about a picture or none; the last reply tells the time.

        draft: whether the draft head, if there is one, takes part. Raises ValueError for an empty question.
        """
        answering = self.drafting if self.drafting is not None and draft else self.plain
        settings = None if max_tokens is None else DecodingSettings(max_tokens)

        def answer(stream: Callable[[Piece], None]) -> Answer:
            with self._lock:
                return answering.ask(question.strip(), source, settings=settings, think=think, stream=stream)

        pieces: list[Piece] = []
        for new in streamed(answer):
            if isinstance(new, Piece):
                pieces.append(new)
                yield Reply(tuple(pieces), new.tokens, new.passes)
            else:
                yield Reply(tuple(pieces), new.tokens, new.passes, new.seconds)

    def _chosen(self, names: Sequence[str]) -> list[tuple[str, Network]]:
        if not names:
            raise ValueError(f"no network is chosen; there are {', '.join(self.networks)}")
        for name in names:
            if name not in self.networks:
                raise ValueError(f"no network {name!r}; there are {', '.join(self.networks)}")
        chosen = [(name, self.networks[name]) for name in names]
        return sorted(chosen, key=lambda network: network[1].steps)


def require_nfe(branch: str | Path, nfe: int) -> None:
    """Raises ValueError for a branch that was made for another number of evaluations, CheckpointError for none."""
    info = read_info(branch_file(branch))
    if info.nfe not in (0, nfe):
        raise ValueError(f"{branch}: this branch was made for {info.nfe} evaluations, give one for {nfe}")


def read_picture(source: str | Path) -> Image.Image:
    """A picture file of a usual kind. Raises ImageError, without the file's place on this machine."""
    return load_image(source, name=Path(source).name)


def streamed(work: Callable[[Callable[[Piece], None]], Answer]) -> Iterator[Piece | Answer]:
    """What `work`, on a thread of its own, hands to the function that it is given, and at the end what it returns.

    Raises what `work` raises.
    """
    news: queue.SimpleQueue[Piece | Answer | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            news.put(work(news.put))
        except BaseException as error:
            news.put(error)

    threading.Thread(target=run, daemon=True).start()
    while True:
        new = news.get()
        if isinstance(new, BaseException):
            raise new
        yield new
        if isinstance(new, Answer):
            return
