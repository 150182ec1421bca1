"""The project keeps its own promises: configs parse, imports go downwards, and what the README shows exists."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.y*ml"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHIPPED = (
    "src",
    "configs",
    "docs",
    "examples",
    "benchmarks",
    "scripts",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "Makefile",
)
TEXT_SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".json", ".html", ".js", ".sh", ""}


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


def shipped_texts() -> list[Path]:
    """All files of text that users get."""
    return [
        file
        for name in SHIPPED
        for file in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))
        if file.is_file() and file.suffix in TEXT_SUFFIXES
    ]


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
    assert {"setup", "demo", "test", "test-all", "test-oldest", "smoke", "check", "pretrain"} <= offered
    assert shell_commands("make") <= offered


COMMAND = """\
#!/bin/sh
echo "$*" >> log
[ "$1" = fit ] && [ "$(grep -c ^fit log)" -eq 2 ] && exit 143
exit 0
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["demo", "pretrain", "distill"])
def test_a_training_that_was_told_to_end_stops_what_comes_behind_it(target: str, tmp_path: Path) -> None:
    """And the same target goes on, with the same commands. A stand-in for the command ends the second training."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / ".installed").touch()
    (tmp_path / "runs" / "demo" / "questions").mkdir(parents=True)
    command = tmp_path / "venv" / "bin" / "hyperbagel"
    command.write_text(COMMAND)
    command.chmod(0o755)
    command.with_name("python").symlink_to(command)
    make = ["make", "-C", str(tmp_path), "-f", str(ROOT / "Makefile"), "VENV=venv", target]
    # A `make` that these tests run under hands its settings on, as variables of any name.
    environment = {"PATH": os.environ["PATH"]}
    assert subprocess.run(make, capture_output=True, env=environment).returncode != 0
    stopped = (tmp_path / "log").read_text().splitlines()
    assert stopped[-1].startswith("fit") and stopped[-1].endswith("--ckpt_path last")
    assert subprocess.run(make, capture_output=True, env=environment).returncode == 0
    again = (tmp_path / "log").read_text().splitlines()[len(stopped) :]
    assert again[: len(stopped)] == stopped and len(again) > len(stopped)


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
    files = shipped_texts()
    found = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in files
        if (match := private.search(file.read_text(encoding="utf-8")))
    ]
    assert files and not found


def test_every_requirement_has_a_lower_bound() -> None:
    script = ROOT / "scripts" / "lowest_versions.py"
    pins = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch==2.9", "gradio==6.0", "jsonargparse==4.52"} <= set(pins)
    assert all(re.fullmatch(r"[\w-]+==\d[\d.]*", pin) for pin in pins)
    spec = importlib.util.spec_from_file_location("lowest_versions", script)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    for wrong in ("torch", "torch<3", "torch>=2.9,<3"):
        with pytest.raises(ValueError, match=f"'{wrong}' in pyproject.toml: give one lower bound"):
            module.lowest_versions({"name": "own", "dependencies": [wrong], "optional-dependencies": {}})


def test_pip_installs_what_users_are_told_to() -> None:
    """The package is in no index: hints name packages that are, or extras of the clone that one stands in."""
    with (ROOT / "pyproject.toml").open("rb") as stream:
        extras = tomllib.load(stream)["project"]["optional-dependencies"]
    requirements = [requirement for group in extras.values() for requirement in group]
    known = {re.split(r"[>\[]", requirement)[0] for requirement in requirements} | {f".[{extra}]" for extra in extras}
    known.add("hpsv3")  # in no extra: it asks for releases that nothing else here admits
    told = {
        (file.name, package)
        for file in shipped_texts()
        for package in re.findall(r"pip install (?:--no-deps )?'?([\w.][\w.\[\]-]*)", file.read_text(encoding="utf-8"))
    }
    assert {package for _, package in told} >= {"peft", "gradio", "pyarrow", "gguf", ".[app]"}
    assert not {(name, package) for name, package in told if package not in known - {"hyperbagel"}}


def test_no_protocol_with_data_is_checked_at_runtime() -> None:
    """isinstance reads them without `__getattr__`: it misses the submodules of a network, since Python 3.12."""
    checked = [
        (file.name, node.name)
        for file in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
        and any("runtime_checkable" in ast.unparse(decorator) for decorator in node.decorator_list)
        and any(
            isinstance(member, ast.AnnAssign | ast.Assign)
            or (
                isinstance(member, ast.FunctionDef) and any("property" in ast.unparse(d) for d in member.decorator_list)
            )
            for member in node.body
        )
    ]
    assert not checked
