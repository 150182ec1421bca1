"""`hyperbagel app`: a page to draw, edit and ask with, on this machine only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hyperbagel.bagel.shipped import BRANCHES
from hyperbagel.cli.options import App
from hyperbagel.pipeline.loading import check_files, load_model, model_folder

if TYPE_CHECKING:
    from hyperbagel.cli.studio import Studio

HOST = "127.0.0.1"
_LONGEST_TEXT = 2000
_DRAFTED, _OWN = "drafted and accepted", "the model's own"
_Result = TypeVar("_Result")


def app(options: App) -> None:
    """All of it on an interactive page.

    Returns when it is interrupted.
    """
    page = build_page(load_studio(options))
    page.launch(**launch_settings(options))


def load_studio(options: App) -> Studio:
    """The model with those branches and the draft head that there are. Raises errors that name the file."""
    from hyperbagel.cli.studio import Studio, load_network
    from hyperbagel.draft.checkpoint import load_draft

    usual = model_folder(options.model) / BRANCHES
    files = {6: _file(options.nfe6, usual / "nfe6.safetensors"), 1: _file(options.nfe1, usual / "nfe1.safetensors")}
    draft = _file(options.draft, usual / "draft.safetensors")
    check_files(*files.values(), draft=draft)
    bagel, tokenizer = load_model(options.model, options.device)
    networks = [load_network(file, bagel, nfe) for nfe, file in files.items() if file is not None]
    return Studio(bagel, tokenizer, networks, None if draft is None else load_draft(draft, bagel), options.steps)


def _file(given: str | None, usual: Path) -> Path | None:
    if given is not None:
        return Path(given)
    return usual if usual.is_file() else None


def launch_settings(options: App) -> dict[str, Any]:
    """How the page is served: to this machine only, with small uploads, and without asking the network for anything."""
    return {
        "server_name": HOST,
        "server_port": options.port,
        "share": False,
        "max_file_size": options.max_upload_mb * 2**20,
        "ssr_mode": False,
        "footer_links": [],
    }


def build_page(studio: Studio) -> Any:
    """The page as gradio blocks, not yet served. Raises ImportError when gradio is absent."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        import gradio as gr
    except ImportError as error:
        raise ImportError("the page needs gradio: pip install gradio") from error

    with gr.Blocks(title="hyperbagel", analytics_enabled=False) as page:
        gr.Markdown("# hyperbagel")
        with gr.Row():
            names = list(studio.networks)
            network = gr.Radio(names, value=names[-1], label="Network", elem_id="network", scale=3)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
        with gr.Tab("Generate"):
            drawn = _generate_tab(gr, studio, network, seed)
        with gr.Tab("Edit"):
            _edit_tab(gr, studio, (network, seed), drawn)
        with gr.Tab("Ask"):
            _ask_tab(gr, studio)
    return page.queue(default_concurrency_limit=1, max_size=32)


def _generate_tab(gr: Any, studio: Studio, network: Any, seed: Any) -> Any:
    """Prompt to picture; returns the component that holds the picture."""
    live = studio.live
    hint = "the picture follows as you type" if live else "press Generate"
    prompt = gr.Textbox(label="Prompt", info=hint, max_length=_LONGEST_TEXT, elem_id="prompt")
    button = gr.Button("Generate", variant="primary", elem_id="generate")
    picture = _output(gr, "generated")
    cost = gr.Textbox(label="Cost", interactive=False, elem_id="generate-cost")

    def generate(text: str, name: str, number: float) -> tuple[Any, str]:
        drawing = _told(gr, lambda: studio.generate(text, name, int(number)))
        return drawing.picture, drawing.caption

    for event in (button.click, prompt.submit):
        event(generate, [prompt, network, seed], [picture, cost])
    if live is not None:

        def follow(text: str, number: float) -> tuple[Any, str]:
            return generate(text, live, number) if text.strip() else (None, "")

        # Not `input`, which misses what is deleted or pasted. Of what is typed while a picture is drawn, only the last
        # state is drawn next.
        prompt.change(follow, [prompt, seed], [picture, cost], trigger_mode="always_last", show_progress="hidden")
    return picture


def _edit_tab(gr: Any, studio: Studio, inputs: tuple[Any, Any], drawn: Any) -> None:
    """Picture and instruction to picture."""
    with gr.Row():
        source = _upload(gr, "edit-source")
        picture = _output(gr, "edited")
    take = gr.Button("Take the generated picture", elem_id="take")
    instruction = gr.Textbox(label="Instruction", max_length=_LONGEST_TEXT, elem_id="instruction")
    button = gr.Button("Edit", variant="primary", elem_id="edit")
    cost = gr.Textbox(label="Cost", interactive=False, elem_id="edit-cost")
    take.click(lambda path: path, drawn, source)

    def edit(path: str | None, text: str, name: str, number: float) -> tuple[Any, str]:
        drawing = _told(gr, lambda: studio.edit(path, text, name, int(number)))
        return drawing.picture, drawing.caption

    for event in (button.click, instruction.submit):
        event(edit, [source, instruction, *inputs], [picture, cost])


def _ask_tab(gr: Any, studio: Studio) -> None:
    """Question, about a picture or none, to an answer that appears as it is written."""
    source = _upload(gr, "ask-source")
    question = gr.Textbox(label="Question", max_length=_LONGEST_TEXT, elem_id="question")
    button = gr.Button("Ask", variant="primary", elem_id="ask")
    answer = gr.HighlightedText(
        label="Answer",
        color_map={_DRAFTED: "green", _OWN: "gray"},
        show_legend=True,
        show_inline_category=False,
        combine_adjacent=True,
        elem_id="answer",
    )
    cost = gr.Textbox(label="Cost", interactive=False, elem_id="ask-cost")

    def ask(path: str | None, text: str) -> Iterator[tuple[list[tuple[str, str]], str]]:
        replies = studio.ask(path, text)
        while (reply := _told(gr, lambda: next(replies, None))) is not None:
            yield [(piece.text, _DRAFTED if piece.drafted else _OWN) for piece in reply.pieces], reply.caption

    for event in (button.click, question.submit):
        event(ask, [source, question], [answer, cost])


def _upload(gr: Any, name: str) -> Any:
    """A picture from the user, as the file itself: only this project's reader decodes it."""
    return gr.Image(
        label="Picture", sources=["upload", "clipboard"], type="filepath", image_mode=None, height=300, elem_id=name
    )


def _output(gr: Any, name: str) -> Any:
    """A picture for the user, without the button that would upload it."""
    return gr.Image(
        label="Picture",
        type="filepath",
        image_mode=None,
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],
        height=300,
        elem_id=name,
    )


def _told(gr: Any, act: Callable[[], _Result]) -> _Result:
    """What `act` returns; what the user can mend is shown on the page."""
    try:
        return act()
    except (ValueError, OSError) as error:
        raise gr.Error(str(error), print_exception=False) from error
