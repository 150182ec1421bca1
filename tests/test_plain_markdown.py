"""The documentation reads on a plain Markdown viewer as it does on the built site."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
ONLY_BUILT = {
    r"--8<--": "an included file",
    r"\]\[[\w.` ]*\]": "a cross-reference by name; link to reference/PAGE.md#NAME",
    r"^(?:!!!|\?\?\?\+?|===) ": "an admonition or a tab; write a paragraph",
    r"\{[:#][^}\n]*\}$": "an attribute list",
    r"^\[TOC\]": "a table of contents",
}
"""What only the built site shows as it is meant, and what it is."""


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.M | re.S)


@pytest.mark.parametrize("name", TEXTS)
def test_a_page_has_nothing_that_only_the_site_understands(name: str) -> None:
    for pattern, what in ONLY_BUILT.items():
        found = re.search(pattern, prose(TEXTS[name]), re.M)
        assert not found, f"{name}: {what}: {found and found[0]!r}"
    reference = name.startswith("docs/reference/")
    assert reference or not re.search(r"^:::", TEXTS[name], re.M), f"{name}: `:::` is for docs/reference"


def named(path: str) -> Any:
    """The object or module at a dotted path of the package."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            found = getattr(found, attribute)
        return found
    raise LookupError(path)


def reference_links() -> set[tuple[str, str]]:
    """Page and name of all links into the reference."""
    return {found for text in TEXTS.values() for found in re.findall(r"reference/(\w+)\.md#([\w.]+)\)", text)}


@pytest.mark.parametrize(("page", "path"), sorted(reference_links()))
def test_a_link_into_the_reference_leads_to_what_stands_there(page: str, path: str) -> None:
    """The page documents the package of that name, and the name is where its object was defined."""
    packages = re.findall(r"^::: ([\w.]+)", TEXTS[f"docs/reference/{page}.md"], re.M)
    assert any(path.startswith(f"{package}.") for package in packages)
    found = named(path)
    if hasattr(found, "__qualname__"):
        assert f"{found.__module__}.{found.__qualname__}" == path


def test_code_shown_from_files_is_that_of_the_files() -> None:
    """A comment before a block names the file that it is from."""
    shown = [
        (name, *found)
        for name, text in TEXTS.items()
        for found in re.findall(r"^<!-- ([\w/.]+) -->\n```\w+\n(.*?)^```", text, re.M | re.S)
    ]
    assert len(shown) >= 18
    for name, file, block in shown:
        assert block in (ROOT / file).read_text(encoding="utf-8"), f"{name} shows another {file} than there is"


@pytest.mark.parametrize("name", [name for name in TEXTS if re.match(r"docs/stages/(?!index)", name)])
def test_a_stage_page_says_what_when_run_knobs_and_what_to_expect(name: str) -> None:
    found = re.findall(r"^(\*\*What\.\*\*|\*\*When\.\*\*|## Run|## Knobs|## Expect)", TEXTS[name], re.M)
    assert found == ["**What.**", "**When.**", "## Run", "## Knobs", "## Expect"]


def test_all_pages_are_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {name.removeprefix("docs/") for name in TEXTS if name.startswith("docs/")}
    assert pages == set(re.findall(r": ([\w/-]+\.md)$", navigation, re.M))


def test_the_seven_shapes_of_a_document_are_explained() -> None:
    """And the glossary says each of the words that stand in the drawings."""
    page = TEXTS["docs/architecture.md"]
    shapes = re.findall(r"^   \w+ +([A-Z]\w+)  ", page, re.M)
    assert len(shapes) == 7 and all(f"[`{shape}`](reference/" in page for shape in shapes)
    glossary = page.partition("## Glossary")[2]
    for word in ("Branch", "Context", "Episode", "Step", "Term", "Student", "Critic", "Velocity", "NFE", "Part"):
        assert re.search(rf"^\| .*{word}", glossary, re.M | re.I), word


def test_the_layers_of_the_house_are_those_that_imports_are_checked_by() -> None:
    with (ROOT / "pyproject.toml").open("rb") as stream:
        checked = tomllib.load(stream)["tool"]["importlinter"]["contracts"][0]["layers"]
    drawn = TEXTS["docs/architecture.md"].partition("```text\n")[2].partition("```")[0]
    names = [re.split(r"  +", line)[0] for line in drawn.splitlines()]
    assert [part for name in names for part in name.split(", ")] == [
        part for layer in checked for part in layer.split(" | ")
    ]
