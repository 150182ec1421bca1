"""Every command that README and the documentation show does what it says, in a fresh clone and installed as a wheel."""

from __future__ import annotations

import json
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
DOCUMENTS = {
    str(path.relative_to(ROOT)): path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")))
}

NOT_RUN = {
    r"make .*": "needs the network, hours or a person; that the targets exist is tested elsewhere",
    r"pip install .*": "needs the network",
    r"\.venv/bin/pre-commit install": "changes the repository it is run in",
    r"hyperbagel fit --config bagel7b/.*": "needs the weights of 7B; with a small model it is tested elsewhere",
    r"hyperbagel (generate|edit|chat) .*--model /data/.*": "needs the weights of 7B, as above",
    r"hyperbagel bench .*": "takes minutes on a GPU; with a small model it is tested elsewhere",
    r"python benchmarks/gpu\.py": "takes a quarter of an hour on a GPU; with a small model it is tested elsewhere",
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
                yield re.sub(r" *\\\n *", " ", command)
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
    own = {"7b.yaml", "clip.yaml", "FILE"}
    assert len(names) >= 50
    for name in names - own:
        if "$" not in name and not name.endswith("/"):
            find_config(name)


COLORS = ("red", "green", "blue", "navy", "teal", "gold", "plum", "pink", "lime", "cyan", "tan", "gray")


def prepare(folder: Path) -> None:
    """What the documents take for granted: pictures of the user's own."""
    (folder / "PICTURES").mkdir(exist_ok=True)
    for color in COLORS:
        Image.new("RGB", (80, 64), color).save(folder / "PICTURES" / f"{color}.png")
        (folder / "PICTURES" / f"{color}.txt").write_text(f"all {color}")


QUICK = re.compile(r"hyperbagel (configs|generate .*--branch scenes|chat|data folder|data inspect)")


def test_quick_commands_work_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    for name in ("circle.png", "blue.png", "picture.png"):
        Image.new("RGB", (64, 64), "blue").save(name)
    ran = {command for _, command in COMMANDS if is_run(command) and QUICK.match(command)}
    for command in sorted(ran):
        main(shlex.split(command)[1:])
    assert len(ran) >= 6


@pytest.mark.parametrize("name", ["README.md", "docs/use.md"])
def test_python_of_the_documents_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.M | re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, name, "exec"), {})


class Shell:
    """Runs commands with the package of a folder: those of `hyperbagel` by a server that has imported it already.

    Args:
        site: folder that imports find the package in.
        work: folder for the program `hyperbagel` and for outputs.
    """

    def __init__(self, site: Path, work: Path) -> None:
        server = [sys.executable, "-P", str(ROOT / "tests" / "shrunk.py")]
        program = work / "bin" / "hyperbagel"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\nexec {shlex.join(server)} "$@"\n')
        program.chmod(0o755)
        self.environment = os.environ | {"PYTHONPATH": str(site), "PATH": f"{program.parent}:{os.environ['PATH']}"}
        self.output = work / "output"
        self.server = subprocess.Popen(
            [*server, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment
        )

    def run(self, command: str, folder: Path) -> None:
        """Run a command in a folder. Raises AssertionError with what it said when it fails."""
        command = command.removeprefix(".venv/bin/")
        if command.startswith("hyperbagel ") and "$" not in command:
            assert self.server.stdin is not None and self.server.stdout is not None
            request = [str(folder), str(self.output), shlex.split(command)[1:]]
            print(json.dumps(request), file=self.server.stdin, flush=True)
            status = int(self.server.stdout.readline())
        else:
            with self.output.open("wb") as output:
                called = ["bash", "-ec", command]
                status = subprocess.run(
                    called, cwd=folder, env=self.environment, stdout=output, stderr=subprocess.STDOUT
                ).returncode
        assert status == 0, f"{command}\n{self.output.read_text(errors='replace')[-4000:]}"

    def close(self) -> None:
        """End the server."""
        self.server.communicate()


@pytest.fixture(scope="module", params=["clone", "wheel"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Shell]]:
    """How the package is there, and a shell that has it."""
    folder = tmp_path_factory.mktemp(request.param)
    site = folder / "site"
    if request.param == "wheel":
        unpack_wheel(site)
    elif (ROOT / ".git").exists():
        subprocess.run(["git", "checkout-index", "--all", f"--prefix={site}/"], cwd=ROOT, check=True)
        site = site / "src"
    else:
        pytest.skip("not a git repository")
    shell = Shell(site, folder)
    yield request.param, shell
    shell.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({name for name, command in COMMANDS if is_run(command)}))
def test_a_document_can_be_followed(name: str, installed: tuple[str, Shell], tmp_path: Path) -> None:
    """All commands of a document one after the other, in an empty folder or in the clone; settings are shrunk."""
    kind, shell = installed
    folder = tmp_path
    if kind == "clone":
        folder = Path(shell.environment["PYTHONPATH"]).parent
        shutil.rmtree(folder / "runs", ignore_errors=True)
    prepare(folder)
    for command in shell_commands(DOCUMENTS[name]):
        if is_run(command):
            shell.run(command, folder)
