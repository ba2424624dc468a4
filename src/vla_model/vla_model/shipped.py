"""The trained model that comes with the suite, if it does. Importing this costs no torch."""

from pathlib import Path

FOLDER = Path(__file__).parent / 'data' / 'nano'


def default_model() -> str:
    """The folder of the trained model; 'random-nano' where there is none."""
    return str(FOLDER) if (FOLDER / 'config.json').is_file() else 'random-nano'
