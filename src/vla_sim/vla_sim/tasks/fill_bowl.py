"""Task: put the named fruit or vegetable into a bowl."""

import numpy as np

from vla_sim.assets import props
from vla_sim.assets.objects import BOWL_HEIGHT, PRODUCE
from vla_sim.rendering.opengl import mujoco
from vla_sim.tasks.episode import Goal, SceneState
from vla_sim.tasks.placing import Placing
from vla_sim.tasks.task import Prop, coloured

BOWLS, ITEMS = 2, 4
INNER_RADIUS = 0.050  # [m] of a bowl; the centre of the item must be within it


class FillBowl(Placing):
    name = 'fill_bowl'
    phrasings = (
        'put the {object} in the {target} bowl',
        'place the {object} in the {target} bowl',
        'drop the {object} into the {target} bowl',
        'move the {object} to the {target} bowl',
    )
    vague = ('put a fruit in a bowl', 'pick up the fruit', 'move one of the fruits to a bowl')
    object_kind, target_kind = '', 'bowl'
    objects = PRODUCE
    example = {'object': 'tomato', 'target': 'blue'}
    put = 'lower the {object} into the {target}'
    parked = PRODUCE

    def sample(self, rng: np.random.Generator) -> tuple[list[Prop], Goal]:
        bowls = coloured(rng, 'bowl', BOWLS)
        items: list[Prop] = [(name, name, name, None) for name in rng.permutation(list(PRODUCE))[:ITEMS].tolist()]
        return bowls + items, Goal(self.name, items[0][0], bowls[0][0])

    def add_props(self, spec: mujoco.MjSpec) -> None:
        for i in range(BOWLS):
            props.add_bowl(spec, f'bowl_{i}')
        for name in PRODUCE:
            props.add_produce(spec, name)

    def rests(self, state: SceneState, goal: Goal) -> bool:
        """Return whether the object's centre is in the target bowl, whose position is the middle of its bottom."""
        offset = state.positions[goal.object] - state.positions[goal.target]
        return bool(np.hypot(offset[0], offset[1]) < INNER_RADIUS and 0.0 < offset[2] < BOWL_HEIGHT)

    def height(self, low: float) -> float:
        return low + 0.022
