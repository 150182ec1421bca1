"""Callbacks: moving averages, export, added losses, and the evaluations that every stage is judged by."""

from hyperbagel.callbacks.add_loss import AddLoss
from hyperbagel.callbacks.ema import EMA
from hyperbagel.callbacks.export import ExportModel
from hyperbagel.callbacks.fidelity import Fidelity
from hyperbagel.callbacks.gedit import GEdit
from hyperbagel.callbacks.geneval import GenEval
from hyperbagel.callbacks.held_out import HeldOut
from hyperbagel.callbacks.image_grid import ImageGrid
from hyperbagel.callbacks.provenance import Provenance
from hyperbagel.callbacks.report import Report
from hyperbagel.callbacks.reward_guard import RewardGuard
from hyperbagel.callbacks.safeguard import Safeguard
from hyperbagel.callbacks.speculation import Speculation
from hyperbagel.callbacks.understanding import Understanding

__all__ = [
    "EMA",
    "AddLoss",
    "ExportModel",
    "Fidelity",
    "GEdit",
    "GenEval",
    "HeldOut",
    "ImageGrid",
    "Provenance",
    "Report",
    "RewardGuard",
    "Safeguard",
    "Speculation",
    "Understanding",
]
