"""Takes the screenshots in the documentation, of a finished run: python scripts/screenshots.py RUN [FOLDER]

They are of the interactive page and of the run's report. Needs gradio, playwright and a Chromium.
"""

from __future__ import annotations

import io
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from hyperbagel.cli import main as hyperbagel
from hyperbagel.cli.app import launch_settings, load_studio
from hyperbagel.cli.options import App
from hyperbagel.cli.page import build_page
from hyperbagel.files import write_picture

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DESK, PHONE = {"width": 1100, "height": 880}, {"width": 390, "height": 844}
GAP = 12
"""Pixels between two screenshots in one picture."""


def shot(page: Any) -> Image.Image:
    """What a page shows."""
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def keep(picture: Image.Image, file: Path) -> None:
    """Write a screenshot in few colours, near to its own, so that its file is small."""
    write_picture(file, picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE))
    print(file, f"{file.stat().st_size / 1000:.0f} kB")


def app(browser: Any, folder: Path) -> None:
    """The interactive page: generated pictures on a desk, an edit and an answer on a phone."""
    options = App(port=free_port())
    page = build_page(load_studio(options))
    page.launch(**launch_settings(options), prevent_thread_lock=True, quiet=True)
    tab = browser.new_page(viewport=DESK)
    tab.goto(f"http://127.0.0.1:{options.port}")
    for prompt in ("a photo of a red circle", "a photo of a purple heart above a yellow ring"):  # the first warms up
        tab.get_by_text(prompt).first.click()
        tab.wait_for_function("!document.getElementById('generated-cost-0').textContent.includes('NFE')")
        shown(tab, "generated-cost-1", "times as fast")
    tab.evaluate("window.scrollTo(0, 0)")
    keep(shot(tab), folder / "app.png")
    tab.close()
    phone = browser.new_page(viewport=PHONE)
    phone.goto(f"http://127.0.0.1:{options.port}")
    phone.get_by_role("tab", name="Edit").click()
    phone.get_by_text("Make the star yellow.").first.click()
    shown(phone, "edited-cost-1", "times as fast")
    phone.evaluate("document.getElementById('instruction').scrollIntoView()")
    edit = shot(phone)
    phone.get_by_role("tab", name="Ask").click()
    phone.get_by_text("Describe the picture in detail.").first.click()
    shown(phone, "ask-cost", "times as fast")
    phone.evaluate("document.getElementById('question').scrollIntoView()")
    both = Image.new("RGB", (2 * edit.width + GAP, edit.height), "gray")
    both.paste(edit, (0, 0))
    both.paste(shot(phone), (edit.width + GAP, 0))
    keep(both, folder / "app-phone.png")
    phone.close()
    page.close()


def report(browser: Any, run: Path, folder: Path) -> None:
    """The report's page, on a desk."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "report.html"
        hyperbagel(["report", str(run), "--html", str(file)])
        tab = browser.new_page(viewport=DESK)
        tab.goto(file.as_uri())
        keep(shot(tab), folder / "report.png")
        tab.close()


def shown(tab: Any, name: str, text: str) -> None:
    """Wait until a part of the interactive page says something."""
    tab.wait_for_function(
        "([id, text]) => document.getElementById(id)?.textContent.includes(text)", arg=[name, text], timeout=60_000
    )
    tab.wait_for_load_state("networkidle")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    finished = Path(sys.argv[1])
    images = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parents[1] / "docs" / "images"
    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        app(chromium, images)
        report(chromium, finished, images)
        chromium.close()
