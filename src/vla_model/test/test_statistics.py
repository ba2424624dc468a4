import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_model.checkpoints import nano
from vla_model.config import ModelConfig
from vla_model.families.mmact import loading
from vla_model.families.mmact.policy import MaskedPolicy
from vla_model.loading import LoadOptions, load
from vla_model.statistics import FILE, METHODS, Statistics
from vla_model.tokens.bins import dequantize, quantize

RNG = np.random.default_rng(0)
STATES = RNG.normal([0, -0.7, 0, -2.2, 0, 1.5, 0.7, 0.04], [0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.01], (500, 8))
ACTIONS = RNG.normal(0, 0.1, (400, 8))
FOUND = Statistics.of(STATES, ACTIONS)


def config(method, **robot):
    c = nano.config(512)
    statistics = FOUND if method != 'limits' else None
    return replace(c, robot=replace(c.robot, normalization=method, **robot), statistics=statistics)


def test_what_becomes_one_is_what_the_method_defines():
    state = STATES[:, :7]
    for method, (low, high) in {
        'min_max': (state.min(0), state.max(0)),
        'quantile': (np.quantile(state, 0.01, 0), np.quantile(state, 0.99, 0)),
        'mean_std': (state.mean(0) - 3 * state.std(0), state.mean(0) + 3 * state.std(0)),
    }.items():
        ranges = config(method).ranges('state')
        assert np.allclose(ranges.normalize(np.append(low, 0.0)), -1)
        assert np.allclose(ranges.normalize(np.append(high, 0.08)), 1), 'the gripper keeps to its limits'


def test_mean_std_is_the_formula_of_the_reference():
    x = STATES[:50, :7]
    expected = np.clip((x - STATES[:, :7].mean(0)) / (3 * STATES[:, :7].std(0)), -1, 1)
    ours = config('mean_std').ranges('state').normalize(np.column_stack((x, np.zeros(50))))[:, :7]
    assert np.allclose(np.clip(ours, -1, 1), expected)


@given(st.sampled_from(sorted(METHODS)), st.integers(0, 399))
def test_actions_come_back_within_half_a_bin(method, row):
    ranges = config(method).ranges('action')
    inside = np.clip(ACTIONS[row], ranges.low, ranges.high)
    back = ranges.denormalize(dequantize(quantize(ranges.normalize(inside), 2048), 2048))
    assert (np.abs(back - inside) <= (ranges.high - ranges.low) / 2047 / 2 + 1e-6).all()


def test_a_number_that_never_changed_comes_back_as_it_was():
    still = Statistics.of(np.full((9, 8), 0.05), np.full((9, 8), 0.05))
    for method in METHODS:
        low, high = still.span('action', method)
        assert (low < high).all() and np.allclose((low, high), 0.05, atol=1e-6)


def test_a_gripper_that_is_counted_the_other_way():
    c = config('limits', action_low=(-0.8,) * 7 + (0.08,), action_high=(0.8,) * 7 + (0.0,))
    ranges = c.ranges('action')
    assert ranges.normalize(np.zeros(8))[-1] == 1 and ranges.denormalize(-np.ones(8))[-1] == 0.08
    with pytest.raises(ValueError, match='action_low must be below'):
        config('limits', action_low=(1.7,) + (-0.8,) * 6 + (0.0,))


def test_the_file_travels_with_the_checkpoint(tmp_path):
    made = loading.load('random-nano', LoadOptions(threads=1))
    c = config('quantile')
    with_statistics = MaskedPolicy(c, made.text, made.network, made.image_tokenizer, 'x')
    loading.save(with_statistics, tmp_path)
    again = loading.load(tmp_path, LoadOptions(threads=1))
    assert again.config == c
    assert np.array_equal(again.action_ranges.low, c.ranges('action').low)
    content = json.loads((tmp_path / FILE).read_text())
    content['action']['q01'][0] -= 0.01
    (tmp_path / FILE).write_text(json.dumps(content))
    assert loading.load(tmp_path, LoadOptions(threads=1)).model_id != again.model_id
    (tmp_path / FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r'statistics.json is missing: copy'):
        loading.load(tmp_path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c.pop('action'), 'statistics.json: action is missing'),
        (lambda c: c['action'].pop('q99'), r'action.q99 is missing, which normalization .quantile. needs'),
        (lambda c: c['action'].update(q01=[0.0]), 'action has 1 and 8 numbers'),
        (lambda c: c['action'].update(q01='x'), r'action.q01 must be a list of finite numbers'),
        (lambda c: c['action'].update(q01=[float('nan')] * 8), r'action.q01 must be a list of finite numbers'),
        (lambda c: c['action'].update(q01=[1.0] * 8), 'action has a negative spread in dimension 1'),
        (lambda c: c['observation.state'].update(q01=[-170.0] * 8, q99=[-90.0] * 8), 'check its unit'),
    ],
)
def test_wrong_statistics_are_named(tmp_path, change, message):
    FOUND.save(tmp_path / FILE)
    content = json.loads((tmp_path / FILE).read_text())
    change(content)
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        replace(config('quantile'), statistics=Statistics.load(tmp_path / FILE))


def test_a_models_id_is_the_same_in_every_process(tmp_path):
    nano_policy = loading.load('random-nano', LoadOptions(threads=1))
    nano_policy.config = config('min_max')
    loading.save(nano_policy, tmp_path)
    code = f'from vla_model.loading import load; print(load({str(tmp_path)!r}).info.model_id)'
    other = subprocess.run(
        [sys.executable, '-c', code], env={**os.environ, 'PYTHONHASHSEED': '1'}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert other.stdout.strip() == load(tmp_path).info.model_id


def test_statistics_and_normalization_go_together():
    with pytest.raises(ValueError, match='must go with all but limits'):
        replace(nano.config(512), statistics=FOUND)
    assert isinstance(config('limits'), ModelConfig)
    with pytest.raises(ValueError, match='shape'):
        Statistics.of(np.zeros((0, 8)), ACTIONS)
