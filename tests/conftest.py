"""Options by which further golden files are run through the same tests."""

from pathlib import Path

import pytest

FILE_OPTIONS = {
    "--geneval-cases": "GenEval cases (JSON lines) to check instead of the project's own copy",
    "--geneval-summary": "GenEval summaries (JSON) to check instead of the project's own copy",
    "--gedit-cases": "GEdit cases (JSON) to check instead of the project's own copy",
    "--fixture": "golden backbone file (safetensors) to check instead of the project's own copy",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add one option a kind of golden file; each is None when the project's own copy is meant."""
    group = parser.getgroup("golden files")
    for option, text in FILE_OPTIONS.items():
        group.addoption(option, type=Path, default=None, metavar="FILE", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a golden file that does not exist, before anything runs."""
    for option in FILE_OPTIONS:
        path = config.getoption(option)
        if path is not None and not path.is_file():
            raise pytest.UsageError(f"{option}: no such file: {path}")
