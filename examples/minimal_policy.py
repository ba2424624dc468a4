"""A policy from the contract alone, which holds the arm. Run it in `./vla shell`: python examples/minimal_policy.py"""

import numpy as np

from vla_model.policy import PolicyInfo, Prediction, no_output
from vla_model.types import Chunk, Observation


class Hold:  # see vla_model.policy.Policy for what each method must do
    info = PolicyInfo('hold-1', trained=True, cameras=('front',), dof=7, horizon=8, dt=0.1)

    def act(self, observation, prefix=None):
        return Prediction(Chunk(np.tile(observation.positions, (8, 1)), np.zeros(0), self.info.dt))

    def start(self, output, observation, options=None):
        raise no_output(self.info, output)

    def example(self, grey=128):
        return Observation(0, {'front': np.full((96, 128, 3), grey, np.uint8)}, np.zeros(7), np.zeros(7), 0.0, 'hold')

    prepare = warm_up = close = lambda self, *_: None


def load(reference, options):
    return Hold()


if __name__ == '__main__':
    print(load('', None).act(Hold().example()).chunk)
