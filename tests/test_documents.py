"""Every command that README and the documentation show does what it says, in a fresh clone and installed as a wheel."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from hyperbagel.cli import main
from hyperbagel.cli.configs import find_config
from tests.wheel import unpack_wheel

ROOT = Path(__file__).parents[1]
DOCUMENTS = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))}

NOT_RUN = {
    r"make .*": "needs the network, hours or a person; that the targets exist is tested elsewhere",
    r"pip install .*": "needs the network",
    r"\.venv/bin/pre-commit install": "changes the repository it is run in",
    r"hyperbagel fit --config bagel7b/.*": "needs the weights of 7B; with a small model it is tested elsewhere",
    r"torchrun .*": "needs two machines",
    r"srun .*": "needs a cluster",
    r"hyperbagel app .*": "serves until it is stopped",
    r"(\.venv/bin/)?tensorboard .*": "serves until it is stopped",
    r"hyperbagel data (llava-onevision|journeydb|seed-data-edit) .*": "needs a copy of the data set",
}
"""Commands that are not run here (patterns of the whole command), and why."""


def shell_commands(document: Path) -> Iterator[str]:
    """The commands of a document's shell blocks in order; a loop is one, comments are left out."""
    for indent, block in re.findall(r"^( *)```(?:sh|bash|console)\n(.*?)^ *```", document.read_text(), re.M | re.S):
        command = ""
        for line in block.splitlines():
            line = re.sub(r"(^|\s)#.*", "", line.removeprefix(indent))
            command += line.rstrip()
            if command.endswith("\\") or len(re.findall(r"\bdo\b", command)) > len(re.findall(r"\bdone\b", command)):
                command += "\n"
            elif command:
                yield command
                command = ""


COMMANDS = [(name, command) for name, path in DOCUMENTS.items() for command in shell_commands(path)]


def is_run(command: str) -> bool:
    return not any(re.fullmatch(pattern, command, re.S) for pattern in NOT_RUN)


def test_what_is_not_run_is_in_the_documents() -> None:
    """So that no reason outlives its command, and what is run is most of it."""
    for pattern in NOT_RUN:
        assert any(re.fullmatch(pattern, command, re.S) for _, command in COMMANDS), pattern
    assert sum(is_run(command) for _, command in COMMANDS) >= 30


def test_configurations_of_the_documents_exist() -> None:
    """Also those in running text and in configurations' own comments."""
    texts = [*DOCUMENTS.values(), *ROOT.glob("configs/**/*.yaml"), *ROOT.glob("examples/*.yaml"), ROOT / "Makefile"]
    names = {name for path in texts for name in re.findall(r"--config ([\w/.-]+)", path.read_text())}
    own = {"7b.yaml", "FILE"}
    assert len(names) >= 50
    for name in names - own:
        if "$" not in name and not name.endswith("/"):
            find_config(name)


def prepare(folder: Path) -> None:
    """What the documents take for granted: pictures of the user's own."""
    (folder / "PICTURES").mkdir(exist_ok=True)
    for color in ("red", "green", "blue"):
        Image.new("RGB", (80, 64), color).save(folder / "PICTURES" / f"{color}.png")
        (folder / "PICTURES" / f"{color}.txt").write_text(f"all {color}")


QUICK = re.compile(r"hyperbagel (configs|generate .*--branch|chat|data folder|data inspect)")


def test_quick_commands_work_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    for name in ("circle.png", "blue.png", "picture.png"):
        Image.new("RGB", (64, 64), "blue").save(name)
    ran = {command for _, command in COMMANDS if is_run(command) and QUICK.match(command)}
    for command in sorted(ran):
        main(shlex.split(command)[1:])
    assert len(ran) >= 6


@pytest.fixture(scope="module", params=["clone", "wheel"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """How the package is there, and the folder that imports find it in."""
    folder = tmp_path_factory.mktemp(request.param) / "site"
    if request.param == "wheel":
        unpack_wheel(folder)
        return request.param, folder
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    subprocess.run(["git", "checkout-index", "--all", f"--prefix={folder}/"], cwd=ROOT, check=True)
    return request.param, folder / "src"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({name for name, command in COMMANDS if is_run(command)}))
def test_a_document_can_be_followed(name: str, installed: tuple[str, Path], tmp_path: Path) -> None:
    """All commands of a document one after the other, in an empty folder or in the clone; settings are shrunk."""
    kind, site = installed
    folder = tmp_path
    if kind == "clone":
        folder = site.parent
        shutil.rmtree(folder / "runs", ignore_errors=True)
    program = tmp_path / ".venv" / "bin" / "hyperbagel"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P {ROOT / "tests" / "shrunk.py"} "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(site), "PATH": f"{program.parent}:{os.environ['PATH']}"}
    prepare(folder)
    for command in shell_commands(DOCUMENTS[name]):
        if is_run(command):
            called = command.replace(".venv/bin/hyperbagel", "hyperbagel")
            done = subprocess.run(["bash", "-ec", called], cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
