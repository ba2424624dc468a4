from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from vla_core.motion.executor import ChunkExecutor
from vla_core.profile import RobotProfile
from vla_sim.expert import JUDGE, Expert
from vla_sim.kinematics import IKError, tool_down
from vla_sim.rollout import ExpertDriver, run_episode, success_rate, wilson
from vla_sim.tasks import TASKS
from vla_sim.tasks.skill import Measured, wrap
from vla_sim.world import World

PROFILE = RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup/config/robots/sim_panda.yaml')
SECOND = 1_000_000_000


@pytest.fixture(scope='module')
def expert():
    return Expert(PROFILE)


@pytest.fixture(scope='module')
def worlds():
    made: dict[str, World] = {}
    return lambda task: made.setdefault(task, World(task))


def run(world, expert, seed, watch=None):
    return run_episode(world, ExpertDriver(expert), ChunkExecutor(PROFILE), seed, watch=watch)


def begin(world, expert, seed=0):
    world.reset(seed)
    expert.begin(world.task, world.instruction)
    return world.objects()


@pytest.mark.parametrize('task', TASKS)
def test_an_episode_succeeds_and_its_chunks_agree_with_each_other(worlds, expert, task, monkeypatch):
    steps, plan = [], expert.plan
    monkeypatch.setattr(expert, 'plan', lambda t, *rest: steps.append((t, plan(t, *rest))) or steps[-1][1])
    result = run(worlds(task), expert, 3)
    assert result.success and not result.messages
    assert 5.0 < result.duration < 15.0 and result.peak_speed < 0.5

    # The same point of time means the same set-point in two chunks that follow each other; what a wait for a
    # measurement puts off lies further ahead than JUDGE.
    agree = []
    for (t0, old), (t1, new) in pairwise(steps):
        shift = round((t1 - t0) * 1e-9 / expert.dt)
        differ = np.abs(old.chunk.positions[shift:] - new.chunk.positions[:-shift]).max(axis=1)
        due = (np.arange(shift, expert.horizon) + 1) * expert.dt  # since t0
        assert differ[due <= JUDGE].max() < 1e-9
        agree.append(differ.max() < 1e-9)
    assert np.mean(agree) > 0.8

    # Each chunk is full, and moves gently.
    for _, step in steps:
        assert step.chunk.positions.shape == (expert.horizon, 7) and step.chunk.gripper.shape == (expert.horizon,)
        speed = np.abs(np.diff(step.chunk.positions, axis=0)) / expert.dt
        assert (speed <= 0.5 * PROFILE.velocity).all()

    # Progress goes through the sub-tasks once, in order.
    said = [step.subtask for _, step in steps]
    assert steps[-1][1].done and said[-1] == '' and steps[-1][1].remaining == ()
    for _, step in steps[:-1]:
        assert (*step.completed, step.subtask, *step.remaining) == steps[-1][1].completed
    assert list(dict.fromkeys(said)) == [*steps[-1][1].completed, '']


def test_a_stacked_block_is_square_on_the_other(worlds, expert):
    world = worlds('stack_block')
    assert run(world, expert, 0).success
    goal, objects = world.episode.goal, world.objects()
    offset = objects[goal.object][0] - objects[goal.target][0]
    seen = Measured(world.joint_positions, np.zeros(3), np.eye(3), 0.08, objects)
    assert np.hypot(offset[0], offset[1]) < 0.002
    assert abs(wrap(seen.yaw(goal.object) - seen.yaw(goal.target), np.pi / 2)) < np.radians(1)


@pytest.mark.parametrize('turned', [-0.7, 0.0, 0.7])
def test_a_hand_over_the_object_turns_there_and_goes_down(worlds, expert, turned):
    world = worlds('fill_bowl')
    objects = begin(world, expert, 5)
    name = world.episode.goal.object
    position, _ = objects[name]
    seen = Measured(world.joint_positions, np.zeros(3), np.eye(3), 0.08, objects)
    lies = wrap(seen.yaw(name), np.pi)
    above = position + np.array([0.01, 0.0, 0.06])
    q = expert.kinematics.inverse(above, tool_down(lies + turned), expert.kinematics.home)
    assert world.put_arm(q, 0.08)
    heights, errors = [], []
    for cycle in range(12):  # an arm that follows exactly
        q = expert.plan(cycle * SECOND // 5, q, 0.08, objects).chunk.positions[3]
        tool, rotation = expert.kinematics.forward(q)
        heights.append(tool[2] - position[2])
        errors.append(abs(wrap(np.arctan2(rotation[1, 0], rotation[0, 0]) - lies, np.pi)))
    assert max(heights) < 0.065 and min(heights) < 0.005
    low = [error for error, height in zip(errors, heights, strict=True) if height < 0.02]
    assert max(low) < 0.1


def test_it_reaches_again_for_a_block_that_was_pushed_away(worlds, expert):
    world, pushed = worlds('stack_block'), []

    def push(world, subtask):
        if not pushed and world.tool_pose()[0][2] < 0.2:
            pushed.append(True)
            position, _ = world.objects()[world.episode.goal.object]
            world._put(world.episode.placements[0].slot, position + np.array([-0.05, 0.02, 0.0]), 0.4)

    result = run(world, expert, 3, push)
    assert pushed and result.success
    assert result.messages == (f'the {world.episode.goal.object} moved by 54 mm; starting over',)
    assert result.peak_speed < 0.5


def test_it_fetches_again_what_slipped_from_the_hand(worlds, expert):
    world, dropped = worlds('stack_block'), []

    def drop(world, subtask):
        if not dropped and subtask.startswith('carry') and world.tool_pose()[0][2] > 0.09:
            dropped.append(True)
            start = world.episode.placements[0]
            world._put(start.slot, np.array([start.x, start.y, 0.03]), start.yaw)
            world._data.qvel[world.model.body(start.slot).dofadr[0] :][:6] = 0.0

    result = run(world, expert, 3, drop)
    assert dropped and result.success
    assert result.messages == (f'the {world.episode.goal.object} slipped from the hand; starting over',)


def test_giving_up_a_motion_brakes_along_it(worlds, expert):
    world = worlds('stack_block')
    objects = begin(world, expert)
    name, q = world.episode.goal.object, world.joint_positions
    commanded = [q]
    for cycle in range(12):  # an arm that follows exactly
        if cycle == 6:
            objects = {**objects, name: (objects[name][0] + [0.0, 0.03, 0.0], objects[name][1])}
        step = expert.plan(cycle * SECOND // 5, commanded[-1], 0.08, objects)
        commanded += list(step.chunk.positions[:4])
    assert step.message.endswith('starting over')
    speed = np.diff(commanded, axis=0) / expert.dt
    assert np.abs(speed[20]).max() > 0.05, 'it was moving when the block moved'
    assert (np.abs(np.diff(speed, axis=0)) / expert.dt <= 0.5 * PROFILE.acceleration).all()


def test_a_tool_off_its_frame_is_not_for_the_expert():
    with pytest.raises(ValueError, match='tool_offset'):
        Expert(replace(PROFILE, tool_offset=np.zeros(6)))


def test_it_holds_on_to_what_it_has_when_it_must_start_anew(worlds, expert):
    """After an operator stop in mid-carry the expert is restarted: the gripper stays closed, the task goes on."""
    world, stopped = worlds('stack_block'), []

    def stop(world, subtask):
        if not stopped and subtask.startswith('carry') and world.tool_pose()[0][2] > 0.06:
            stopped.append(True)
            expert.restart()
            step = expert.plan(world.time_ns, world.joint_positions, world.gripper_opening, world.objects())
            assert (step.chunk.gripper == 0.0).all() and step.subtask.startswith('carry')

    result = run(world, expert, 3, stop)
    assert stopped and result.success and not result.messages


def test_an_arm_that_does_not_follow_makes_it_give_up_in_the_end(worlds, expert):
    world = worlds('press_button')
    objects, q = begin(world, expert), world.joint_positions
    messages = []
    for cycle in range(200):
        step = expert.plan(cycle * SECOND // 5, q, 0.08, objects)
        messages.append(step.message)
        if step.done:
            break
    assert step.done and step.subtask, 'done, but not with the task'
    assert step.message == 'the arm does not follow the commanded path; gave up'
    assert np.abs(step.chunk.positions - q).max() < 1e-9
    assert len(set(messages)) == 3  # all is well, starting over, gave up


def test_an_object_out_of_reach_is_an_error(worlds, expert):
    world = worlds('stack_block')
    objects = begin(world, expert)
    name = world.episode.goal.object
    objects[name] = (np.array([1.3, 0.0, 0.02]), objects[name][1])
    for cycle in range(2):  # and stays one
        with pytest.raises(IKError, match=f'cannot grasp the {name}: the tool cannot reach'):
            expert.plan(cycle * SECOND // 5, world.joint_positions, 0.08, objects)


def test_wrong_use_is_an_error_that_names_the_object(worlds):
    expert = Expert(PROFILE)
    with pytest.raises(ValueError, match='has no task'):
        expert.plan(0, PROFILE.home, 0.08, {})
    with pytest.raises(ValueError, match='one of task press_button, not of stack_block'):
        expert.begin('stack_block', 'press the red button')
    with pytest.raises(ValueError, match='no task has the instruction'):
        expert.begin('press_button', 'make tea')
    expert.begin('press_button', 'press the red button')
    with pytest.raises(ValueError, match='needs red_button_cap, seen are: red_button'):
        expert.plan(0, PROFILE.home, 0.08, {'red_button': (np.zeros(3), np.array([1.0, 0, 0, 0]))})


def test_success_rate_runs_every_seed_once_in_workers():
    seen = []
    rate = success_rate(
        PROFILE, 'press_button', range(3), processes=1, progress=lambda result: seen.append(result.seed)
    )
    assert sorted(seen) == [0, 1, 2] and [episode.seed for episode in rate.episodes] == [0, 1, 2]
    assert rate.successes == 3 and rate.rate == 1.0 and rate.failed == ()
    assert rate.interval == pytest.approx((0.4385, 1.0), abs=1e-4)


def test_wilson_interval():
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(98, 100) == pytest.approx((0.9300, 0.9945), abs=1e-4)
    for successes, trials in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match='is no proportion'):
            wilson(successes, trials)
