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

from hyperbagel.cli.app import launch_settings, load_studio
from hyperbagel.cli.options import App
from hyperbagel.cli.page import build_page

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
    picture = tab.locator(f"#{name} img").last
    picture.wait_for()
    return str(picture.get_attribute("src"))


def told(tab: Any, name: str, text: str) -> None:
    """Wait until a line, or one of several whose names begin so, holds a text."""
    tab.wait_for_function(
        "([id, text]) => [...document.querySelectorAll(`[id^='${id}']`)].some(one => one.textContent.includes(text))",
        arg=[name, text],
    )


TEACHER, SIX, ONE = 0, 1, 2
"""Columns of the networks."""


def test_generate_then_edit_then_ask(tab: Any, tmp_path: Path) -> None:
    tab.locator("#prompt textarea").fill("a photo of a red circle")
    told(tab, f"generated-cost-{ONE}", "1 NFE")  # drawn while it was typed
    assert not tab.locator(f"#generated-{TEACHER} img").count()
    tab.locator("#generate").click()
    told(tab, f"generated-cost-{TEACHER}", "4 NFE")
    told(tab, f"generated-cost-{SIX}", "6 NFE")
    told(tab, "generated-cost", "times as fast as")  # of whichever was slowest, on models as small as this
    assert shown(tab, f"generated-{TEACHER}").startswith("http")
    screenshot = Image.open(io.BytesIO(tab.screenshot(path=tmp_path / "generate.png")))
    assert len(screenshot.convert("RGB").getcolors(2**24) or []) > 50  # not an empty page

    tab.get_by_role("tab", name="Edit").click()
    tab.locator("#take").click()
    before = shown(tab, "edit-source")
    tab.locator("#instruction textarea").fill("make it blue")
    tab.locator("#edit").click()
    told(tab, f"edited-cost-{TEACHER}", "6 NFE")
    assert tab.locator(f"#edited-{ONE} img").count() == 2  # before and after
    assert shown(tab, f"edited-{ONE}") != before

    tab.get_by_role("tab", name="Ask").click()
    tab.locator("#networks").wait_for(state="hidden")  # has no part in answers
    tab.locator("#take-edited").click()
    assert shown(tab, "ask-source")
    tab.locator("#question textarea").fill("what is it?")
    tab.locator("#ask").click()
    told(tab, "ask-cost", "without the draft head")
    told(tab, "ask-note", "words that the model does not know: what")
    assert not tab.foreign


def test_an_example_is_drawn_when_it_is_clicked_by_the_chosen_networks(tab: Any) -> None:
    tab.get_by_label("teacher").uncheck()
    tab.locator(f"#generated-{TEACHER}").wait_for(state="hidden")
    tab.get_by_text("a photo of three green stars").first.click()
    told(tab, f"generated-cost-{SIX}", "6 NFE")
    told(tab, "generated-cost", "times as fast as")
    drawn = shown(tab, f"generated-{ONE}")
    tab.locator("#again").click()
    tab.locator("#generate").click()
    tab.wait_for_function(
        "([id, old]) => document.querySelector(`#${id} img`)?.src !== old", arg=[f"generated-{ONE}", drawn]
    )
    tab.get_by_role("tab", name="Ask").click()
    tab.get_by_text("Where is the star?").first.click()
    told(tab, "ask-cost", "tokens/s")
    assert shown(tab, "ask-source")


def test_what_is_missing_is_told_without_spoiling_what_is_there(tab: Any) -> None:
    tab.locator("#prompt textarea").fill("a photo of a red circle")
    told(tab, f"generated-cost-{ONE}", "1 NFE")
    tab.get_by_role("tab", name="Edit").click()
    tab.locator("#edit").click()
    tab.get_by_text("give a picture to edit").first.wait_for()
    assert not tab.get_by_text("Error", exact=True).count()
    tab.get_by_role("tab", name="Generate").click()
    assert shown(tab, f"generated-{ONE}")


def test_nothing_is_wider_than_a_phone(browser: Any, address: str) -> None:
    phone = browser.new_page(viewport={"width": 390, "height": 844})
    phone.goto(address)
    for tab in ("Generate", "Edit", "Ask"):
        phone.get_by_role("tab", name=tab).click()
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    phone.close()


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
    assert tab.locator(f"#edited-{ONE} img").count() == 0
