"""./vla quantize: episodes of both checkpoints decide, too; what fails leaves nothing behind."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from vla_bringup import quantize as command
from vla_core.profile import profile_path
from vla_model.quantization.quantize import Result


def test_a_loss_counts_when_it_is_sure():
    same = command.compare_success([(True, True)] * 8 + [(False, False)] * 2)
    assert same['original'] == same['quantized'] == 0.8 and same['lost_at_least'] == 0.0
    chance = command.compare_success([(True, False), (False, True)] * 5 + [(True, False)])
    assert chance['lost_at_least'] < command.LOST
    worse = command.compare_success([(True, True)] * 80 + [(True, False)] * 20)
    assert worse['lost_at_least'] == pytest.approx(0.2 - 1.645 * 0.0402, abs=1e-3)


@pytest.mark.parametrize('force', [False, True])
def test_a_checkpoint_that_fails_in_episodes_is_removed_unless_forced(tmp_path, monkeypatch, capsys, force):
    model, out = tmp_path / 'model', tmp_path / 'small'
    model.mkdir()
    half = {'logit_cosine': 1.0, 'kl': 0.0, 'equal_bins': 1.0, 'action_difference_mean': 0.0}
    half |= {'action_difference_p99': 0.0, 'error_mean': 0.1, 'error_p99': 0.2}
    images = {'bfloat16': 1.0, 'quantized': 1.0}
    gate = {'checks': 3, 'exact': {'error_mean': 0.1}, 'bfloat16': half, 'quantized': half, 'images': images}

    def quantize(source, folder, *args, **options):
        folder.mkdir()
        (folder / 'config.json').write_text('{}')
        return Result(gate, [], folder)

    lost = ['success fell from 80.0% to 20.0% of 50 episodes']
    monkeypatch.setattr(command, 'calibration', lambda *a, **k: None)
    monkeypatch.setattr(command, 'quantize', quantize)
    monkeypatch.setattr(command, '_drive', lambda o, result: lost)
    robot = Path(profile_path('sim_panda'))
    options = command.Options(
        model=model, scheme='int8', data=tmp_path, robot=robot, out=out, work=tmp_path, episodes=5, force=force
    )
    assert command.run_quantize(options) is force
    assert out.is_dir() is force
    assert 'success fell' in ' '.join(capsys.readouterr().out.split())


def test_rates_of_episodes_are_written_into_the_folder(tmp_path, monkeypatch):
    written = {}
    rates = {'model': [True] * 20, 'small': [True] * 5 + [False] * 15}

    def evaluate(checkpoint, out, profile, **options):
        assert options['episodes'] == 2 and options['contrasts'] == 0
        name = checkpoint.rpartition('/')[2]
        return [SimpleNamespace(key=i, success=good) for i, good in enumerate(rates[name])]

    class Config:
        quantization = object()

        def to_json(self):
            return json.dumps(written)

    def replaced(value, **changes):
        written.update(changes.get('gate', {}))
        return Config()

    monkeypatch.setattr('vla_training.evaluate.evaluate.evaluate', evaluate)
    monkeypatch.setattr(command.RobotProfile, 'load', lambda path: None)
    monkeypatch.setattr(command, 'open_folder', lambda folder: SimpleNamespace(config=Config()))
    monkeypatch.setattr(command, 'replace', replaced)
    (tmp_path / 'small').mkdir()
    options = command.Options(
        model=tmp_path / 'model', scheme='int8', data=tmp_path, robot=tmp_path, out=tmp_path / 'small', work=tmp_path,
        episodes=2,
    )  # fmt: skip
    failed = command._drive(options, Result({}, [], tmp_path / 'small'))
    assert failed and 'from 100.0% to 25.0% of 20 episodes' in failed[0]
    assert json.loads((tmp_path / 'small' / 'config.json').read_text())['success']['quantized'] == 0.25
