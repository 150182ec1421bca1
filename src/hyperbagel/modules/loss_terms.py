"""Loss terms as parts of a training module: the stage's own and those that users add."""

from __future__ import annotations

from torch import nn

from hyperbagel.losses.term import LossTerm, Update
from hyperbagel.modules.partial_checkpoint import PartialCheckpoint


class TakesLossTerms(PartialCheckpoint):
    """A module with loss terms, whose parameters train, move and resume with it."""

    critic_network: str | None = None
    """The network with which loss terms of the "critic" update train; None: there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.terms = nn.ModuleList()

    def add_loss(self, term: LossTerm) -> None:
        """Add a loss term, before optimizers are built. Raises ValueError for a taken name or a missing critic."""
        if term.name in {own.name for own in self.loss_terms}:
            raise ValueError(f"{type(self).__name__} already has a loss term {term.name!r}: give this one another name")
        if term.update == "critic" and self.critic_network is None:
            raise ValueError(f"loss term {term.name!r}: {type(self).__name__} has no critic to update")
        self.terms.append(term)
        for part in term.unsaved:
            self.leave_out(f"terms.{len(self.terms) - 1}.{part}")

    @property
    def loss_terms(self) -> list[LossTerm]:
        """All terms, of both updates."""
        return list(self.terms)  # type: ignore[arg-type]

    def term_parameters(self, update: Update | None) -> list[tuple[str, nn.Parameter]]:
        """Named parameters that train with the terms of an update."""
        return [
            (f"terms.{term.name}.{name}", parameter)
            for term in self.loss_terms
            if term.update == update
            for name, parameter in term.named_parameters()
            if parameter.requires_grad
        ]
