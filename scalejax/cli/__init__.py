"""The command line."""

from scalejax.cli.main import entry, main

__all__ = ["entry", "main"]
