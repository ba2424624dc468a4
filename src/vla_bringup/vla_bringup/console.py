"""The console of all commands."""

from rich.console import Console

WIDTH = 140  # columns where there is no terminal: tables in a log are not folded


def make_console() -> Console:
    """A console as wide as the terminal, or WIDTH without one."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)
