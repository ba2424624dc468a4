"""The manifest of an exported folder: which graphs it holds, for which model and shapes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_model.engines.cache import cache_folder

FORMAT = 1  # of the folder; grows when the graphs change


MANIFEST, WEIGHTS, IMAGES = 'manifest.json', 'weights.bin', 'tokenizer.onnx'


@dataclass(frozen=True)
class RequestGraph:
    """The graph of a request type. `onnx_graph.network_graph` has its inputs and outputs."""

    file: str
    rows: int  # tokens of the block
    vocabulary: tuple[int, int]  # ids whose logits it computes: first, end
    shortest: int  # length of its input `ids` [tokens]; usual: the one that it is tuned for
    usual: int
    longest: int


def folder_of(model_id: str, dtype: str) -> Path:
    """Return the folder in which the graphs of a model are written and searched."""
    return cache_folder() / f'{model_id}-onnx-{dtype}'


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an exported folder; 'kinds' maps request types to their graphs.

    Raises FileNotFoundError or ValueError naming the command to run.
    """
    remedy = 'run ./vla tensorrt export'
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f'{folder / MANIFEST} is missing: {remedy}')
    try:
        content = json.loads((folder / MANIFEST).read_text())
        content['kinds'] = {name: RequestGraph(**graph) for name, graph in content['kinds'].items()}
        known = content['format'] == FORMAT
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise ValueError(f'{folder / MANIFEST} is damaged or of another version: {remedy}')
    return content
