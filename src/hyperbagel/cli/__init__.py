"""The `hyperbagel` command."""

from hyperbagel.cli.main import main

__all__ = ["main"]
