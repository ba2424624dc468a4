"""Task: stack the named block on another one."""

import numpy as np

from vla_sim.assets import props
from vla_sim.assets.objects import BLOCK_EDGE, COLOURS
from vla_sim.rendering.opengl import mujoco
from vla_sim.tasks.episode import Goal, SceneState
from vla_sim.tasks.placing import Placing
from vla_sim.tasks.task import Prop, coloured

BLOCKS = 3
OFFSET = 0.018  # [m] between the centres seen from above; the upper block tips beyond 0.020
HEIGHT_TOLERANCE = 0.006  # [m]


class StackBlock(Placing):
    name = 'stack_block'
    phrasings = (
        'stack the {object} block on the {target} block',
        'put the {object} block on top of the {target} block',
        'place the {object} block on the {target} block',
        'set the {object} block onto the {target} block',
    )
    vague = ('stack a block on another block', 'put a block on a block', 'stack the blocks')
    object_kind, target_kind = 'block', 'block'
    objects = tuple(COLOURS)
    example = {'object': 'red', 'target': 'blue'}
    put = 'set the {object} onto the {target}'
    edges_along = True

    def sample(self, rng: np.random.Generator) -> tuple[list[Prop], Goal]:
        blocks = coloured(rng, 'block', BLOCKS)
        return blocks, Goal(self.name, blocks[0][0], blocks[1][0])

    def add_props(self, spec: mujoco.MjSpec) -> None:
        for i in range(BLOCKS):
            props.add_block(spec, f'block_{i}')

    def rests(self, state: SceneState, goal: Goal) -> bool:
        """Return whether the object block is on the target block."""
        offset = state.positions[goal.object] - state.positions[goal.target]
        return bool(np.hypot(offset[0], offset[1]) < OFFSET and abs(offset[2] - BLOCK_EDGE) < HEIGHT_TOLERANCE)

    def height(self, low: float) -> float:
        return BLOCK_EDGE + 0.002
