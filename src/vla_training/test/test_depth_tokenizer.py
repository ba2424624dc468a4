from dataclasses import replace

import numpy as np
import pytest
import torch

from vla_model.tokens.depth_tokenizer import DepthTokenizerConfig, load_depth_tokenizer
from vla_training.data.features import DEPTH_SIDE, depth
from vla_training.depth_tokenizer import trainer as training
from vla_training.depth_tokenizer.trainer import DepthTrainer, Settings, read_maps, train_depth_tokenizer

SMALL = DepthTokenizerConfig(side=16, codes=8, width=4, channels=4, near=0.3, far=2.0)
FAST = Settings(steps=80, lr=5e-3, batch=8, warmup=5, log_every=20, save_every=20)


def maps(count, seed=0):
    """Depth maps of a table that rises to one side, by another angle each."""
    rng = np.random.default_rng(seed)
    slope = rng.uniform(-0.4, 0.4, (count, 2, 1, 1))
    at = np.linspace(-1, 1, DEPTH_SIDE)
    return torch.from_numpy(1.0 + slope[:, 0] * at + slope[:, 1] * at[:, None]).float()


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_codes_learn_the_depth_and_an_interrupted_run_continues_with_the_same_numbers(tmp_path):
    train, held = maps(64), maps(16, 1)
    whole = DepthTrainer(train, held, tmp_path / 'whole', SMALL, FAST)
    before = whole.measure().error_mm
    whole.run()
    assert whole.measure().error_mm < 0.9 * before and whole.measure().used > 2
    first = DepthTrainer(train, held, tmp_path / 'parts', SMALL, FAST)
    first.runs_on = lambda until: first.step < 20  # type: ignore[method-assign]
    assert first.run(1.0) == 20
    second = DepthTrainer(train, held, tmp_path / 'parts', SMALL, FAST)
    assert second.step == 20
    second.run()
    # A save that was cut off between its two renames.
    (tmp_path / 'parts' / 'state').rename(tmp_path / 'parts' / '.state-old')
    assert DepthTrainer(train, held, tmp_path / 'parts', SMALL, FAST).step == FAST.steps
    assert DepthTrainer(train, held, tmp_path / 'parts', SMALL, replace(FAST, steps=120)).step == FAST.steps
    for (name, a), b in zip(whole.tokenizer.state_dict().items(), second.tokenizer.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(ValueError, match='other settings'):
        DepthTrainer(train, held, tmp_path / 'parts', SMALL, replace(FAST, batch=4))


def test_the_command_writes_a_tokenizer_and_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(training, 'read_maps', lambda datasets, camera: (maps(16), maps(4, 1)))
    report = train_depth_tokenizer([tmp_path], tmp_path, settings=replace(FAST, steps=3), config=SMALL)
    assert report.steps == 3 and report.maps == 4
    assert load_depth_tokenizer(tmp_path).config == SMALL
    assert (tmp_path / 'depth.png').is_file() and (tmp_path / 'report.json').is_file()


def test_a_data_set_without_depth_maps_is_refused(tmp_path, monkeypatch):
    class Plain:
        features = {'observation.state': None}

    monkeypatch.setattr(training, 'Dataset', lambda folder: Plain)
    with pytest.raises(ValueError, match=r'has no truth\.depth\.front: collect it'):
        read_maps([tmp_path], 'front')
    assert depth('front') == 'truth.depth.front'
