"""Opens checkpoint folders of the suite and released ones, without reading weights."""

from dataclasses import dataclass
from pathlib import Path

from vla_model.checkpoints import checkpoint, nano
from vla_model.checkpoints.checkpoint import Stored
from vla_model.checkpoints.shipped import is_random, model_path
from vla_model.config import ModelConfig, read_json
from vla_model.families.mmact import released
from vla_model.file_checks import explain_folder
from vla_model.loading import USUAL
from vla_model.tokens.text_tokenizer import NANO_FILE, TextTokenizer


@dataclass(frozen=True)
class Opened:
    config: ModelConfig
    text: TextTokenizer
    network: dict[str, Stored]
    image: dict[str, Stored]
    folder: Path | None  # None: nothing is stored, weights are random


def open_model(reference: str | Path, image_tokenizer: Path | None = None, gripper: bool = True) -> Opened:
    """Return the opened checkpoint folder, see `open_folder`, or the model of random weights.

    gripper: whether random weights are for an arm with a gripper.
    """
    if not is_random(path := model_path(reference)):
        return open_folder(Path(path), image_tokenizer)
    text = TextTokenizer.load(NANO_FILE)
    return Opened(nano.config(text.size, gripper=gripper), text, {}, {}, None)


def open_folder(folder: Path, image_tokenizer: Path | None = None) -> Opened:
    """Return the configuration and the list of tensors of a checkpoint folder.

    image_tokenizer: its folder, where the folder of a released checkpoint lacks it. Raises FileNotFoundError or
    ValueError naming the file or field, and the remedy.
    """
    folder = Path(model_path(folder))
    checkpoint.check_folder(folder)
    content = read_json(folder / 'config.json')
    if (family := content.get('family', USUAL)) != USUAL:
        raise ValueError(f'{folder} is a model of the family {family!r}: this is for the family {USUAL!r} alone')
    if 'vocabulary' not in content and not released.is_released(content) and (other := explain_folder(folder)):
        raise ValueError(other)
    text = TextTokenizer.load(folder / 'tokenizer.json')
    network = checkpoint.list_tensors(folder)
    if released.is_released(content):
        image_config, image = released.list_image_tokenizer(folder, image_tokenizer)
        config = released.read_config(folder, content, text.size, image_config)
    else:
        network, image = checkpoint.split(network)
        config = checkpoint.read_config(folder, content)
    if text.size != config.vocabulary.text:
        raise ValueError(
            f'{folder / "tokenizer.json"} has {text.size} tokens, config.json has {config.vocabulary.text}: '
            f'they are of different models'
        )
    return Opened(config, text, network, image, folder)
