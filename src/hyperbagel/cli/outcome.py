"""The last words of `hyperbagel fit`: where the result is, and what to type next."""

from __future__ import annotations

import shlex
from pathlib import Path

import lightning as L

from hyperbagel.callbacks.export import ExportModel
from hyperbagel.callbacks.provenance import Provenance, device_name
from hyperbagel.callbacks.report import run_folder
from hyperbagel.training.distillation import DistillationStage
from hyperbagel.training.stage import student_updates

_PROMPT = "a photo of a red circle"


def outcome(trainer: L.Trainer, stage: L.LightningModule) -> str:
    """What a training wrote, each with a command that uses it, and where its curves are."""
    model, folder, updates = str(getattr(stage, "folder", "")), run_folder(trainer), student_updates(stage)
    lines = [f"{updates} updates done{_cost(trainer, stage)}"]
    for file, what, command in _results(trainer, stage, model):
        if file.exists():
            lines += [f"{what}: {file}", f"  next: {shlex.join(('hyperbagel', *command))}"]
    lines.append(f"files of the run: {folder}")
    if any(folder.glob("events.out.tfevents.*")):
        lines.append(f"  curves: {shlex.join(('tensorboard', '--logdir', str(folder)))}")
    return "\n".join(lines)


def _cost(trainer: L.Trainer, stage: L.LightningModule) -> str:
    """What all of them took, and on what, if that was noted."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Provenance):
            minutes, cpu = callback.cost.seconds / 60, callback.cost.cpu_seconds / 60
            return f" in {minutes:.1f} minutes, {cpu:.1f} of a processor ({device_name(stage.device)})"
    return ""


def _results(trainer: L.Trainer, stage: L.LightningModule, model: str) -> list[tuple[Path, str, tuple[str, ...]]]:
    """Files and folders that a training may have left, what they are, and the arguments of a command with them."""
    found: list[tuple[Path, str, tuple[str, ...]]] = []
    if isinstance(stage, DistillationStage):
        branch = stage.branch_file
        if not branch.exists():  # adapters are a folder
            branch = branch.with_suffix("")
        found.append((branch, "branch", ("generate", _PROMPT, "--model", model, "--branch", str(branch))))
    draft = run_folder(trainer) / "draft.safetensors"
    if hasattr(stage, "export_draft"):
        found.append((draft, "draft head", ("chat", "-", "What is it?", "--model", model, "--draft", str(draft))))
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ExportModel):
            found.append((callback.folder, "model", ("generate", _PROMPT, "--model", str(callback.folder))))
    return found
