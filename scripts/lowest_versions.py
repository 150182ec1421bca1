"""Print the lowest versions that pyproject.toml admits, one `name==version` a line, as pip's --constraint reads them.

`make test-oldest` runs the tests with them. A requirement without a lower bound ends the script with an error.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any


def lowest_versions(project: dict[str, Any]) -> list[str]:
    """One pin for each requirement of the project table, extras included, other than the project itself."""
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    pins = set()
    for requirement in (requirement for group in groups for requirement in group):
        found = re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?(?:>=([\w.]+))?", requirement)
        if found is None or (found[2] is None and found[1] != project["name"]):
            raise ValueError(f"{requirement!r} in pyproject.toml: give one lower bound, as in name>=1.2")
        if found[2] is not None:
            pins.add(f"{found[1]}=={found[2]}")
    return sorted(pins)


if __name__ == "__main__":
    try:
        text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
        print("\n".join(lowest_versions(tomllib.loads(text)["project"])))
    except ValueError as error:
        sys.exit(str(error))
