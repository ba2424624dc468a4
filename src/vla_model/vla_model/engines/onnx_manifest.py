"""The manifest of an exported folder: which graphs it holds, for which model and shapes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_model.engines.cache import cache_folder

FORMAT = 1  # of the folder; grows when the graphs change


MANIFEST, WEIGHTS, IMAGES = 'manifest.json', 'weights.bin', 'tokenizer.onnx'


@dataclass(frozen=True)
class Kind:
    """A graph of the network. Its inputs and outputs: `onnx_graph.network_graph`."""

    file: str
    rows: int  # tokens of the block
    vocabulary: tuple[int, int]  # ids whose logits it makes: from, up to
    shortest: int  # `ids` that it takes [tokens]
    usual: int
    longest: int


def folder_of(model_id: str, dtype: str) -> Path:
    """Where the graphs of a model are kept, and looked for."""
    return cache_folder() / f'{model_id}-onnx-{dtype}'


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises FileNotFoundError or ValueError saying what to run."""
    remedy = 'run ./vla tensorrt export'
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f'{folder / MANIFEST} is missing: {remedy}')
    try:
        content = json.loads((folder / MANIFEST).read_text())
        content['kinds'] = {name: Kind(**kind) for name, kind in content['kinds'].items()}
        known = content['format'] == FORMAT
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise ValueError(f'{folder / MANIFEST} is damaged or of another version: {remedy}')
    return content
