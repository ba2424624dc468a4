"""Against numbers of the public reference, where the parity folder lies beside the checkout."""

from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from vla_model.bench import parity
from vla_model.config import ImageTokenizerConfig
from vla_model.image_tokenizer import ImageTokenizer

FOLDER = Path(__file__).resolve().parents[4] / 'shared' / 'parity'
KEYS = FOLDER.parent / 'facts' / 'magvit_v2_keys.txt'


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f'no parity data at {FOLDER}')
def test_every_tensor_of_the_reference():
    torch.set_num_threads(1)
    rows = parity.check_folder(FOLDER)
    assert [row.name for row in rows] == sorted(n for f in FOLDER.glob('*.safetensors') for n in load_file(f))
    assert [str(row) for row in rows if not row.passed] == []


@pytest.mark.skipif(not KEYS.is_file(), reason=f'no list of released names at {KEYS}')
def test_image_tokenizer_has_the_released_names_and_shapes():
    released = {}
    for line in KEYS.read_text().splitlines():
        name, rest = line.split(' ', 1)
        released[name] = tuple(int(n) for n in rest[1 : rest.index(')')].split(',') if n.strip())
    with torch.device('meta'):
        tokenizer = ImageTokenizer(ImageTokenizerConfig.released())
    assert {name: tuple(t.shape) for name, t in tokenizer.state_dict().items()} == released
