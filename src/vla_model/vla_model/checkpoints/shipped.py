"""What a model is called: the folder of a checkpoint, or one of a few names. Importing this costs no torch."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / 'data' / 'nano'  # the trained model that comes with the suite, if it does
RANDOM = 'random-nano'  # the same shape with random weights: real computation, meaningless actions
SHIPPED = 'nano'
KNOWN = f"the folder of a checkpoint, '{SHIPPED}' (the trained model of the suite) or '{RANDOM}'"


def default_model() -> str:
    """The folder of the trained model; 'random-nano' where there is none."""
    return str(FOLDER) if (FOLDER / 'config.json').is_file() else RANDOM


def is_random(model: str | Path) -> bool:
    """Whether a model that is given by path or name is the one of random weights."""
    return str(model) == RANDOM


def model_path(model: str | Path) -> str:
    """'random-nano', or the folder of a model that is given by path or name; an empty one is the default.

    Every command and `loading.load` find a model so. Whether a checkpoint is there, `checkpoint.check_folder` says.
    """
    text = str(model)
    if text == SHIPPED and not Path(text).is_dir():
        return str(FOLDER)
    return text or default_model()
