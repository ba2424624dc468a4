"""Load a model and ask it for one chunk. Run it in `./vla shell`: python examples/act.py"""

import numpy as np

from vla_model import loading
from vla_model.observation import state_of

model = loading.load('random-nano', threads=1)  # or the folder of a checkpoint
robot = model.config.robot
print(f'{model.model_id} sees {", ".join(robot.cameras)} and gives {robot.horizon} steps of {robot.dt} s')

observation = model.example()  # a grey scene; on a robot: images, joint positions [rad], opening [m]
chunk = model.act(observation)
print('first set-points [rad]:', np.round(chunk.positions[0], 3))
print('confidence:', np.round(chunk.confidence, 2))
print('state:', np.round(state_of(robot, observation), 3))

job = model.start_plan(observation, length=32, steps=4)
while not job.step():  # one forward at a time: an action that is due can come first
    pass
print('plan:', job.result.text)
