"""`hyperbagel app`: a page to draw, edit and ask with, on this machine only."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbagel.bagel.shipped import BRANCHES
from hyperbagel.cli.options import App
from hyperbagel.pipeline.loading import check_files, load_model, model_folder

if TYPE_CHECKING:
    from hyperbagel.cli.studio import Studio

HOST = "127.0.0.1"


def app(options: App) -> None:
    """All of it on an interactive page.

    Returns when it is interrupted.
    """
    from hyperbagel.cli.page import build_page, gradio

    options.device.resolve()
    network_files(options)
    gradio()  # also before time is spent on the model
    page = build_page(load_studio(options))
    logging.getLogger("hyperbagel.pipeline").setLevel(logging.ERROR)  # of what is typed, the page tells
    page.launch(**launch_settings(options))


def load_studio(options: App) -> Studio:
    """The model with those branches and the draft head that there are. Raises errors that name the file."""
    from hyperbagel.cli.studio import Studio

    branches, draft = network_files(options)
    studio = Studio(*load_model(options.model, options.device), branches, draft, options.steps)
    return studio.settle(options.device)


def network_files(options: App) -> tuple[dict[int, Path], Path | None]:
    """The branches by their evaluations, and the draft head: those given, else those of the model. Raises errors that
    name the file."""
    from hyperbagel.cli.studio import require_nfe

    usual = model_folder(options.model) / BRANCHES
    given = {6: _file(options.nfe6, usual / "nfe6.safetensors"), 1: _file(options.nfe1, usual / "nfe1.safetensors")}
    branches = {nfe: file for nfe, file in given.items() if file is not None}
    draft = _file(options.draft, usual / "draft.safetensors")
    check_files(draft=draft)
    for nfe, file in branches.items():
        require_nfe(file, nfe)
    return branches, draft


def _file(given: str | None, usual: Path) -> Path | None:
    if given is not None:
        return Path(given)
    return usual if usual.is_file() else None


def launch_settings(options: App) -> dict[str, Any]:
    """How the page is served: to this machine only, with small uploads, and without asking the network for anything."""
    from hyperbagel.cli.page import STYLE

    return {
        "server_name": HOST,
        "server_port": options.port,
        "share": False,
        "max_file_size": options.max_upload_mb * 2**20,
        "ssr_mode": False,
        "footer_links": [],
        "theme": "soft",
        "css": STYLE,
    }
