"""Chooses which of two wordings becomes the text of a document; both are kept in its `meta`."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

from hyperbagel.datamodules.convert.errors import BadRowError
from hyperbagel.datamodules.skipped import Skip

EITHER = "either"
"""Setting that takes one wording by chance, the same one every time, or the one that is there."""


def choose_wording(wordings: Mapping[str, object], choice: str, seed: str) -> tuple[str, object]:
    """Name and text of the chosen wording.

    wordings: texts by name, None or empty where there is none; choice: a name or `EITHER`; seed: whatever tells the
    row from others. Raises BadRowError when the chosen wording is not there.
    """
    present = [name for name, text in wordings.items() if text is not None and text != ""]
    if choice == EITHER:
        if not present:
            raise BadRowError(Skip.EMPTY_TEXT, f"neither {' nor '.join(f'`{name}`' for name in wordings)}")
        choice = present[blake2b(seed.encode(errors="replace"), digest_size=1).digest()[0] % len(present)]
    elif choice not in present:
        others = f", only `{present[0]}` is there" if present else ""
        raise BadRowError(Skip.EMPTY_TEXT, f"`{choice}` is empty{others}")
    return choice, wordings[choice]
