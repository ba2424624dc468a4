"""Single-step evaluation of policies that copy the expert, or stand still."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vla_core.profile import RobotProfile
from vla_model.config import ModelConfig
from vla_model.families.mmact.policy import info_of
from vla_model.policy import Prediction
from vla_model.types import Chunk
from vla_training.evaluate import single_step
from vla_training.evaluate.single_step import evaluate_single_step

PROFILE = RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots' / 'sim_panda.yaml')


def policy(config: ModelConfig, act) -> SimpleNamespace:
    info = info_of(config, 'a policy')
    return SimpleNamespace(info=info, act=lambda seen: Prediction(Chunk(act(seen), np.zeros(0), info.dt)))


@pytest.fixture
def labels(monkeypatch):
    """The expert's action labels, in the order of the scenes."""
    found, label = [], single_step.label_actions
    monkeypatch.setattr(single_step, 'label_actions', lambda *a: found.append(label(*a)) or found[-1])
    return found


def test_a_policy_is_measured_beside_the_expert(config, labels):
    copies = evaluate_single_step(policy(config, lambda seen: labels[-1][:, :7]), PROFILE, 2)
    assert 8 <= copies['scenes'] <= 10
    errors = {name: value for name, value in copies.items() if name != 'scenes' and 'standing still' not in name}
    assert len(errors) == 6 and max(errors.values()) < 1e-6
    still = evaluate_single_step(policy(config, lambda seen: seen.positions[None]), PROFILE, 2)
    for name in errors:
        unit = name[name.index(' [') :]
        reference = name.removesuffix(unit) + ', standing still' + unit
        assert still[name] == pytest.approx(still[reference]) == pytest.approx(copies[reference])
    assert still['near the object: yaw error of long objects [deg]'] > 5


def test_half_a_turn_more_is_as_good(config, monkeypatch, labels):
    monkeypatch.setattr(single_step, 'STARTS', {'near': (single_step.StartPose.near_object(), ('fill_bowl',))})
    turned = evaluate_single_step(
        policy(config, lambda seen: labels[-1][:, :7] + [0, 0, 0, 0, 0, 0, np.pi]), PROFILE, 2
    )
    assert turned['near: yaw error of long objects [deg]'] < 1e-3
