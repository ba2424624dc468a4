from dataclasses import replace

import numpy as np
import pytest

from vla_sim.tasks import task_of
from vla_sim.tasks.episode import Goal, SceneState

BUTTONS = Goal('press_button', 'red_button', '')
STACK = Goal('stack_block', 'red_block', 'blue_block')
BOWL = Goal('fill_bowl', 'tomato', 'blue_bowl')


def success_test(goal):
    return task_of(goal.task).success_test(goal)


def scene(**changes):
    state = SceneState(
        positions={
            'red_block': np.array([0.5, 0.0, 0.060]),
            'blue_block': np.array([0.5, 0.005, 0.020]),
            'tomato': np.array([0.4, 0.1, 0.032]),
            'blue_bowl': np.array([0.41, 0.1, 0.0]),
        },
        speeds=dict.fromkeys(('red_block', 'blue_block', 'tomato', 'blue_bowl'), 0.0),
        presses={'red_button': 0.0, 'blue_button': 0.0},
        tool=np.array([0.5, 0.0, 0.3]),
        opening=0.08,
    )
    return replace(state, **changes)


def moved(name, *position):
    return {'positions': scene().positions | {name: np.array(position)}}


def held_for(goal, state, seconds):
    test = success_test(goal)
    for _ in range(round(seconds / 0.01)):
        test.update(state, 0.01)
    return test.reached


@pytest.mark.parametrize('goal', [STACK, BOWL])
def test_done_only_after_it_has_held_for_a_while(goal):
    assert not held_for(goal, scene(), 0.2)
    assert held_for(goal, scene(), 0.4)


@pytest.mark.parametrize(
    ('goal', 'changes'),
    [
        (STACK, moved('red_block', 0.5, 0.0, 0.020)),  # beside, not on top
        (STACK, moved('red_block', 0.5, 0.030, 0.060)),  # hangs over the edge
        (STACK, {'tool': np.array([0.5, 0.0, 0.06])}),  # hand still there
        (STACK, {'opening': 0.04}),  # gripper closed
        (STACK, {'speeds': {'red_block': 0.1, 'blue_block': 0.0}}),  # falling
        (BOWL, moved('tomato', 0.5, 0.1, 0.028)),  # beside the bowl
        (BOWL, moved('tomato', 0.4, 0.1, 0.060)),  # above its rim
        (BOWL, {'tool': np.array([0.4, 0.1, 0.06])}),
    ],
)
def test_not_done(goal, changes):
    assert not held_for(goal, scene(**changes), 1.0)


def test_a_stack_that_falls_is_done_no_longer():
    test = success_test(STACK)
    for _ in range(50):
        test.update(scene(), 0.01)
    test.update(scene(**moved('red_block', 0.5, 0.0, 0.020)), 0.01)
    assert not test.reached


def test_a_pressed_button_stays_pressed_in_memory():
    test = success_test(BUTTONS)
    test.update(scene(presses={'red_button': 0.8, 'blue_button': 0.0}), 0.01)
    test.update(scene(), 0.01)
    assert test.reached


@pytest.mark.parametrize('first', [{'red_button': 0.6, 'blue_button': 0.0}, {'red_button': 0.0, 'blue_button': 0.5}])
def test_a_half_pressed_button_or_another_one_does_not_count(first):
    test = success_test(BUTTONS)
    test.update(scene(presses=first), 0.01)
    if first['blue_button']:  # once another one was touched, the right one comes too late
        test.update(scene(presses={'red_button': 1.0, 'blue_button': 0.0}), 0.01)
    assert not test.reached
