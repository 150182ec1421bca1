"""The interactive page, as gradio blocks over a `Studio`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from html import escape
from importlib import import_module
from typing import Any

from hyperbagel.cli.page_columns import Column, Columns, compared, first, speed
from hyperbagel.cli.page_examples import PROMPTS, edits, questions
from hyperbagel.cli.studio import Studio, read_picture

_LONGEST_TEXT = 2000
_SMALL = 256
"""Sides in pixels up to which pictures are enlarged as they are, without smoothing."""
_DRAFTED, _OWN = "drafted and accepted", "the model's own"
_INTRODUCTION = """# hyperbagel
The same words and the same noise, drawn by the teacher and by the branches that were distilled from it. NFE: how often
a network was evaluated for one picture."""

STYLE = """
.gradio-container { --font: system-ui, sans-serif; --font-mono: ui-monospace, monospace; }
.pictures { gap: .8rem; }
.picture .image-frame, .picture button:has(.image-frame), .picture .slider-wrap { width: 100%; }
.picture img { width: 100% !important; height: auto !important; max-height: 70vh; object-fit: contain; }
.small img { image-rendering: pixelated; }
.cost { font-variant-numeric: tabular-nums; }
#answer .text { word-break: normal; }
@media (max-width: 640px) { [id^="generated-"] .icon-button-wrapper { display: none; } }
"""
"""Of the page, beside what gradio brings."""

_Updates = Iterator[dict[Any, Any]]
"""New values by component, again and again."""


def gradio() -> Any:
    """The module, told to call nobody. Raises ImportError when it is absent."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        return import_module("gradio")
    except ImportError as error:
        raise ImportError("the page needs gradio: pip install gradio") from error


def build_page(studio: Studio) -> Any:
    """The page as gradio blocks, not yet served. Raises ImportError when gradio is absent."""
    return _Page(gradio(), studio).blocks()


class _Page:
    """Builds the page. gr: gradio."""

    def __init__(self, gr: Any, studio: Studio) -> None:
        self.gr, self.studio = gr, studio
        small = max(max(network.pipeline.size) for network in studio.networks.values()) <= _SMALL
        self.small = ["small"] if small else []

    def blocks(self) -> Any:
        """All of it."""
        gr, names = self.gr, list(self.studio.networks)
        with gr.Blocks(title="hyperbagel", analytics_enabled=False) as page:
            gr.Markdown(_INTRODUCTION)
            with gr.Row() as drawing:
                self.networks = gr.CheckboxGroup(names, value=names, label="Networks", elem_id="networks", scale=3)
                self.seed = gr.Number(0, label="Noise", precision=0, minimum=0, elem_id="seed", min_width=100)
                again = gr.Button("Other noise", elem_id="again", min_width=100)
            self.think = gr.Checkbox(
                label="Think first", info="for models that learnt it", visible=self.studio.thinks, elem_id="think"
            )
            again.click(lambda number: int(number or 0) + 1, self.seed, self.seed)
            with gr.Tab("Generate") as generating:
                drawn = self._generate_tab()
            with gr.Tab("Edit") as editing:
                edited = self._edit_tab(drawn)
            with gr.Tab("Ask") as asking:
                self._ask_tab(drawn, edited)
            for tab, draws in ((generating, True), (editing, True), (asking, False)):
                tab.select(partial(gr.Row, visible=draws), None, drawing, show_progress="hidden")
            boxes = [(name, column.box) for columns in (drawn, edited) for name, column in columns.items()]
            self.networks.change(
                lambda chosen: [gr.Column(visible=name in chosen) for name, _ in boxes],
                self.networks,
                [box for _, box in boxes],
            )
        return page.queue(default_concurrency_limit=1, max_size=32)

    def _generate_tab(self) -> Columns:
        """Prompt to pictures."""
        gr, studio = self.gr, self.studio
        hint = f"the picture of {studio.live} follows as you type" if studio.live else "press Generate"
        prompt = gr.Textbox(label="Prompt", info=hint, max_length=_LONGEST_TEXT, elem_id="prompt")
        button = gr.Button("Generate", variant="primary", elem_id="generate")
        note = gr.Markdown(elem_id="generate-note")
        columns = self._columns("generated", gr.Image, 90)
        inputs, outputs = [prompt, self.networks, self.seed, self.think], [note, *columns.parts]

        def generate(text: str, names: list[str], number: float, think: bool) -> _Updates:
            yield {note: studio.plain.advice(text)}
            yield from columns.filling(studio.generate(text, names, int(number or 0), think))

        run = self._told(generate)
        for event in (button.click, prompt.submit):
            event(run, inputs, outputs)
        self._examples([[prompt] for prompt in PROMPTS], inputs, outputs, run)
        if knows := studio.plain.tokenizer.knows:
            with gr.Accordion("What this model knows", open=False):
                gr.Markdown(knows)
        if studio.live is not None:
            self._follow(prompt, columns, studio.live)
        return columns

    def _follow(self, prompt: Any, columns: Columns, live: str) -> None:
        """Draw while a prompt is typed, and take away what others drew of the last one."""

        def follow(text: str, names: list[str], number: float) -> _Updates:
            if live in names:
                drawn = self.studio.generate(text, [live], int(number or 0)) if text.strip() else ()
                yield columns.showing(dict(drawn))

        # Not `input`, which misses what is deleted or pasted. Of what is typed while a picture is drawn, only the last
        # state is drawn next.
        prompt.change(
            self._told(follow),
            [prompt, self.networks, self.seed],
            columns.parts,
            trigger_mode="always_last",
            show_progress="hidden",
        )

    def _edit_tab(self, drawn: Columns) -> Columns:
        """Picture and instruction to pictures, each over the one that it was made from."""
        gr, studio = self.gr, self.studio
        with gr.Row():
            with gr.Column(scale=1, min_width=200):
                source = self._upload("edit-source")
                take = gr.Button("Take the generated picture", elem_id="take", size="sm")
            with gr.Column(scale=2, min_width=280):
                instruction = gr.Textbox(label="Instruction", max_length=_LONGEST_TEXT, elem_id="instruction")
                button = gr.Button("Edit", variant="primary", elem_id="edit")
                note = gr.Markdown(elem_id="edit-note")
        take.click(first, drawn.pictures, source)
        columns = self._columns("edited", gr.ImageSlider, 260, slider_position=25)
        inputs = [source, instruction, self.networks, self.seed, self.think]
        outputs = [note, *columns.parts]

        def edit(path: str | None, text: str, names: list[str], number: float, think: bool) -> _Updates:
            if path is None:
                raise ValueError("give a picture to edit")
            picture = read_picture(path)
            yield {note: studio.plain.advice(text)}
            yield from columns.filling(studio.edit(picture, text, names, int(number or 0), think), before=picture)

        run = self._told(edit)
        for event in (button.click, instruction.submit):
            event(run, inputs, outputs)
        self._examples([list(example) for example in edits()], inputs, outputs, run)
        return columns

    def _ask_tab(self, drawn: Columns, edited: Columns) -> None:
        """Question, about a picture or none, to an answer that appears as it is written."""
        gr, studio = self.gr, self.studio
        drafts = studio.drafting is not None
        with gr.Row():
            with gr.Column(scale=1, min_width=200):
                source = self._upload("ask-source")
                take_drawn = gr.Button("Take the generated picture", elem_id="take-drawn", size="sm")
                take_edited = gr.Button("Take the edited picture", elem_id="take-edited", size="sm")
            with gr.Column(scale=2, min_width=280):
                question = gr.Textbox(label="Question", max_length=_LONGEST_TEXT, elem_id="question")
                both = gr.Checkbox(drafts, label="Then without the draft head, to compare", visible=drafts)
                button = gr.Button("Ask", variant="primary", elem_id="ask")
                note = gr.Markdown(elem_id="ask-note")
                answer = gr.HighlightedText(
                    label="Answer",
                    color_map={_DRAFTED: "green", _OWN: "gray"},
                    show_legend=drafts,
                    show_inline_category=False,
                    combine_adjacent=True,
                    elem_id="answer",
                )
                cost = gr.Markdown(elem_id="ask-cost", elem_classes=["cost"])
        take_drawn.click(first, drawn.pictures, source)
        take_edited.click(first, edited.pictures, source)

        def ask(path: str | None, text: str, think: bool, compare: bool) -> _Updates:
            picture = None if path is None else read_picture(path)
            yield {note: studio.plain.advice(text), answer: [], cost: ""}
            for reply in studio.ask(picture, text, think):
                marked = [(str(piece), _DRAFTED if piece.drafted else _OWN) for piece in reply.pieces]
                yield {answer: marked, cost: speed(reply)}
            if compare and drafts:  # both again, as showing them takes its time too
                (*_, drafted), (*_, plain) = (studio.ask(picture, text, think, draft) for draft in (True, False))
                yield {cost: compared(drafted, plain)}

        inputs, outputs, run = [source, question, self.think, both], [note, answer, cost], self._told(ask)
        for event in (button.click, question.submit):
            event(run, inputs, outputs)
        self._examples([list(example) for example in questions()], inputs, outputs, run)

    def _columns(self, name: str, kind: Any, width: int, **options: Any) -> Columns:
        """A column for each network.

        kind, options: gradio's component for the pictures; width: of a column in pixels, at least.
        """
        gr, columns = self.gr, Columns()
        with gr.Row(elem_classes=["pictures"]):
            for number, network in enumerate(self.studio.networks):
                with gr.Column(min_width=width) as box:
                    picture = kind(
                        label=network,
                        show_label=False,  # which would lie on the picture
                        type="filepath",
                        image_mode=None,
                        format="png",
                        interactive=False,  # without a button that would upload one
                        buttons=["download", "fullscreen"],
                        min_width=width,
                        elem_id=f"{name}-{number}",
                        elem_classes=["picture", *self.small],
                        **options,
                    )
                    cost = gr.Markdown(elem_id=f"{name}-cost-{number}", elem_classes=["cost"])
                columns[network] = Column(box, picture, cost)
        return columns

    def _upload(self, name: str) -> Any:
        """A picture from the user, as the file itself: only this project's reader decodes it."""
        return self.gr.Image(
            label="Picture",
            sources=["upload", "clipboard"],
            type="filepath",
            image_mode=None,
            height=220,
            elem_id=name,
            elem_classes=self.small,
        )

    def _examples(self, rows: list[list[Any]], inputs: list[Any], outputs: list[Any], run: Callable[..., Any]) -> None:
        """Examples to click; each has the first ones of the inputs."""
        self.gr.Examples(rows, inputs, outputs, run, cache_examples=False, run_on_click=True, label="Try")

    def _told(self, act: Callable[..., _Updates]) -> Callable[..., _Updates]:
        """The same updates; what the user can mend is told on the page."""

        def run(*inputs: Any) -> _Updates:
            try:
                yield from act(*inputs)
            except (ValueError, OSError) as error:
                self.gr.Warning(escape(str(error)))

        return run
