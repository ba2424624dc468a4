from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla_core.profile import RobotProfile
from vla_model.policy import WORLD, PolicyInfo
from vla_model.types import PredictedViews
from vla_training.evaluate.world import evaluate_world

PROFILE = RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup/config/robots/sim_panda.yaml')
INFO = PolicyInfo('still', True, ('front', 'wrist'), 7, 8, 0.2, gripper=True, outputs=frozenset({WORLD}))


class Still:
    """Predicts that nothing moves, and keeps the chunks that it is given."""

    info = INFO

    def __init__(self):
        self.chunks = []

    def start(self, output, observation, options):
        assert output == WORLD and options.chunk.positions.shape == (8, 7) and options.chunk.gripper.shape == (8,)
        self.chunks.append((observation, options))

        class Job:
            result = PredictedViews(observation.t_ref, observation.t_ref, observation.images, 1.0)

            def step(self):
                return True

        return Job()


def test_a_model_in_which_nothing_moves_is_as_good_as_the_image_before():
    policy = Still()
    found = evaluate_world(policy, PROFILE, 1, frames=2, tasks=('press_button',))
    assert found['frames'] == 2
    for name in ('front, 1.6 s: {} PSNR [dB]', 'wrist, 0.4 s: {} SSIM', 'front, 1.6 s: {} PSNR on the arm [dB]'):
        assert found[name.format('predicted')] == pytest.approx(found[name.format('the image before')], abs=0.02)
    assert found['front, 1.6 s: predicted PSNR on the arm [dB]'] < found['front, 1.6 s: predicted PSNR [dB]']
    # The chunk is what was sent after the observation.
    seen, options = policy.chunks[0]
    assert 0.02 < np.abs(options.chunk.positions[-1] - seen.positions).max() < 2.0
    assert np.abs(options.chunk.positions[0] - seen.positions).max() < 0.4


def test_a_model_without_these_images_is_refused():
    policy = Still()
    policy.info = replace(INFO, outputs=frozenset())
    with pytest.raises(ValueError, match='predicts no images for given actions'):
        evaluate_world(policy, PROFILE, 1)
