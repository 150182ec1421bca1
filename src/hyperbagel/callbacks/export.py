"""A trained model as a checkpoint folder in the official layout."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from hyperbagel.bagel.checkpoint import save_bagel
from hyperbagel.bagel.model import Bagel
from hyperbagel.bagel.tokenizer import Tokenizer
from hyperbagel.files import whole_folder
from hyperbagel.training.averages import averaged_weights
from hyperbagel.training.networks import merged


class ExportModel(Callback):
    """Writes the whole model when training ends, with averaged weights where an EMA callback keeps them.

    The folder appears only when it is complete; one of an earlier run is replaced then.

    Args:
        folder: to write.
        dtype: type of the stored weights.

    Examples:
        >>> ExportModel("runs/mine/model", dtype="bfloat16").dtype
        'bfloat16'
    """

    def __init__(self, folder: str, dtype: Literal["float32", "bfloat16"] = "float32") -> None:
        self.folder, self.dtype = Path(folder), dtype

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a stage that has no whole model to write, before hours of training."""
        if not isinstance(getattr(pl_module, "model", None), Bagel) or not hasattr(pl_module, "folder"):
            raise ValueError(
                f"ExportModel writes stages that train a model folder, {type(pl_module).__name__} does not; "
                "distillation stages write a branch of their own"
            )
        if self.folder.exists() and not (self.folder / "llm_config.json").is_file() and any(self.folder.iterdir()):
            raise FileExistsError(f"{self.folder}: holds other files than a model; export to another folder")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the folder."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        with averaged_weights(trainer, pl_module):
            write_model(pl_module.model, str(pl_module.folder), self.folder, getattr(torch, self.dtype))  # type: ignore[arg-type]


def write_model(model: Bagel, source: str, folder: Path, dtype: torch.dtype) -> None:
    """Write `model`, adapters merged, with the tokenizer of the folder `source`, completely or not at all."""
    # The generation weights are copied once, by `merged`.
    whole = copy.deepcopy(model, {id(model.generation): merged(model.generation)})
    with whole_folder(folder) as partial:
        save_bagel(whole.to(dtype), partial)
        Tokenizer.from_pretrained(source).save_pretrained(partial)
