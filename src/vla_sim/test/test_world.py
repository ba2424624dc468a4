import numpy as np
import pytest

from vla_sim.assets.robot import ARM_JOINTS, GRIP_FORCE, HOME, MAX_OPENING, TOOL, robot_only_model
from vla_sim.kinematics import Kinematics, tool_down
from vla_sim.tasks import HOME_TOOL, TASKS
from vla_sim.world import World


@pytest.fixture(scope='module')
def worlds():
    return {task: World(task) for task in TASKS}


@pytest.fixture(scope='module')
def kinematics():
    model = robot_only_model()
    limits = model.jnt_range[:7]
    return Kinematics(model, ARM_JOINTS, TOOL, lower=limits[:, 0], upper=limits[:, 1], home=HOME)


def move_tool(world, kinematics, position, yaw=0.0, seconds=1.0):
    """Straight to a pose with the tool pointing down, min-jerk, at 100 Hz."""
    start, q = world.tool_pose()[0], world._controller.target[0]
    ticks = round(seconds * 100)
    for u in (np.arange(ticks) + 1) / ticks:
        part = 10 * u**3 - 15 * u**4 + 6 * u**5
        q = kinematics.inverse(start + part * (np.asarray(position) - start), tool_down(yaw), q)
        world.set_target(q)
        world.step(10)
    world.step(200)


@pytest.mark.parametrize('task', TASKS)
def test_same_seed_same_motion_whatever_came_before(worlds, task):
    world, fresh = worlds[task], World(task)
    world.reset(3)
    world.set_target(HOME + 0.5)
    world.set_gripper(0.0)
    world.step(300)
    ends = []
    for w in (world, fresh):
        w.reset(7)
        w.set_target(HOME + 0.2)
        w.step(200)
        ends.append((w.joint_positions, {n: p.tolist() for n, (p, _) in w.objects().items()}, w.instruction))
    assert np.array_equal(ends[0][0], ends[1][0])
    assert ends[0][1:] == ends[1][1:]


@pytest.mark.parametrize('task', TASKS)
def test_every_episode_starts_at_rest_at_home_with_nothing_done(worlds, task):
    world = worlds[task]
    for seed in range(15):
        world.reset(seed)
        before = world.objects()
        world.step(400)
        assert not world.success()
        assert np.abs(world.joint_positions - HOME).max() < 0.035
        assert np.abs(world.joint_velocities).max() < 1e-3
        assert world.gripper_opening == pytest.approx(MAX_OPENING, abs=1e-3)
        for name, (position, _) in world.objects().items():
            assert np.linalg.norm(position - before[name][0]) < 0.002, name


def test_time_continues_over_resets(worlds):
    world = worlds['press_button']
    before = world.time_ns
    world.step(7)
    world.reset(1)
    assert world.time_ns == before + 7_000_000
    assert World('press_button', time_ns=world.time_ns).time_ns == world.time_ns


def test_the_arm_tracks_a_moving_target_closely_and_without_ringing(worlds):
    world = worlds['press_button']
    world.reset(0)
    start, worst = world.joint_positions, 0.0
    for k in range(400):
        t = k * 0.01
        amplitude = 0.3 * min(1.0, t)
        rate = 2 * np.pi * 0.3
        velocity = amplitude * rate * np.cos(rate * t) + (0.3 * np.sin(rate * t) if t < 1 else 0.0)
        target = start + amplitude * np.sin(rate * t)
        world.set_target(target, np.full(7, velocity))
        world.step(10)
        worst = max(worst, float(np.abs(world.joint_positions - target).max()))
    assert worst < 0.015
    world.reset(0)
    world.set_target(start + 0.05)
    overshoot = 0.0
    for _ in range(80):
        world.step(10)
        overshoot = max(overshoot, float((world.joint_positions - start).max() - 0.05))
    assert overshoot < 0.001
    assert world.joint_positions == pytest.approx(start + 0.05, abs=0.001)


def test_a_bad_target_changes_nothing(worlds):
    world = worlds['press_button']
    world.reset(0)
    start = world.joint_positions
    with pytest.raises(ValueError, match='not finite'):
        world.set_target(np.full(7, np.nan))
    with pytest.raises(ValueError, match='not finite'):
        world.set_gripper(float('nan'))
    world.step(200)
    assert world.joint_positions == pytest.approx(start, abs=1e-4)


def test_a_block_is_held_by_friction_alone_and_hardly_squeezed(worlds, kinematics):
    world = worlds['stack_block']
    world.reset(2)
    name, (position, quat) = world.episode.goal.object, world.objects()[world.episode.goal.object]
    yaw = 2 * np.arctan2(quat[3], quat[0])
    yaw = (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4
    move_tool(world, kinematics, position + np.array([0, 0, 0.1]), yaw)
    move_tool(world, kinematics, position, yaw)
    world.set_gripper(0.0)
    world.step(500)
    assert 0.0385 < world.gripper_opening < 0.0405
    assert np.abs(world.finger_state[2]).max() <= GRIP_FORCE + 1e-6
    offset = world.objects()[name][0] - world.tool_pose()[0]
    move_tool(world, kinematics, position + np.array([-0.05, 0.1, 0.15]), yaw, seconds=0.7)
    world.step(2000)
    assert world.objects()[name][0] - world.tool_pose()[0] == pytest.approx(offset, abs=0.003)
    assert not world.success()
    world.set_gripper(MAX_OPENING)
    world.step(600)
    assert world.objects()[name][0][2] < 0.05  # and falls when let go


def test_a_button_goes_down_under_the_fingers_and_springs_back(worlds, kinematics):
    world = worlds['press_button']
    world.reset(0)
    world.set_gripper(0.0)
    cap = f'{world.episode.goal.object}_cap'
    top = world.objects()[cap][0]
    move_tool(world, kinematics, top + np.array([0, 0, 0.08]))
    assert not world.success()
    move_tool(world, kinematics, top + np.array([0, 0, -0.003]))
    assert world.objects()[cap][0][2] < top[2] - 0.007
    assert world.success()
    move_tool(world, kinematics, top + np.array([0, 0, 0.08]))
    assert world.objects()[cap][0][2] == pytest.approx(top[2], abs=0.001)


def test_link_poses_chain_up_to_the_tool(worlds, kinematics):
    world = worlds['press_button']
    world.reset(4)
    world.step(50)
    links = world.link_poses()
    assert [child for _, child, _ in links][:7] == [f'panda_link{i}' for i in range(1, 8)]
    assert all(parent == 'panda_link0' for parent, child, _ in links if child == 'panda_link1')
    position, _ = kinematics.forward(world.joint_positions)
    assert world.tool_pose()[0] == pytest.approx(position, abs=1e-9)
    chain = {child: (parent, pose) for parent, child, pose in links}
    point, link = np.zeros(3), TOOL
    while link != 'panda_link0':
        link, (offset, (w, *xyz)) = chain[link]
        point = offset + point + 2 * np.cross(xyz, np.cross(xyz, point) + w * point)
    assert point == pytest.approx(position, abs=1e-9)


def test_the_home_of_the_tool_is_where_the_tasks_say(kinematics):
    assert kinematics.forward(HOME)[0][:2] == pytest.approx(HOME_TOOL, abs=1e-3)
