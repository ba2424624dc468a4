"""Samples the start of an episode from task, seed and optional instruction."""

import numpy as np

from vla_sim.assets.objects import COLOURS, FOOTPRINT, PRODUCE, first_word, group_of
from vla_sim.tasks.episode import CameraJitter, Episode, Goal, Placement
from vla_sim.tasks.instructions import parse_instruction, phrase
from vla_sim.tasks.table import task_of
from vla_sim.tasks.task import Prop

# Area of the props on the table [m], in the base frame: within reach of a tool that points down.
X_RANGE, Y_RANGE = (0.38, 0.64), (-0.27, 0.27)
GAP = 0.035  # [m] least distance between the footprints of two props, enough for a finger


def sample_episode(task: str, seed: int, instruction: str = '') -> Episode:
    """Return the episode of this task and seed; equal arguments give equal episodes.

    instruction: replaces that of the seed. The scene stays that of the seed, except that missing props of the goal
    replace other props. Raises ValueError for an unknown task, a negative seed, or an instruction of another task.
    """
    chosen = task_of(task)
    if seed < 0:
        raise ValueError(f'the seed must be 0 or above, got {seed}')
    rng = np.random.default_rng(seed)
    props, goal = chosen.sample(rng)
    which = int(rng.integers(len(chosen.phrasings)))
    if instruction:
        goal = parse_instruction(instruction)
        if goal.task != task:
            raise ValueError(f'the instruction {instruction!r} is one of task {goal.task}, not of {task}')
        props = _with_needed(props, goal)
    else:
        instruction = phrase(chosen, which, goal)
    spots = _sample_layout(rng, [kind for _, _, kind, _ in props])
    placements = tuple(
        Placement(name, slot, *spot, rgb) for (name, slot, _, rgb), spot in zip(props, spots, strict=True)
    )
    return Episode(
        task=task,
        seed=seed,
        instruction=instruction,
        goal=goal,
        placements=placements,
        joint_offset=rng.uniform(-0.03, 0.03, 7),
        cameras={
            'front': CameraJitter(rng.uniform(-0.02, 0.02, 3), rng.uniform(-0.02, 0.02, 3)),
            'wrist': CameraJitter(rng.uniform(-0.003, 0.003, 3), rng.uniform(-0.02, 0.02, 3)),
        },
        light=rng.uniform(0.8, 1.15) * rng.uniform(0.94, 1.06, 3),
        light_direction=rng.uniform(-0.25, 0.25, 3),
    )


def _with_needed(props: list[Prop], goal: Goal) -> list[Prop]:
    """Return the props; those that the goal lacks replace the last ones that it does not name."""
    props = list(props)
    needed = [name for name in (goal.object, goal.target) if name]
    for name in needed:
        if name not in [prop[0] for prop in props]:
            i = max(i for i, prop in enumerate(props) if group_of(prop[0]) == group_of(name) and prop[0] not in needed)
            rgb = None if name in PRODUCE else COLOURS[first_word(name)]
            props[i] = (name, *((name, name) if name in PRODUCE else props[i][1:3]), rgb)
    return props


def _sample_layout(rng: np.random.Generator, kinds: list[str]) -> list[tuple[float, float, float]]:
    """Return poses (x, y [m], yaw [rad]) with GAP between footprints; restarts when the last props do not fit."""
    while True:
        spots: list[tuple[float, float, float]] = []
        for kind in kinds:
            for _ in range(50):
                x, y = rng.uniform(*X_RANGE), rng.uniform(*Y_RANGE)
                clear = (
                    np.hypot(x - other[0], y - other[1]) > FOOTPRINT[kind] + FOOTPRINT[other_kind] + GAP
                    for other, other_kind in zip(spots, kinds, strict=False)
                )
                if all(clear):
                    spots.append((float(x), float(y), float(rng.uniform(-np.pi, np.pi))))
                    break
            else:
                break
        if len(spots) == len(kinds):
            return spots
