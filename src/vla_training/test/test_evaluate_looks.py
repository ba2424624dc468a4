"""Single looks, by policies that do what the expert does, or nothing."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vla_core.profile import RobotProfile
from vla_model.config import ModelConfig
from vla_model.families.mmact.policy import info_of
from vla_model.policy import Prediction
from vla_model.types import Chunk
from vla_training.evaluate import single_step as evaluate_looks
from vla_training.evaluate.single_step import single_looks

PROFILE = RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots' / 'sim_panda.yaml')


def policy(config: ModelConfig, act) -> SimpleNamespace:
    info = info_of(config, 'a policy')
    return SimpleNamespace(info=info, act=lambda seen: Prediction(Chunk(act(seen), np.zeros(0), info.dt)))


def test_a_policy_is_measured_beside_the_expert(config, monkeypatch):
    answers, answer = [], evaluate_looks.answer
    monkeypatch.setattr(evaluate_looks, 'answer', lambda *a: answers.append(answer(*a)) or answers[-1])
    knows = single_looks(policy(config, lambda seen: answers[-1][:, :7]), PROFILE, 2)
    assert 8 <= knows['looks'] <= 10
    off = {name: value for name, value in knows.items() if name != 'looks' and 'staying' not in name}
    assert len(off) == 6 and max(off.values()) < 1e-6
    stays = single_looks(policy(config, lambda seen: seen.positions[None]), PROFILE, 2)
    for name in off:
        unit = name[name.index(' [') :]
        staying = name.removesuffix(unit) + ', staying' + unit
        assert stays[name] == pytest.approx(stays[staying]) == pytest.approx(knows[staying])
    assert stays['close over it: long things, turned off the expert [deg]'] > 5


def test_half_a_turn_more_is_as_good(config, monkeypatch):
    monkeypatch.setattr(evaluate_looks, 'WHERE', {'over': (evaluate_looks.Away.over(), ('fill_bowl',))})
    answers, answer = [], evaluate_looks.answer
    monkeypatch.setattr(evaluate_looks, 'answer', lambda *a: answers.append(answer(*a)) or answers[-1])
    turned = single_looks(policy(config, lambda seen: answers[-1][:, :7] + [0, 0, 0, 0, 0, 0, np.pi]), PROFILE, 2)
    assert turned['over: long things, turned off the expert [deg]'] < 1e-3
