"""Names of models: the folder of a checkpoint, or one of a few fixed names. Importing this costs no torch."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / 'data' / 'nano'  # the trained model that comes with the suite, if it does
RANDOM = 'random-nano'  # the same shape with random weights: real computation, meaningless actions
SHIPPED = 'nano'
KNOWN = f"the folder of a checkpoint, '{SHIPPED}' (the trained model of the suite) or '{RANDOM}'"


def default_model() -> str:
    """Return the folder of the trained model; 'random-nano' where it is missing."""
    return str(FOLDER) if (FOLDER / 'config.json').is_file() else RANDOM


def is_random(model: str | Path) -> bool:
    """Return whether a path or name is that of the model with random weights."""
    return str(model) == RANDOM


def model_path(model: str | Path) -> str:
    """Return 'random-nano', or the folder of a model given by path or name; empty: the default model.

    All commands and `loading.load` use this rule. `checkpoint.check_folder` checks the folder.
    """
    text = str(model)
    if text == SHIPPED and not Path(text).is_dir():
        return str(FOLDER)
    return text or default_model()
