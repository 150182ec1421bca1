"""The package as it is installed, for tests of what users get who have no clone."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def unpack_wheel(folder: Path) -> None:
    """Build the wheel and unpack it in a folder, which is then one for PYTHONPATH; skips where pip finds no builder."""
    built = folder.with_name(f"{folder.name}-wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", built, ROOT]
    result = subprocess.run(command, capture_output=True, text=True)
    if "No matching distribution found for hatchling" in result.stderr:
        pytest.skip("building a wheel needs hatchling, which pip cannot fetch here")
    assert result.returncode == 0, result.stderr
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
