"""Load a model and ask it for one chunk. Run it in `./vla shell`: python examples/act.py"""

import numpy as np

from vla_model.loading import LoadOptions, load
from vla_model.policy import PLAN, PlanOptions

model = load('random-nano', LoadOptions(threads=1))  # or the folder of a checkpoint
info = model.info
print(f'{info.model_id} sees {", ".join(info.cameras)} and gives {info.horizon} steps of {info.dt} s')

observation = model.example()  # a grey scene; on a robot: images, joint positions [rad], opening [m]
chunk = model.act(observation).chunk
print('first set-points [rad]:', np.round(chunk.positions[0], 3))
print('confidence:', np.round(chunk.confidence, 2))
print('joints:', np.round(observation.positions, 3))

job = model.start(PLAN, observation, PlanOptions(length=32, steps=4))
while not job.step():  # one forward at a time: an action that is due can come first
    pass
print('plan:', job.result.text)
