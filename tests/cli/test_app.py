"""The page in a real browser, without a screen."""

from __future__ import annotations

import io
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hyperbagel.cli.app import build_page, launch_settings, load_studio
from hyperbagel.cli.options import App

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def address(studio_folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = App(model=str(studio_folder), steps=2, port=port, max_upload_mb=1)
    page = build_page(load_studio(options))
    page.launch(**launch_settings(options), prevent_thread_lock=True, quiet=True)
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Any]:
    """The opened page; whatever it asks of other machines is refused and remembered."""
    opened = browser.new_page()
    opened.foreign = []

    def answer(route: Any) -> None:
        if route.request.url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            opened.foreign.append(route.request.url)
            route.abort()

    opened.route("**/*", answer)
    opened.set_default_timeout(60_000)
    opened.goto(address)
    opened.locator("#generate").wait_for()
    yield opened
    opened.close()


def shown(tab: Any, name: str) -> str:
    """Address of the picture in a component, when there is one."""
    picture = tab.locator(f"#{name} img").first
    picture.wait_for()
    return str(picture.get_attribute("src"))


def cost(tab: Any, name: str, text: str) -> None:
    """Wait until a cost line holds a text."""
    tab.wait_for_function(
        "([id, text]) => document.querySelector(`#${id} textarea`)?.value.includes(text)",
        arg=[name, text],
    )


def test_generate_then_edit_then_ask(tab: Any, tmp_path: Path) -> None:
    tab.get_by_label("teacher").check()
    tab.locator("#prompt textarea").fill("a photo of a red circle")
    cost(tab, "generate-cost", "1 NFE: 1 NFE")  # drawn while it was typed
    tab.locator("#generate").click()
    cost(tab, "generate-cost", "teacher: 4 NFE")
    assert shown(tab, "generated").startswith("http")
    screenshot = Image.open(io.BytesIO(tab.screenshot(path=tmp_path / "generate.png")))
    assert len(screenshot.convert("RGB").getcolors(2**24) or []) > 50  # not an empty page

    tab.get_by_role("tab", name="Edit").click()
    tab.locator("#take").click()
    before = shown(tab, "edit-source")
    tab.locator("#instruction textarea").fill("make it blue")
    tab.locator("#edit").click()
    cost(tab, "edit-cost", "teacher: 6 NFE")
    assert shown(tab, "edited") != before

    tab.get_by_role("tab", name="Ask").click()
    tab.locator("#question textarea").fill("what is it?")
    tab.locator("#ask").click()
    cost(tab, "ask-cost", "passes")
    assert not tab.foreign


def test_uploads_that_are_too_large_or_no_pictures_are_refused(tab: Any, address: str, tmp_path: Path) -> None:
    def upload(size: int) -> int:
        file = {"name": "picture.png", "mimeType": "image/png", "buffer": bytes(size)}
        return int(tab.request.post(f"{address}/gradio_api/upload", multipart={"files": file}).status)

    assert (upload(2**19), upload(2**20 + 1)) == (200, 413)
    fake = tmp_path / "fake.png"
    fake.write_bytes(b"MZ this is a program")
    tab.get_by_role("tab", name="Edit").click()
    tab.locator("#edit-source input[type=file]").set_input_files(fake)
    tab.locator("#edit-source img").wait_for(state="attached")
    tab.locator("#instruction textarea").fill("make it blue")
    tab.locator("#edit").click()
    tab.get_by_text("Error").first.wait_for()
    assert tab.locator("#edited img").count() == 0
