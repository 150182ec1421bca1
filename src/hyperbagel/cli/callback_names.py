"""Names under which a configuration may give the usual callbacks, and the classes they stand for."""

from __future__ import annotations

from typing import Final

_OURS = "hyperbagel.callbacks"

FIRST: Final = {
    "added_loss": f"{_OURS}.AddLoss",
    "ema": f"{_OURS}.EMA",
    "image_grid": f"{_OURS}.ImageGrid",
    "geneval": f"{_OURS}.GenEval",
    "gedit": f"{_OURS}.GEdit",
    "held_out": f"{_OURS}.HeldOut",
    "understanding": f"{_OURS}.Understanding",
    "speculation": f"{_OURS}.Speculation",
}
"""Name -> class path of those that come before a configuration's list, in their order."""

LAST: Final = {
    "checkpoint": "lightning.pytorch.callbacks.ModelCheckpoint",
    "export": f"{_OURS}.ExportModel",
    "provenance": f"{_OURS}.Provenance",
    "report": f"{_OURS}.Report",
}
"""Name -> class path of those that come behind it."""
