"""The node in this process, seen by another node over real DDS."""

import gc
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import rclpy
from domain_coordinator import domain_id
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Bool, Float64MultiArray, String
from tf2_msgs.msg import TFMessage

from vla_msgs.msg import Episode
from vla_msgs.srv import ResetEpisode
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns
from vla_sim.sim_node import SimNode

PROFILE = Path(__file__).parents[2] / 'vla_bringup/config/robots/sim_panda.yaml'
STREAMS = {
    'joint_states': (JointState, qos.SENSOR),
    'front/image_raw': (Image, qos.SENSOR),
    'front/camera_info': (CameraInfo, qos.SENSOR),
    'wrist/image_raw': (Image, qos.SENSOR),
    'sim/objects': (TFMessage, qos.SENSOR),
    'sim/episode': (Episode, qos.LATCHED),
    'sim/task': (String, qos.LATCHED),
    'sim/success': (Bool, qos.LATCHED),
    'sim/missed': (String, qos.LATCHED),
    'sim/wrong_object': (String, qos.LATCHED),
    'robot_description': (String, qos.LATCHED),
    '/clock': (Clock, qos.SENSOR),
    '/tf': (TFMessage, qos.STATUS),
    '/tf_static': (TFMessage, qos.LATCHED),
}


class Robot:
    """The simulator, and what an outsider hears of it and can ask it."""

    def __init__(self, context):
        self.sim = SimNode(context=context)
        self.node = Node('outsider', context=context)
        self.got = {topic: [] for topic in STREAMS}
        for topic, (kind, profile) in STREAMS.items():
            self.node.create_subscription(kind, topic, self.got[topic].append, profile)
        self.target = self.node.create_publisher(JointState, 'target_joint', qos.COMMAND)
        gripper = 'gripper/gripper_position_controller/commands'
        self.gripper = self.node.create_publisher(Float64MultiArray, gripper, qos.COMMAND)
        self.reset_client = self.node.create_client(ResetEpisode, 'sim/reset')
        self.parameter_client = self.node.create_client(SetParameters, 'sim/set_parameters')
        self.threads = []
        for node in (self.sim, self.node):
            executor = SingleThreadedExecutor(context=context)
            executor.add_node(node)
            thread = threading.Thread(target=executor.spin, daemon=True)
            thread.start()
            self.threads.append((executor, thread))

    def close(self):
        for executor, thread in self.threads:
            executor.shutdown()
            thread.join(5)
        self.sim.destroy_node()
        self.node.destroy_node()

    def until(self, condition, what, seconds=15.0):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f'waited in vain for: {what}'
            time.sleep(0.005)

    def more(self, topic, count):
        """Waits for new messages on a topic and returns them."""
        had = len(self.got[topic])
        self.until(lambda: len(self.got[topic]) >= had + count, f'{count} on {topic}')
        return self.got[topic][had:]

    def ask(self, client, request):
        assert client.wait_for_service(10)
        future = client.call_async(request)
        self.until(future.done, client.srv_name)
        return future.result()

    def reset(self, seed, task='', instruction=''):
        return self.ask(self.reset_client, ResetEpisode.Request(task=task, seed=seed, instruction=instruction))

    def set(self, name, value):
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return self.ask(self.parameter_client, request).results[0]

    def joints(self):
        return np.array(self.more('joint_states', 1)[-1].position)

    def send_until(self, positions, condition, what):
        def sent():
            self.target.publish(JointState(position=positions))
            return condition()

        self.until(sent, what)


@pytest.fixture(scope='module')
def robot():
    with domain_id() as domain:
        context = Context()
        arguments = ['--ros-args', '--params-file', str(PROFILE), '-p', 'image_size:=64', '-p', 'seed:=3']
        rclpy.init(args=arguments, context=context, domain_id=int(domain))
        made = Robot(context)
        made.until(lambda: all(made.got.values()), 'a first message on every topic')
        yield made
        made.close()
        context.try_shutdown()


def test_looks_like_the_robot(robot):
    state = robot.more('joint_states', 1)[0]
    assert list(state.name) == [f'panda_joint{i}' for i in range(1, 8)] + ['panda_finger_joint1', 'panda_finger_joint2']
    assert len(state.position) == len(state.velocity) == len(state.effort) == 9
    image = robot.more('front/image_raw', 1)[0]
    assert (image.width, image.height, image.encoding, image.step) == (64, 64, 'rgb8', 192)
    assert image.header.frame_id == 'front_camera_optical_frame'
    pixels = np.frombuffer(image.data, np.uint8)
    assert pixels.size == 64 * 64 * 3
    assert pixels.std() > 10

    def described():
        return any(info.header.stamp == image.header.stamp for info in robot.got['front/camera_info'])

    robot.until(described, 'the camera_info of that image')  # which is a message of its own, and may come after it
    assert '<robot' in robot.got['robot_description'][0].data
    assert robot.got['sim/task'][-1].data == robot.got['sim/episode'][-1].instruction
    assert robot.got['sim/episode'][-1].seed == 3
    assert not robot.got['sim/success'][-1].data


def test_rates_in_simulation_time(robot):
    for topic, period in (('joint_states', 10_000_000), ('front/image_raw', 100_000_000)):
        stamps = [to_ns(m.header.stamp) for m in robot.more(topic, 5)]
        assert np.median(np.diff(stamps)) == period, topic
    clock = [to_ns(m.clock) for m in robot.more('/clock', 5)]
    assert (np.diff(clock) > 0).all()


def test_frames_form_one_tree_under_the_base(robot):
    frames = [*robot.more('/tf', 1)[0].transforms, *robot.got['/tf_static'][-1].transforms]
    parent = {f.child_frame_id: f.header.frame_id for f in frames}
    assert len(parent) == len(frames)
    for leaf in ('panda_hand_tcp', 'wrist_camera_optical_frame', 'front_camera_optical_frame'):
        while leaf in parent:
            leaf = parent[leaf]
        assert leaf == 'panda_link0'


def test_reset_starts_the_episode_that_was_asked_for(robot):
    before = to_ns(robot.more('joint_states', 1)[0].header.stamp)
    answer = robot.reset(11, 'fill_bowl')
    assert answer.success
    robot.until(lambda: robot.got['sim/episode'][-1].seed == 11, 'the episode')
    episode = robot.got['sim/episode'][-1]
    assert (episode.task, episode.instruction) == ('fill_bowl', answer.instruction)
    assert to_ns(episode.header.stamp) >= before
    names = {t.child_frame_id for t in robot.more('sim/objects', 2)[-1].transforms}
    assert {name.split('_')[1] for name in names if '_' in name} == {'bowl'}
    assert len(names) == 6
    robot.more('front/image_raw', 2)
    assert robot.reset(12).success
    robot.until(lambda: robot.got['sim/episode'][-1].seed == 12, 'the same task again')
    assert robot.got['sim/episode'][-1].task == 'fill_bowl'
    assert robot.got['sim/episode'][-1].index == episode.index + 1


def test_a_scene_that_is_left_is_gone_without_the_garbage_collector(robot):
    gone = []
    gc.disable()
    try:
        for seed, task in enumerate(('stack_block', 'press_button', 'fill_bowl')):
            gone += [weakref.ref(robot.sim._world), weakref.ref(robot.sim._world.model)]
            assert robot.reset(seed, task).success
            robot.more('front/image_raw', 2)
        assert [ref() for ref in gone] == [None] * 6
    finally:
        gc.enable()


def test_reset_asks_for_another_task_on_request_and_reports_what_is_missed(robot):
    index = robot.got['sim/episode'][-1].index
    answer = robot.reset(11, 'fill_bowl', 'put the tomato in the blue bowl')
    assert answer.success and answer.instruction == 'put the tomato in the blue bowl'
    robot.until(lambda: robot.got['sim/episode'][-1].index == index + 1, 'the episode')
    assert robot.got['sim/episode'][-1].instruction == answer.instruction
    assert {'tomato', 'blue_bowl'} <= {t.child_frame_id for t in robot.more('sim/objects', 2)[-1].transforms}
    assert robot.got['sim/missed'][-1].data == 'reach' and robot.got['sim/wrong_object'][-1].data == ''
    answer = robot.reset(11, 'fill_bowl', 'press the red button')
    assert not answer.success and 'one of task press_button' in answer.message


def test_reset_refuses_what_is_not_there(robot):
    index = robot.got['sim/episode'][-1].index
    answer = robot.reset(1, 'sweep')
    assert not answer.success
    assert 'press_button, stack_block, fill_bowl' in answer.message
    answer = robot.reset(-5)
    assert not answer.success
    assert '0 or above' in answer.message
    assert robot.got['sim/episode'][-1].index == index


def test_an_unplugged_camera_is_silent_and_comes_back(robot):
    assert robot.set('camera_enabled.wrist', False).successful
    robot.more('front/image_raw', 2)
    had = len(robot.got['wrist/image_raw'])
    robot.more('front/image_raw', 3)
    assert len(robot.got['wrist/image_raw']) == had
    assert robot.set('camera_enabled.wrist', True).successful
    robot.more('wrist/image_raw', 1)


def test_set_points_are_followed_and_bad_ones_are_not(robot):
    assert robot.reset(1, 'press_button').success
    home = robot.joints()[:7]
    goal = home + 0.05
    robot.send_until(goal.tolist(), lambda: np.abs(robot.joints()[:7] - goal).max() < 0.003, 'the arm at its target')
    for bad in ([float('nan')] * 7, [0.0] * 6):
        for _ in range(10):
            robot.target.publish(JointState(position=bad))
            robot.more('joint_states', 1)
        assert np.abs(robot.joints()[:7] - goal).max() < 0.003
    robot.gripper.publish(Float64MultiArray(data=[0.5]))
    robot.until(lambda: abs(robot.joints()[7:].sum() - 0.04) < 0.002, 'the gripper half open')


def test_after_a_reset_the_arm_does_not_leap_to_old_set_points(robot):
    assert robot.reset(2).success
    home = robot.joints()[:7]
    for _ in range(30):
        robot.target.publish(JointState(position=(home + 0.5).tolist()))
        robot.more('joint_states', 1)
    assert np.abs(robot.joints()[:7] - home).max() < 0.001
    near = home + 0.02
    robot.send_until(near.tolist(), lambda: np.abs(robot.joints()[:7] - near).max() < 0.003, 'the arm follows again')


def test_two_masters_are_none(robot):
    assert robot.reset(3).success
    home = robot.joints()[:7]
    second = robot.node.create_publisher(JointState, 'target_joint', qos.COMMAND)
    robot.until(lambda: robot.sim._commanders == 2, 'the second publisher to be seen')
    for _ in range(20):
        second.publish(JointState(position=(home + 0.1).tolist()))
        robot.more('joint_states', 1)
    assert np.abs(robot.joints()[:7] - home).max() < 0.001
    robot.node.destroy_publisher(second)
    robot.until(lambda: robot.sim._commanders == 1, 'the second publisher gone')
    goal = home + 0.05
    robot.send_until(goal.tolist(), lambda: np.abs(robot.joints()[:7] - goal).max() < 0.003, 'the arm follows again')


def test_physics_waits_for_set_points_that_are_late(robot):
    commander, home = robot.sim._commander, robot.joints()[:7].tolist()

    def send():
        message = JointState(position=home)
        message.header.stamp = robot.more('/clock', 1)[-1].clock
        robot.target.publish(message)

    for _ in range(20):
        send()
    robot.until(lambda: commander.waited > 0.0, 'the patience to be over')
    commander._patience = 60.0
    for _ in range(3):
        for _ in range(20):
            send()
        robot.until(lambda: robot.sim._world.time_ns > commander._until, 'the next set-point to be late')
        assert robot.set('real_time_factor', 1.0).successful  # time passes
        assert robot.sim._world.time_ns <= commander._until + 5_000_000
        message = JointState(position=home)
        message.header.stamp = robot.got['/clock'][-1].clock
        robot.target.publish(message)
    commander._patience = 0.1
    robot.more('/clock', 20)


def test_real_time_factor_changes_live(robot):
    def speed():
        first, start = to_ns(robot.more('/clock', 1)[-1].clock), time.monotonic()
        last = to_ns(robot.more('/clock', 60)[-1].clock)
        return (last - first) * 1e-9 / (time.monotonic() - start)

    assert robot.set('real_time_factor', 0.5).successful
    robot.until(lambda: 0.2 < speed() < 0.7, 'half speed')
    assert robot.set('real_time_factor', 0.0).successful
    robot.until(lambda: speed() > 1.2, 'faster than real time')
    assert not robot.set('real_time_factor', -1.0).successful
    assert robot.set('real_time_factor', 1.0).successful
