"""Parts of a model that were left out when it was loaded."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

Part = Literal["generation", "autoencoder"]
"""What a model may be loaded without: answering needs neither, drawing from text with a branch no generation."""


class NotLoadedError(RuntimeError):
    """Something was asked of a part that the model was loaded without."""


class Absent(nn.Module):
    """Stands for a part that was left out: whatever is asked of it raises NotLoadedError.

    digest: fingerprint of its weights, as they stand in the files.
    """

    def __init__(self, part: Part, digest: str) -> None:
        super().__init__()
        self.part, self.digest = part, digest

    def __getattr__(self, name: str) -> Any:
        """Parameters and buffers, of which there are none, come here too."""
        if name.startswith("__"):  # what Python itself asks for, to copy and to show
            raise AttributeError(name)
        part = self.__dict__.get("part")
        raise NotLoadedError(f"this model was loaded without its {part} (`without`), but its `{name}` is needed")

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Raises NotLoadedError."""
        return self.run  # any name that is not there
