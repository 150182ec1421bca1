"""The project keeps its own promises: configs parse, imports go downwards, and what the README shows exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.y*ml"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHIPPED = ("src", "configs", "docs", "examples", "benchmarks", "README.md", "CHANGELOG.md", "Makefile")
TEXT_SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".json", ".html", ".js", ""}


def shell_commands(program: str) -> set[str]:
    """First arguments with which the documents' shell blocks call `program`."""
    blocks = [
        block
        for document in DOCUMENTS
        for block in re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", document.read_text(), re.M | re.S)
    ]
    return {
        found
        for block in blocks
        for found in re.findall(rf"^[$ ]*(?:\.venv/bin/)?{program} +([a-z][\w-]*)", block, re.M)
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_is_a_mapping(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_imports_go_downwards() -> None:
    # In a process of its own: the linter's logging set-up would silence the loggers that later tests listen to.
    script = Path(sys.executable).with_name("lint-imports")
    linted = subprocess.run(
        [script, "--config", ROOT / "pyproject.toml", "--no-cache"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert linted.returncode == 0, linted.stdout


def test_subcommands_of_the_documents_exist() -> None:
    script = Path(sys.executable).with_name("hyperbagel")
    shown = subprocess.run([script, "--help"], capture_output=True, text=True, check=True, timeout=120).stdout
    offered = set(re.findall(r"[a-z][\w-]*", shown))
    assert shell_commands("hyperbagel") <= offered


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_targets_of_the_documents_exist() -> None:
    shown = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True).stdout
    offered = set(re.findall(r"^ *make ([\w-]+)", shown, re.M))
    assert {"setup", "demo", "test", "test-all", "check", "pretrain"} <= offered
    assert shell_commands("make") <= offered


def test_links_of_the_documents_lead_somewhere() -> None:
    dead = [
        (document.name, target)
        for document in DOCUMENTS
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", document.read_text())
        if not (document.parent / target).exists()
    ]
    assert not dead


def test_ci_entry_is_executable() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_nothing_refers_to_one_machine() -> None:
    private = re.compile(r"(?<![\w./])(?:\.\./)*shared/|/work/|/root/|/home/\w|\bissues? #?\d")
    files = [
        file
        for name in SHIPPED
        for file in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))
        if file.is_file() and file.suffix in TEXT_SUFFIXES
    ]
    found = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in files
        if (match := private.search(file.read_text(encoding="utf-8")))
    ]
    assert files and not found
