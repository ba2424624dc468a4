"""The three tasks: what is asked for, in which words, and how an episode starts. No MuJoCo here.

Everything about the start of an episode follows from task and seed. `parse_instruction` understands every sentence
that `sample_episode` can say, so nobody needs a second copy of the names.
"""

import re
from dataclasses import dataclass

import numpy as np

COLOURS = {
    'red': (0.80, 0.08, 0.08),
    'green': (0.10, 0.55, 0.16),
    'blue': (0.08, 0.22, 0.75),
    'yellow': (0.95, 0.76, 0.08),
    'orange': (0.95, 0.38, 0.03),
    'purple': (0.45, 0.13, 0.60),
}
PRODUCE = ('tomato', 'banana', 'carrot', 'eggplant', 'lemon')
TASKS = ('press_button', 'stack_block', 'fill_bowl')

_PHRASINGS = {
    'press_button': (
        'press the {object} button',
        'push the {object} button',
        'push down the {object} button',
        'hit the {object} button',
    ),
    'stack_block': (
        'stack the {object} block on the {target} block',
        'put the {object} block on top of the {target} block',
        'place the {object} block on the {target} block',
        'set the {object} block onto the {target} block',
    ),
    'fill_bowl': (
        'put the {object} in the {target} bowl',
        'place the {object} in the {target} bowl',
        'drop the {object} into the {target} bowl',
        'move the {object} to the {target} bowl',
    ),
}

# Where props may stand on the table [m], in the base frame: within reach with the tool pointing down.
X_RANGE, Y_RANGE = (0.38, 0.64), (-0.27, 0.27)
HOME_TOOL = (0.307, 0.0)  # [m] the tool above the table in the arm's home position
NEAR = 0.03  # [m] distances that differ by less count as equal
GAP = 0.035  # [m] at least, between the footprints of two props: room for a finger
BLOCK_EDGE, BOWL_HEIGHT = 0.040, 0.045  # [m]
# Radius of the circle that holds the prop as seen from above [m], by kind.
FOOTPRINT = {
    'button': 0.050,
    'block': 0.029,
    'bowl': 0.072,
    'tomato': 0.029,
    'banana': 0.058,
    'carrot': 0.058,
    'eggplant': 0.056,
    'lemon': 0.034,
}


@dataclass(frozen=True)
class Goal:
    """What an instruction asks for, as names of bodies."""

    task: str
    object: str  # the button to press, the block to stack, the produce to put
    target: str  # the block to stack on, the bowl to put into; '' for a button


@dataclass(frozen=True)
class Placement:
    """Where one prop stands when the episode starts."""

    name: str  # of the body, as everybody outside the simulator knows it: red_button, tomato
    slot: str  # of the body in the model that plays it: button_0, tomato
    x: float  # [m] base frame
    y: float  # [m]
    yaw: float  # [rad] about z
    rgb: tuple[float, float, float] | None  # 0..1; None: the prop has colours of its own


@dataclass(frozen=True)
class CameraJitter:
    """Small displacement of one camera from its nominal pose."""

    offset: np.ndarray  # (3,) [m], axes of the camera's parent body
    rotation: np.ndarray  # (3,) [rad] rotation vector, same axes


@dataclass(frozen=True)
class Episode:
    """All that is random about one episode."""

    task: str
    seed: int
    instruction: str
    goal: Goal
    placements: tuple[Placement, ...]
    joint_offset: np.ndarray  # (7,) [rad] added to the home position
    cameras: dict[str, CameraJitter]  # by camera name
    light: np.ndarray  # (3,) factor on the light's red, green and blue
    light_direction: np.ndarray  # (3,) [m] added to the direction of the light, which has length about 1


def check_task(task: str) -> None:
    """Raise ValueError that lists the task ids when there is no such task."""
    if task not in TASKS:
        raise ValueError(f'unknown task {task!r}, the tasks are: {", ".join(TASKS)}')


def sample_episode(task: str, seed: int, instruction: str = '') -> Episode:
    """The episode of this task and seed, always the same.

    instruction: what is asked for instead of what the seed would ask for; the scene stays that of the seed, but for a
    prop or two that change places with those that are asked for and were not there. Raises ValueError for an unknown
    task, a negative seed, or an instruction that is none of the task's.
    """
    check_task(task)
    if seed < 0:
        raise ValueError(f'the seed must be 0 or above, got {seed}')
    rng = np.random.default_rng(seed)
    props, goal = _SAMPLERS[task](rng)
    phrasing = _PHRASINGS[task][rng.integers(len(_PHRASINGS[task]))]
    if instruction:
        goal = parse_instruction(instruction)
        if goal.task != task:
            raise ValueError(f'the instruction {instruction!r} is one of task {goal.task}, not of {task}')
        props = _with_needed(props, goal)
    else:
        instruction = phrasing.format(object=_word(goal.object), target=_word(goal.target))
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


def parse_instruction(text: str) -> Goal:
    """What a sentence asks for, whatever its case, end stop and spaces. Raises ValueError when it is none of ours."""
    words = ' '.join(text.lower().replace('.', ' ').split())
    for task, patterns in _PATTERNS.items():
        for pattern in patterns:
            match = pattern.fullmatch(words)
            if match:
                found = match.groupdict()
                kinds = {'press_button': ('button', ''), 'stack_block': ('block', 'block'), 'fill_bowl': ('', 'bowl')}
                kind, target_kind = kinds[task]
                name = f'{found["object"]}_{kind}' if kind else found['object']
                target = f'{found["target"]}_{target_kind}' if target_kind else ''
                if name == target:
                    raise ValueError(f'{text!r}: nothing can be put onto itself')
                return Goal(task, name, target)
    raise ValueError(f'no task says {text!r}; for example: {"; ".join(_example(task) for task in TASKS)}')


def contrast(episode: Episode, near: float = NEAR) -> str:
    """An instruction that asks for another thing of the same scene, which is as near as the right one; '' without.

    The other object is as far from the tool's home and from the target, to within `near` [m]; or, the object being the
    same, the other target is as far from the tool's home and from the object. The sentence is built like the episode's.
    """
    goal, at = episode.goal, {p.name: np.array([p.x, p.y]) for p in episode.placements}

    def alike(one: str, other: str, partner: str) -> bool:
        ends = [np.array(HOME_TOOL), *([at[partner]] if partner else [])]
        return all(abs(np.linalg.norm(at[one] - end) - np.linalg.norm(at[other] - end)) <= near for end in ends)

    for name in at:
        if name in (goal.object, goal.target):
            continue
        if _sort(name) == _sort(goal.object) and alike(goal.object, name, goal.target):
            return _rephrased(episode.instruction, Goal(goal.task, name, goal.target))
        if goal.target and _sort(name) == _sort(goal.target) and alike(goal.target, name, goal.object):
            return _rephrased(episode.instruction, Goal(goal.task, goal.object, name))
    return ''


def any_instruction(episode: Episode, rng: np.random.Generator) -> str:
    """A sentence of the episode's task about any of the things in its scene that it can be about."""
    goal, names = episode.goal, [p.name for p in episode.placements]
    objects = [name for name in names if _sort(name) == _sort(goal.object)]
    chosen = str(rng.choice(objects))
    targets = [name for name in names if goal.target and _sort(name) == _sort(goal.target) and name != chosen]
    words = {'object': _word(chosen), 'target': _word(str(rng.choice(targets))) if targets else ''}
    return str(rng.choice(_PHRASINGS[episode.task])).format(**words)


def _rephrased(instruction: str, goal: Goal) -> str:
    """A sentence like `instruction` that asks for this goal."""
    words = {'object': _word(goal.object), 'target': _word(goal.target)}
    i = next(i for i, pattern in enumerate(_PATTERNS[goal.task]) if pattern.fullmatch(instruction))
    return _PHRASINGS[goal.task][i].format(**words)


def _sort(body: str) -> str:
    """What can take the place of what: button, block, bowl, produce."""
    return 'produce' if body in PRODUCE else body.split('_')[1]


def _word(body: str) -> str:
    return body.split('_', maxsplit=1)[0]


def _example(task: str) -> str:
    return _PHRASINGS[task][0].format(object='tomato' if task == 'fill_bowl' else 'red', target='blue')


def _patterns(task: str) -> list[re.Pattern[str]]:
    words = {'object': PRODUCE if task == 'fill_bowl' else tuple(COLOURS), 'target': tuple(COLOURS)}
    groups = {key: f'(?P<{key}>{"|".join(names)})' for key, names in words.items()}
    return [re.compile(phrasing.format(**groups)) for phrasing in _PHRASINGS[task]]


_PATTERNS = {task: _patterns(task) for task in TASKS}

_Prop = tuple[str, str, str, tuple[float, float, float] | None]  # name, slot, kind (key of FOOTPRINT), colour


def _coloured(rng: np.random.Generator, kind: str, count: int) -> list[_Prop]:
    colours = rng.permutation(list(COLOURS))[:count].tolist()
    return [(f'{colour}_{kind}', f'{kind}_{i}', kind, COLOURS[colour]) for i, colour in enumerate(colours)]


def _press_button(rng: np.random.Generator) -> tuple[list[_Prop], Goal]:
    buttons = _coloured(rng, 'button', 3)
    return buttons, Goal('press_button', buttons[0][0], '')


def _stack_block(rng: np.random.Generator) -> tuple[list[_Prop], Goal]:
    blocks = _coloured(rng, 'block', 3)
    return blocks, Goal('stack_block', blocks[0][0], blocks[1][0])


def _fill_bowl(rng: np.random.Generator) -> tuple[list[_Prop], Goal]:
    bowls = _coloured(rng, 'bowl', 2)
    items: list[_Prop] = [(name, name, name, None) for name in rng.permutation(list(PRODUCE))[:4].tolist()]
    return bowls + items, Goal('fill_bowl', items[0][0], bowls[0][0])


def _with_needed(props: list[_Prop], goal: Goal) -> list[_Prop]:
    """The same props, but the last ones that nobody asks for are replaced by those that the goal needs."""
    props = list(props)
    needed = [name for name in (goal.object, goal.target) if name]
    for name in needed:
        if name not in [prop[0] for prop in props]:
            i = max(i for i, prop in enumerate(props) if _sort(prop[0]) == _sort(name) and prop[0] not in needed)
            rgb = None if name in PRODUCE else COLOURS[_word(name)]
            props[i] = (name, *((name, name) if name in PRODUCE else props[i][1:3]), rgb)
    return props


_SAMPLERS = {'press_button': _press_button, 'stack_block': _stack_block, 'fill_bowl': _fill_bowl}


def _sample_layout(rng: np.random.Generator, kinds: list[str]) -> list[tuple[float, float, float]]:
    """Spots (x, y, yaw) whose footprints keep GAP between them; starts anew when the last props find no room."""
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
