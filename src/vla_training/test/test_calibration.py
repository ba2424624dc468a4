"""What calibrates and what checks are rows of other episodes, as the model will be asked."""

import json
import shutil

import numpy as np
import pytest
import torch

from vla_model.checkpoints import checkpoint, nano
from vla_model.families.mmact import loading
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.loading import LoadOptions
from vla_model.network import Network
from vla_model.tokens.text_tokenizer import NANO_FILE, TextTokenizer
from vla_training.train.calibration import MODES, TUNING, calibration, observations


@pytest.fixture(scope='module')
def model(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp('model')
    network, images = Network(config.network), ImageTokenizer(config.image_tokenizer)
    nano.init_weights(network, 0)
    nano.init_weights(images, 0)
    checkpoint.write(folder, config, TextTokenizer.load(NANO_FILE), network.state_dict(), images.state_dict())
    return folder


def test_checks_ask_for_a_chunk_and_know_what_was_done(tokens_folder, tokens, model, config):
    made = calibration(tokens_folder, model, prompts=8, checks=6, pictures=3)
    v = config.vocabulary
    assert len(made.prompts) == 8 and len(made.checks) == 6 and len(made.tuning) == TUNING
    assert {int(ids[0, 0]) for ids in made.prompts} == {v.mm2a, v.mmu, v.t2i} and len(MODES) == 4
    odd = {tuple(a.flatten().tolist()) for a in tokens.action[tokens.episode % 2 == 1]}
    even = {tuple(a.flatten().tolist()) for a in tokens.action[tokens.episode % 2 == 0]}
    assert not odd & even
    for check, rows in [(c, odd) for c in made.checks] + [(c, even) for c in made.tuning]:
        assert (check.ids[0, check.block] == v.mask).all()
        assert tuple(check.wanted[: config.robot.chunk_tokens].tolist()) in rows
    assert made.pictures.shape == (3, 3, 32, 32) and made.pictures.abs().max() <= 1


def test_observations_are_what_the_policy_takes(tokens_folder, model):
    seen = observations(tokens_folder, model, count=3)
    loaded = loading.load(model, LoadOptions(threads=1))
    assert len(seen) == 3 and not np.array_equal(seen[0].positions, seen[1].positions)
    assert all(np.isfinite(loaded.act(o).chunk.positions).all() for o in seen)


def test_data_of_another_model_is_refused(tokens_folder, model, tmp_path):
    other = shutil.copytree(model, tmp_path / 'other')
    content = json.loads((other / 'config.json').read_text())
    content['robot']['dt'] = 0.3
    (other / 'config.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match='robot differs from the checkpoint: tokenize'):
        calibration(tokens_folder, other)


def test_too_little_data_is_reported(tokens_folder, model):
    with pytest.raises(ValueError, match='give more data'):
        calibration(tokens_folder, model, prompts=500)


def test_the_same_rows_every_time(tokens_folder, model):
    a, b = (calibration(tokens_folder, model, prompts=4, checks=2, pictures=1) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.prompts, b.prompts, strict=True))
