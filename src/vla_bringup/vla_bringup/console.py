"""Console of all commands."""

from rich.console import Console

WIDTH = 140  # [columns] without a terminal, so that tables in a log are not folded


def make_console() -> Console:
    """Return a console as wide as the terminal, or WIDTH without a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)
