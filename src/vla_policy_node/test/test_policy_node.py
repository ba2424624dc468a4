"""The policy node over real DDS, in this process: a small world publishes cameras and joints, a fake model answers."""

import array
import gc
import math
import threading
import time
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import domain_coordinator
import numpy as np
import pytest
import rclpy
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import String

from vla_core.kinematics.arm import load_kinematics
from vla_core.profile import RobotProfile
from vla_core.stats import Window
from vla_model.policy import IMAGE, PLAN, POINTS, PolicyInfo, Prediction
from vla_model.tokens.prompt_texts import plan
from vla_model.types import TOOL, Chunk, Observation, Plan, PredictedImage
from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import ActionChunk, ExecutorStatus, VisualTrace
from vla_msgs.msg import PolicyStatus as S
from vla_policy_node.policy import foresight, inference_report
from vla_policy_node.policy.goals import MOST
from vla_policy_node.policy.inference_report import InferenceReport
from vla_policy_node.policy.policy_node import PolicyNode
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns, to_time

PROFILE = Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots' / 'sim_panda.yaml'
R = ExecuteInstruction.Result
WARM_UP = 'warm up'
CONFIGURE, CLEANUP = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP
ACTIVATE, DEACTIVATE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE


class FakeJob:
    """Done after `steps` steps, with what `result` returns."""

    def __init__(self, policy, steps, result):
        self.policy, self.left, self._result, self.result = policy, steps, result, None

    def step(self):
        self.policy.did.append('step')
        self.policy.held = not self.policy.pen.is_set()
        assert self.policy.pen.wait(20)
        self.left -= 1
        if self.left <= 0:
            self.result = self._result()
        return self.left <= 0


class FakePolicy:
    """Answers at once with the joints it saw; `spoil` changes the chunk or raises; `gate` closed: it thinks on."""

    info = PolicyInfo(
        'fake-1', True, ('front', 'wrist'), 7, 16, 0.05, gripper=True, outputs=frozenset({PLAN, IMAGE}),
        takes_prefix=True,
    )  # fmt: skip

    def __init__(self):
        self.seen, self.spoil, self.closed = [], None, False
        self.points = np.zeros((2, 0, 2))
        self.prefixes = []  # what each act was given
        self.planned, self.imagined = [], []  # (t_ref, steps) of each decode that was begun
        self.did = []  # 'act', 'step', 'prepare ...'
        self.unprepared = ''  # why no instruction can be prepared
        self.pen = threading.Event()  # closed: a step goes on
        self.pen.set()
        self.held = False  # a step found the pen closed
        self.words = lambda observation: f'I {observation.instruction}'
        self.gate = threading.Event()
        self.gate.set()

    def prepare(self, instruction):
        self.did.append(f'prepare {instruction}')
        if self.unprepared:
            raise ValueError(self.unprepared)

    def warm_up(self, runs=2):
        pass

    def example(self, grey):
        return Observation(0, {}, np.zeros(7), np.zeros(7), 0.0, WARM_UP)

    def start(self, output, observation, options=None):
        steps = options.steps
        if output == PLAN:
            self.planned.append((observation.t_ref, steps))
            return FakeJob(self, steps, lambda: Plan(observation.t_ref, self.words(observation), 1.0))
        self.imagined.append((observation.t_ref, steps))
        image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
        due = observation.t_ref + 800_000_000
        return FakeJob(self, steps, lambda: PredictedImage(observation.t_ref, due, image, 1.0))

    def close(self):
        self.closed = True

    def act(self, observation, prefix=None):
        chunk = Chunk(np.tile(observation.positions, (4, 1)), np.full(4, observation.gripper), 0.05)
        if observation.instruction == WARM_UP:
            return Prediction(chunk)
        self.seen.append(observation)
        self.prefixes.append(prefix)
        self.did.append('act')
        assert self.gate.wait(20)
        return Prediction(self.spoil(chunk) if self.spoil else chunk, self.points)


class World:
    """A node that plays robot, cameras, executor and user; what it publishes can be changed while it runs."""

    def __init__(self, node):
        self.node, self.profile = node, RobotProfile.load(PROFILE)
        self.cameras, self.size = {'front', 'wrist'}, (8, 6)
        self.encoding, self.positions, self.names = 'rgb8', [0.1 * i for i in range(9)], None
        self.clock = None  # [s] of the simulated clock; None: real time
        self.status, self.chunks, self.diagnostics = [], [], []
        self.images = {c: node.create_publisher(Image, f'{c}/image_raw', qos.SENSOR_OUT) for c in ('front', 'wrist')}
        self.joints = node.create_publisher(JointState, 'joint_states', qos.SENSOR_OUT)
        self.clocks = node.create_publisher(Clock, '/clock', 10)
        self.instruction = node.create_publisher(String, 'policy/instruction', qos.LATCHED)
        self.executor = node.create_publisher(ExecutorStatus, 'executor/status', qos.LATCHED)
        self.executor.publish(ExecutorStatus())
        self.told = [
            node.create_subscription(S, 'policy/status', self.status.append, qos.STATUS),
            node.create_subscription(DiagnosticArray, '/diagnostics', self.diagnostics.append, qos.STATUS),
        ]
        node.create_subscription(ActionChunk, 'action_chunk', self.chunks.append, qos.CHUNK)
        self.change = node.create_client(ChangeState, 'policy/change_state')
        self.get = node.create_client(GetState, 'policy/get_state')
        self.execute = ActionClient(node, ExecuteInstruction, 'policy/execute_instruction')
        self.feedback, self.plans, self.predicted = [], [], []
        node.create_timer(0.03, self.publish)

    def publish(self):
        stamp = self.node.get_clock().now().to_msg()
        if self.clock is not None:
            self.clock += 0.03
            stamp = to_time(round(self.clock * 1e9))
            self.clocks.publish(Clock(clock=stamp))
        names = self.names or [*self.profile.joint_names, *self.profile.gripper_joint_names]
        msg = JointState(name=list(names), position=list(self.positions), velocity=[0.0] * len(names))
        msg.header.stamp = stamp
        self.joints.publish(msg)
        for camera in self.cameras:
            width, height = self.size
            image = Image(width=width, height=height, encoding=self.encoding, step=3 * width)
            image.header.stamp, image.header.frame_id = stamp, f'{camera}_optical'
            image.data = array.array('B', bytes(3 * width * height))
            self.images[camera].publish(image)

    def wait(self, condition, what='', timeout=20.0):
        end = time.monotonic() + timeout
        while not (result := condition()):
            newest = self.status[-1] if self.status else None
            assert time.monotonic() < end, f'not within {timeout} s: {what}; newest status {newest}'
            time.sleep(0.005)
        return result

    def call(self, client, request):
        assert client.wait_for_service(20.0)
        future = client.call_async(request)
        self.wait(future.done, client.srv_name)
        return future.result()

    def transition(self, number):
        return self.call(self.change, ChangeState.Request(transition=Transition(id=number))).success

    @property
    def state(self):
        return self.call(self.get, GetState.Request()).current_state.label

    def code(self, code, state=None, says=''):
        """Waits for a status that comes from now on, has this code and state, and says this."""
        first = len(self.status)

        def match(s):
            return s.code == code and state in (None, s.state) and says in s.message

        return self.wait(lambda: next(filter(match, self.status[first:]), None), f'status code {code} that says {says}')

    def silent(self, code):
        """Waits for two statuses of this code between which no chunk came; what came before the first was under way."""
        self.code(code)
        count = len(self.chunks)
        self.code(code)
        assert len(self.chunks) == count

    def new_chunks(self, count=1):
        first = len(self.chunks)
        self.wait(lambda: len(self.chunks) >= first + count, 'chunks')
        return self.chunks[first:]

    def look(self):
        """Subscribe to what the model says and sees of what comes."""
        plans = self.node.create_subscription(String, 'policy/plan_text', self.plans.append, qos.LATCHED)
        images = self.node.create_subscription(Image, 'policy/predicted_image', self.predicted.append, qos.SENSOR)
        return plans, images

    def diagnosis(self, kind):
        """The newest of this kind, or None."""
        statuses = self.diagnostics[-1].status if self.diagnostics else []
        return next((s for s in statuses if s.name == f'/policy: {kind}'), None)

    def say(self, instruction):
        self.instruction.publish(String(data=instruction))

    def goal(self, instruction, seconds=0, plan=False):
        """Sends a goal; returns its handle."""
        assert self.execute.wait_for_server(20.0)
        request = ExecuteInstruction.Goal(instruction=instruction, time_limit=Duration(sec=seconds), plan=plan)
        future = self.execute.send_goal_async(request, feedback_callback=lambda m: self.feedback.append(m.feedback))
        self.wait(future.done, 'goal response')
        return future.result()

    def result(self, handle):
        future = handle.get_result_async()
        self.wait(future.done, 'result of the goal')
        return future.result()


@pytest.fixture
def domain():
    with domain_coordinator.domain_id() as number:
        yield int(number)


@pytest.fixture
def start(domain, tmp_path, monkeypatch):
    """start(policy, **parameters) -> (world, node), spun in a thread."""
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path))
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain, signal_handler_options=rclpy.SignalHandlerOptions.NO)
    executor = SingleThreadedExecutor(context=context)
    nodes, failures, worlds, leaving = [], [], [], threading.Event()

    def spin():
        try:
            executor.spin()
        except BaseException as error:
            if not leaving.is_set():  # as in run.py
                failures.append(error)

    def make(policy=None, load=None, **parameters):
        world_node = rclpy.create_node('world', context=context, use_global_arguments=False)
        node = PolicyNode(
            load=load or (lambda model, options: policy),
            context=context,
            use_global_arguments=False,
            cli_args=['--ros-args', '--params-file', str(PROFILE)],
            parameter_overrides=[Parameter(k, value=v) for k, v in {'rate': 100.0, **parameters}.items()],
        )
        nodes.extend([world_node, node])
        world = World(world_node)
        worlds.append(world)
        executor.add_node(world_node)
        executor.add_node(node)
        thread.start()
        return world, node

    thread = threading.Thread(target=spin, daemon=True)
    yield make
    leaving.set()
    if thread.is_alive():
        executor.shutdown(timeout_sec=5)
        thread.join(5)
    for world in worlds:
        world.execute.destroy()
    for node in nodes:
        if isinstance(node, PolicyNode):
            node.tear_down()
        node.destroy_node()
    nodes.clear()
    worlds.clear()
    rclpy.shutdown(context=context)
    gc.collect()  # lifecycle services live as long as their node's Python object
    assert not failures, failures


def activate(world):
    assert world.transition(CONFIGURE)
    assert world.transition(ACTIVATE)


def test_a_node_that_is_cleaned_up_holds_no_model_without_the_garbage_collector(start):
    made = []

    def load(model, options):
        policy = FakePolicy()
        made.append(weakref.ref(policy))
        return policy

    world, _ = start(load=load)
    gc.disable()
    try:
        for count in (1, 2):
            activate(world)
            world.say('press the red button')
            world.new_chunks(1)
            assert world.transition(DEACTIVATE)
            assert world.transition(CLEANUP)
            assert [ref() for ref in made] == [None] * count
    finally:
        gc.enable()


def test_chunks_answer_what_the_streams_hold(start):
    policy = FakePolicy()
    world, _ = start(policy, drive=True)
    world.executor.publish(ExecutorStatus(epoch=7))
    activate(world)
    world.code(S.NO_INSTRUCTION, S.STATE_IDLE)
    assert not world.chunks
    world.say('  press the red button ')
    chunks = world.new_chunks(3)
    sequences = [c.sequence for c in chunks]
    assert sequences == sorted(set(sequences))
    newest = world.wait(lambda: world.chunks[-1].epoch == 7 and world.chunks[-1], 'epoch of the executor')
    assert (newest.source, newest.header.frame_id) == ('/policy', 'panda_link0')
    assert (newest.shadow, newest.horizon, newest.dt) == (False, 4, 0.05)
    assert tuple(newest.joint_names) == world.profile.joint_names
    np.testing.assert_allclose(np.reshape(newest.positions, (4, 7))[0], world.positions[:7])
    np.testing.assert_allclose(newest.gripper, [1.5] * 4)
    assert (newest.instruction, newest.model_id) == ('press the red button', 'fake-1')
    seen = policy.seen[-1]
    assert seen.instruction == 'press the red button'
    assert {c: i.shape for c, i in seen.images.items()} == {'front': (6, 8, 3), 'wrist': (6, 8, 3)}
    status = world.code(S.OK, S.STATE_RUNNING)
    assert list(status.streams) == ['front', 'wrist', 'joints', 'gripper']
    assert max(status.stream_ages) < 0.3
    assert 0 <= status.latency < 1
    assert status.skew < 0.1
    assert status.chunks > 0
    assert to_ns(status.t_ref) > 0
    assert 0 < status.inference_p50 <= status.inference_p95 <= status.inference_p99


def test_an_arm_without_a_gripper_is_driven_by_a_model_without_one_and_by_no_other(start):
    policy = FakePolicy()
    world, _ = start(policy, **{'robot.gripper_joint_names': ['']})
    world.names, world.positions = world.profile.joint_names, world.positions[:7]
    assert not world.transition(CONFIGURE)
    assert 'sees and moves a gripper, the robot profile panda has none' in world.code(S.OK, S.STATE_INACTIVE).message
    policy.info = replace(FakePolicy.info, gripper=False)
    activate(world)
    world.say('go')
    world.new_chunks(2)
    assert list(world.code(S.OK, S.STATE_RUNNING).streams) == ['front', 'wrist', 'joints']


def test_an_executor_that_holds_is_told_to_the_client(start):
    world, _ = start(FakePolicy(), drive=True)
    activate(world)
    handle = world.goal('go')
    assert handle.accepted
    world.wait(lambda: world.feedback and world.feedback[-1].code == S.OK, 'all is well')
    E = ExecutorStatus
    for status, says in (
        (E(hold_reason=E.HOLD_EMERGENCY_STOP, message='pressed'), 'the executor holds, EMERGENCY_STOP: pressed'),
        (E(hold_reason=E.HOLD_DEACTIVATED), 'the executor holds, DEACTIVATED: activate it'),
        (E(source='/expert'), '/expert drives the arm'),
    ):
        world.executor.publish(status)
        world.code(S.EXECUTOR_HOLDS, S.STATE_RUNNING, says)
        world.wait(lambda s=status: world.feedback[-1].hold_reason == s.hold_reason, 'the code of the hold')
        world.wait(lambda s=says: s in world.feedback[-1].message, 'the reason')
    world.executor.publish(E(source='/policy'))
    world.wait(lambda: world.feedback and world.feedback[-1].code == S.OK, 'all is well again')


class EndEffectorModel(FakePolicy):
    """Lowers the tool by 5 mm a step; of a grey scene it asks for what no arm reaches."""

    info = replace(FakePolicy.info, horizon=4, action_space='ee_delta', state_dim=8, action_dim=7)

    def act(self, observation, prefix=None):
        down = -5.0 if observation.instruction == WARM_UP else -0.005
        return Prediction(Chunk(np.tile([0.0, 0.0, down, 0.0, 0.0, 0.0], (4, 1)), np.full(4, 0.04), 0.05, space=TOOL))


def test_a_model_of_tool_poses_moves_joints(start, panda_urdf):
    world, _ = start(EndEffectorModel(), robot_description_file=str(panda_urdf))
    home = world.profile.home
    world.positions = [*home, 0.02, 0.02]
    activate(world)
    world.say('down')
    steps = np.reshape(world.new_chunks()[0].positions, (4, 7))
    tool = load_kinematics(panda_urdf.read_text(), world.profile)
    heights = [tool(q)[0][2] for q in (home, *steps)]
    np.testing.assert_allclose(np.diff(heights), -0.005, atol=1e-4)


def test_a_model_of_tool_poses_needs_the_robot_description(start):
    world, node = start(EndEffectorModel(), robot_description_timeout=0.1)
    assert not world.transition(CONFIGURE)
    assert 'ee_delta actions needs the robot description' in node._report.note


def test_shadow_is_the_default_and_never_stops_anybody(start):
    world, _ = start(FakePolicy())
    activate(world)
    world.say('stack the blocks')
    assert all(c.shadow for c in world.new_chunks(2))
    assert world.transition(DEACTIVATE)
    world.code(S.OK, S.STATE_INACTIVE)
    assert all(c.horizon > 0 for c in world.chunks)


def test_deactivate_stops_the_arm_and_nothing_follows(start):
    policy = FakePolicy()
    world, _ = start(policy, drive=True)
    activate(world)
    world.say('go')
    world.new_chunks()
    policy.gate.clear()  # the model is thinking when the node is deactivated
    count = len(policy.seen)
    world.wait(lambda: len(policy.seen) > count, 'an inference under way')
    assert world.transition(DEACTIVATE)
    world.wait(lambda: world.chunks[-1].horizon == 0, 'stop chunk')
    stop = world.chunks[-1]
    assert not stop.shadow
    assert stop.sequence > world.chunks[-2].sequence
    policy.gate.set()
    world.code(S.OK, S.STATE_INACTIVE)
    assert world.chunks[-1] is stop
    assert world.transition(ACTIVATE)
    world.code(S.NO_INSTRUCTION, S.STATE_IDLE)  # the instruction from before is not taken up again
    world.say('go again')
    assert world.new_chunks()[0].sequence > stop.sequence


def test_a_chunk_thought_out_while_the_arm_began_to_brake_has_the_old_epoch(start):
    policy = FakePolicy()
    world, _ = start(policy, drive=True)
    world.executor.publish(ExecutorStatus(epoch=1))
    activate(world)
    world.say('go')
    world.wait(lambda: world.chunks and world.chunks[-1].epoch == 1, 'first epoch')
    policy.gate.clear()
    count = len(policy.seen)
    world.wait(lambda: len(policy.seen) > count, 'an inference under way')
    thinking = policy.seen[-1].t_ref
    world.executor.publish(ExecutorStatus(epoch=2))
    world.wait(lambda: world.status[-1].epoch == 2, 'the new epoch heard')
    policy.gate.set()
    world.wait(lambda: world.chunks[-1].epoch == 2, 'chunks of the new epoch')
    assert 2 not in {c.epoch for c in world.chunks if to_ns(c.header.stamp) <= thinking}


def test_parameters_that_would_have_no_effect_are_refused(start):
    world, node = start(FakePolicy())
    activate(world)
    for name, value in (('drive', True), ('rate', 1.0), ('model', 'other')):
        result = node.set_parameters([Parameter(name, value=value)])[0]
        assert not result.successful
        assert name in result.reason
    assert world.transition(DEACTIVATE)
    assert node.set_parameters([Parameter('drive', value=True)])[0].successful
    assert world.transition(CLEANUP)
    assert node.set_parameters([Parameter('rate', value=1.0)])[0].successful


def test_lifecycle_round_and_round(start):
    policy = FakePolicy()
    world, node = start(policy)
    for _ in range(3):
        assert world.state == 'unconfigured'
        assert not world.transition(ACTIVATE)  # not allowed now: refused, the node lives on
        activate(world)
        assert world.state == 'active'
        world.say('go')
        world.new_chunks()
        assert world.transition(DEACTIVATE)
        assert world.transition(CLEANUP)
        assert policy.closed
        assert not [t for t in threading.enumerate() if t.name == 'inference']
        assert not [s.topic_name for s in node.subscriptions if s.topic_name in ('/joint_states', '/front/image_raw')]


def test_shutdown_from_active_stops_the_arm(start):
    world, _ = start(FakePolicy(), drive=True)
    activate(world)
    world.say('go')
    world.new_chunks()
    assert world.transition(Transition.TRANSITION_ACTIVE_SHUTDOWN)
    world.wait(lambda: world.chunks[-1].horizon == 0, 'stop chunk')
    assert world.state == 'finalized'


def test_a_model_that_does_not_load_leaves_the_node_unconfigured_and_it_can_be_configured_again(start):
    def load(model, options):
        if model != 'good':
            raise FileNotFoundError(f'no checkpoint at {model}: give a folder')
        return FakePolicy()

    world, node = start(load=load, model='/nowhere')
    assert not world.transition(CONFIGURE)
    assert world.state == 'unconfigured'
    world.wait(lambda: world.status and '/nowhere' in world.status[-1].message, 'the reason in the status')
    node.set_parameters([Parameter('model', value='good')])
    activate(world)
    world.say('go')
    world.new_chunks()


def wrong_model(model, options):
    policy = FakePolicy()
    policy.info = replace(FakePolicy.info, cameras=('front', 'chest'))
    return policy


def test_random_weights_may_not_drive_outside_the_simulator(start):
    def load(model, options):
        policy = FakePolicy()
        policy.info = replace(FakePolicy.info, trained=False)
        return policy

    world, node = start(load=load, drive=True)
    assert world.transition(CONFIGURE)
    assert not world.transition(ACTIVATE)
    assert world.state == 'inactive'
    node.set_parameters([Parameter('drive', value=False)])
    assert world.transition(ACTIVATE)


@pytest.mark.parametrize(
    ('parameters', 'load', 'says'),
    [
        ({'camera_topics': ['front/image_raw']}, None, 'camera_topics as many'),
        ({'cameras': ['front', 'joints']}, None, "not 'joints'"),
        ({'dtype': 'int3'}, None, 'dtype'),
        ({'rate': -1.0}, None, 'rate'),
        ({'camera_max_age': 'soon'}, None, 'camera_max_age'),
        ({'robot.home': [0.0]}, None, 'robot.home'),
        ({'plan_rate': 11.0}, None, 'plan_rate'),
        ({'plan_tokens': 8, 'plan_steps': 9}, None, 'plan_steps is 9'),
        ({}, wrong_model, 'chest'),
    ],
)
def test_a_wrong_parameter_is_named(start, parameters, load, says):
    world, _ = start(FakePolicy(), load=load, **parameters)
    assert not world.transition(CONFIGURE)
    world.wait(lambda: world.status and says in world.status[-1].message, f'a status that says {says}')
    assert world.state == 'unconfigured'


def test_a_camera_that_goes_and_comes_back(start):
    world, _ = start(FakePolicy())
    world.cameras = {'front'}
    activate(world)
    world.say('go')
    missing = world.code(S.CAMERA_MISSING, S.STATE_WAITING, says='wrist/image_raw')
    assert missing.stream_ages[1] == -1.0
    assert not world.chunks
    world.cameras = {'front', 'wrist'}
    world.code(S.OK, S.STATE_RUNNING)
    world.new_chunks()
    world.cameras = {'wrist'}
    world.code(S.CAMERA_STALE, S.STATE_WAITING, says='front')
    world.silent(S.CAMERA_STALE)
    world.cameras = {'front', 'wrist'}
    world.code(S.OK, S.STATE_RUNNING)
    world.new_chunks()


def test_bad_messages_are_named_and_nothing_is_inferred_until_a_good_one(start):
    world, _ = start(FakePolicy())
    activate(world)
    world.say('go')
    world.new_chunks()
    good = list(world.positions)

    world.positions = [math.nan, *good[1:]]
    world.code(S.JOINTS_BAD, S.STATE_WAITING, says='panda_joint1')
    world.silent(S.JOINTS_BAD)
    world.positions = good
    world.code(S.OK, S.STATE_RUNNING)

    world.names = [f'fr3_joint{i}' for i in range(9)]
    world.code(S.JOINTS_STALE, S.STATE_WAITING, says='fr3_joint0')  # somebody else's joints are passed by
    world.names = [*world.profile.joint_names[:6], 'a', 'b', 'c']
    world.code(S.JOINTS_BAD, S.STATE_WAITING, says="lacks ['panda_joint7']")
    world.names = None
    world.code(S.OK, S.STATE_RUNNING)

    world.encoding = '16UC1'
    world.code(S.CAMERA_BAD, S.STATE_WAITING, says="'16UC1'")
    world.encoding = 'bgr8'
    world.code(S.OK, S.STATE_RUNNING)
    world.new_chunks()


def test_a_robot_of_another_name_is_told_from_the_start(start):
    world, _ = start(FakePolicy())
    world.names = [f'fr3_joint{i}' for i in range(9)]
    activate(world)
    world.say('go')
    world.code(S.JOINTS_BAD, S.STATE_WAITING, says='robot profile')


def test_an_image_of_another_size_than_agreed(start):
    world, _ = start(FakePolicy(), image_width=640)
    activate(world)
    world.say('go')
    world.code(S.CAMERA_BAD, S.STATE_WAITING, says='8 x 6, expected 640')


def test_a_model_that_fails_is_told_and_tried_again(start):
    policy = FakePolicy()

    def fail(chunk):
        raise RuntimeError('out of memory')

    world, _ = start(policy)
    activate(world)
    policy.spoil = fail
    world.say('go')
    world.code(S.INFERENCE_FAILED, S.STATE_WAITING, says='out of memory')
    policy.spoil = lambda chunk: Chunk(chunk.positions * np.nan, chunk.gripper, chunk.dt)
    world.code(S.INFERENCE_FAILED, S.STATE_WAITING, says='NaN')
    assert not world.chunks
    world.wait(lambda: world.diagnostics and world.diagnostics[-1].status[0].level == DiagnosticStatus.ERROR, 'level')
    policy.spoil = None
    world.code(S.OK, S.STATE_RUNNING)
    world.new_chunks()


def test_an_instruction_is_prepared_once_and_before_it_is_acted_on(start):
    policy = FakePolicy()
    world, _ = start(policy)
    activate(world)
    policy.unprepared = 'the graph differs'
    world.say('go')
    world.code(S.INFERENCE_FAILED, S.STATE_WAITING, says='the graph differs')
    assert not policy.seen and not world.chunks
    policy.unprepared = ''
    world.code(S.OK, S.STATE_RUNNING)
    world.new_chunks()
    did = [what for what in policy.did if what != 'step']
    first = did.index('act')
    assert set(did[:first]) == {'prepare go'} and set(did[first:]) == {'act'}


@pytest.mark.parametrize(
    'chunk',
    [
        Chunk(np.zeros((4, 6)), np.zeros(4), 0.05),
        Chunk(np.zeros((0, 7)), np.zeros(0), 0.05),
        Chunk(np.zeros((4, 7)), np.zeros(3), 0.05),
        Chunk(np.zeros((4, 7)), np.zeros(4), 0.0),
        Chunk(np.zeros((4, 7)), np.full(4, np.inf), 0.05),
    ],
)
def test_a_chunk_of_wrong_shape_is_never_published(start, chunk):
    policy = FakePolicy()
    world, _ = start(policy)
    activate(world)
    policy.spoil = lambda _: chunk
    world.say('go')
    world.code(S.INFERENCE_FAILED, S.STATE_WAITING)
    assert not world.chunks


def test_bad_instructions_are_refused_and_the_old_one_stays(start):
    world, _ = start(FakePolicy(), instruction_max_length=20)
    activate(world)
    world.say('   ')
    world.code(S.BAD_INSTRUCTION, S.STATE_IDLE, says='empty')
    world.say('good')
    world.new_chunks()
    world.say('x' * 21)
    bad = world.code(S.BAD_INSTRUCTION, S.STATE_RUNNING)
    assert '21 characters' in bad.message
    assert bad.instruction == 'good'
    assert world.new_chunks()[0].instruction == 'good'
    world.say('also good')
    world.code(S.OK, S.STATE_RUNNING)


def test_an_instruction_from_before_is_followed_once_active(start):
    world, _ = start(FakePolicy())
    world.say('latched')
    activate(world)
    assert world.new_chunks()[0].instruction == 'latched'


@pytest.mark.parametrize('profile', [qos.LATCHED, qos.STATUS, qos.SENSOR])
def test_an_instruction_counts_once_whatever_qos_its_publisher_has(start, profile):
    world, node = start(FakePolicy(), instruction_change='supersede')
    activate(world)
    world.node.destroy_publisher(world.instruction)
    world.instruction = world.node.create_publisher(String, 'policy/instruction', profile)
    world.wait(world.instruction.get_subscription_count, 'matched')
    taken = []
    node._session.changed.append(taken.append)
    expected = ['press the red button', 'press the blue button'] * 2  # the same words supersede again
    for i, words in enumerate(expected):
        world.say(words)
        world.wait(lambda count=i + 1: len(taken) >= count, 'it is taken')
    world.new_chunks(3)
    assert taken == expected


def test_goal_until_the_time_limit(start):
    world, _ = start(FakePolicy(), drive=True)
    activate(world)
    handle = world.goal('press the button', seconds=1)
    assert handle.accepted
    response = world.result(handle)
    assert response.status == GoalStatus.STATUS_SUCCEEDED
    result = response.result
    assert result.outcome == R.OUTCOME_TIME_LIMIT
    assert result.duration == pytest.approx(1.0, abs=0.5)
    assert result.chunks > 3
    assert 0 < result.inference_p50 <= result.inference_p99
    assert world.feedback[-1].sequence > 0
    assert world.feedback[-1].code == S.OK
    world.wait(lambda: world.chunks[-1].horizon == 0, 'stop chunk')
    world.code(S.NO_INSTRUCTION, S.STATE_IDLE)
    assert world.chunks[-1].horizon == 0


def test_what_is_in_force_is_a_topic_also_where_it_came_as_a_goal(start):
    world, _ = start(FakePolicy())
    topic, words = 'policy/instruction_in_force', []
    activate(world)
    assert world.node.count_publishers(topic) == 0
    handle = world.goal('press the button')
    world.wait(lambda: world.node.count_publishers(topic), 'the topic')
    world.node.create_subscription(String, topic, lambda msg: words.append(msg.data), qos.LATCHED)
    world.wait(lambda: words == ['press the button'], 'the goal, for who comes later')
    world.say('press the blue button')
    world.wait(lambda: words[1:] == ['press the blue button'], 'other words')
    world.wait(handle.cancel_goal_async().done, 'cancelled')
    world.wait(lambda: world.node.count_publishers(topic) == 0, 'nothing is in force')


def test_cancel_while_the_model_thinks(start):
    policy = FakePolicy()
    world, _ = start(policy, drive=True)
    activate(world)
    handle = world.goal('press the button')
    world.new_chunks()
    policy.gate.clear()
    count = len(policy.seen)
    world.wait(lambda: len(policy.seen) > count, 'an inference under way')
    cancel = handle.cancel_goal_async()
    world.wait(cancel.done, 'cancel response')
    assert len(cancel.result().goals_canceling) == 1
    response = world.result(handle)
    assert (response.status, response.result.outcome) == (GoalStatus.STATUS_CANCELED, R.OUTCOME_CANCELLED)
    world.wait(lambda: world.chunks[-1].horizon == 0, 'stop chunk')
    stop = world.chunks[-1]
    policy.gate.set()
    world.code(S.NO_INSTRUCTION, S.STATE_IDLE)
    assert world.chunks[-1] is stop


def test_superseded_by_newer_goals_and_instructions_where_that_is_asked_for(start):
    world, _ = start(FakePolicy(), instruction_change='supersede')
    activate(world)
    first = world.goal('first')
    second = world.goal('second')
    assert world.result(first).result.outcome == R.OUTCOME_SUPERSEDED
    world.wait(lambda: world.chunks and world.chunks[-1].instruction == 'second', 'chunks of the second goal')
    world.say('third')
    response = world.result(second)
    assert (response.status, response.result.outcome) == (GoalStatus.STATUS_ABORTED, R.OUTCOME_SUPERSEDED)
    assert 'third' in response.result.message
    world.wait(lambda: world.chunks[-1].instruction == 'third', 'chunks of the third instruction')


def test_other_words_change_a_goal_without_ending_it(start):
    world, _ = start(FakePolicy(), drive=True, instruction_change='seamless')
    activate(world)
    handle = world.goal('first', seconds=3)
    world.new_chunks()
    world.say('second')
    world.wait(lambda: world.feedback and world.feedback[-1].instruction == 'second', 'feedback with the new words')
    world.wait(lambda: world.chunks[-1].instruction == 'second', 'chunks for the new words')
    world.say(' second ')  # the same words again
    assert all(chunk.horizon > 0 for chunk in world.chunks)  # the motion was never stopped
    response = world.result(handle)
    result = response.result
    assert (response.status, result.outcome) == (GoalStatus.STATUS_SUCCEEDED, R.OUTCOME_TIME_LIMIT)
    assert (result.instruction, result.changes) == ('second', 1)
    world.wait(lambda: result.chunks == sum(chunk.horizon > 0 for chunk in world.chunks), 'all of its chunks')
    assert 0 < result.latency_p50 <= result.latency_p95 <= result.latency_p99


def test_goals_of_one_run_go_along_and_end_together(start):
    world, _ = start(FakePolicy(), drive=True, instruction_change='seamless')
    activate(world)
    first, short, newest = world.goal('first'), world.goal('second', seconds=1), world.goal('third')
    response = world.result(short)
    assert (response.status, response.result.outcome) == (GoalStatus.STATUS_SUCCEEDED, R.OUTCOME_TIME_LIMIT)
    assert 'goes on' in response.result.message
    world.new_chunks()
    assert all(chunk.horizon > 0 for chunk in world.chunks)
    cancel = first.cancel_goal_async()  # not the newest one's client: the arm stops all the same
    world.wait(cancel.done, 'cancel response')
    for handle, status in ((first, GoalStatus.STATUS_CANCELED), (newest, GoalStatus.STATUS_ABORTED)):
        response = world.result(handle)
        assert (response.status, response.result.outcome) == (status, R.OUTCOME_CANCELLED)
        assert response.result.instruction == 'third'
    assert world.result(first).result.changes == 2
    assert 'another goal' in world.result(newest).result.message
    world.wait(lambda: world.chunks[-1].horizon == 0, 'stop chunk')
    world.code(S.NO_INSTRUCTION, S.STATE_IDLE)


def test_the_oldest_goal_goes_when_there_are_too_many(start):
    world, _ = start(FakePolicy(), instruction_change='seamless')
    activate(world)
    handles = [world.goal(f'words {i}') for i in range(MOST + 1)]
    assert world.result(handles[0]).result.outcome == R.OUTCOME_SUPERSEDED
    assert world.transition(DEACTIVATE)
    assert {world.result(h).result.outcome for h in handles[1:]} == {R.OUTCOME_DEACTIVATED}


def test_the_arm_rests_before_it_follows_other_words(start):
    E = ExecutorStatus
    world, node = start(FakePolicy(), drive=True)
    source = node.get_fully_qualified_name()
    world.executor.publish(E(epoch=1, state=E.STATE_HOLDING))
    activate(world)
    handle = world.goal('first')
    world.wait(lambda: world.chunks and world.chunks[-1].epoch == 1, 'chunks of the epoch')
    world.executor.publish(E(epoch=1, state=E.STATE_EXECUTING, source=source))
    world.wait(
        lambda: world.feedback and world.feedback[-1].hold_reason == E.HOLD_NONE, 'the policy hears of the motion'
    )
    mark = len(world.chunks)
    world.say('second')
    stop = world.wait(lambda: next((c for c in world.chunks[mark:] if c.horizon == 0), None), 'stop chunk')
    world.executor.publish(E(epoch=2, state=E.STATE_BRAKING, hold_reason=E.HOLD_STOP_REQUESTED))
    told = world.code(S.CHANGING, S.STATE_WAITING, says='comes to rest')
    assert told.instruction == 'second'
    world.wait(lambda: world.feedback and world.feedback[-1].code == S.CHANGING, 'the client is told')
    assert world.chunks[-1] is stop  # while the arm brakes, nothing is thought out
    world.executor.publish(
        E(epoch=2, state=E.STATE_HOLDING, hold_reason=E.HOLD_STOP_REQUESTED, horizon_left=0.0, limit_margin=0.25)
    )
    world.wait(lambda: world.chunks[-1].instruction == 'second', 'chunks for the new words')
    assert {c.epoch for c in world.chunks[world.chunks.index(stop) + 1 :]} == {2}
    world.wait(lambda: world.feedback and world.feedback[-1].code == S.OK, 'all is well')
    assert (world.feedback[-1].instruction, world.feedback[-1].limit_margin) == ('second', 0.25)
    world.wait(handle.cancel_goal_async().done, 'cancel response')
    assert world.result(handle).result.changes == 1


def test_the_next_words_wait_for_the_end_of_a_cancelled_motion(start):
    E = ExecutorStatus
    world, node = start(FakePolicy(), drive=True)
    activate(world)
    handle = world.goal('first')
    world.new_chunks()
    world.executor.publish(E(epoch=1, state=E.STATE_EXECUTING, source=node.get_fully_qualified_name()))
    world.wait(lambda: world.status[-1].epoch == 1, 'the policy hears of the motion')
    world.wait(handle.cancel_goal_async().done, 'cancel response')
    world.goal('second')
    world.code(S.CHANGING, S.STATE_WAITING)
    world.code(S.CHANGING, S.STATE_WAITING)
    assert world.chunks[-1].horizon == 0
    world.executor.publish(E(epoch=2, state=E.STATE_HOLDING))
    world.wait(lambda: world.chunks[-1].instruction == 'second', 'chunks for the new words')


def test_in_shadow_other_words_stop_nobody(start):
    world, _ = start(FakePolicy())
    activate(world)
    world.say('first')
    world.new_chunks()
    world.say('second')
    world.wait(lambda: world.chunks[-1].instruction == 'second', 'chunks for the new words')
    assert all(c.horizon > 0 for c in world.chunks)


def test_a_goal_that_asks_for_plans_is_told_how_far_it_is(start):
    policy = FakePolicy()
    policy.words = lambda observation: plan('tidy up', ['reach', 'grasp', 'lift', 'place'], ['reach'], 'grasp')
    world, _ = start(policy, rate=10.0, plan_rate=5.0)
    activate(world)
    world.goal('tidy up')
    world.wait(lambda: len(world.feedback) > 3, 'feedback')
    assert world.feedback[-1].plan_text == '' and math.isnan(world.feedback[-1].progress)
    assert {steps for _, steps in policy.planned} == {3}  # those of the warm-up: nobody asked
    world.goal('tidy up', plan=True)
    world.wait(lambda: world.feedback and world.feedback[-1].plan_text, 'a plan')
    assert world.feedback[-1].progress == 0.25


def test_goals_are_refused_when_they_cannot_be_followed(start):
    world, _ = start(FakePolicy())
    assert not world.goal('not configured').accepted
    assert world.transition(CONFIGURE)
    assert not world.goal('not active').accepted
    assert world.transition(ACTIVATE)
    assert not world.goal('').accepted
    world.code(S.BAD_INSTRUCTION, S.STATE_IDLE)
    assert not world.goal('x' * 1000).accepted
    assert not world.goal('back in time', seconds=-1).accepted
    assert world.goal('good').accepted


def test_deactivation_ends_the_goal(start):
    world, _ = start(FakePolicy())
    activate(world)
    handle = world.goal('go')
    world.new_chunks()
    assert world.transition(DEACTIVATE)
    response = world.result(handle)
    assert (response.status, response.result.outcome) == (GoalStatus.STATUS_ABORTED, R.OUTCOME_DEACTIVATED)
    assert response.result.chunks > 0


def test_come_to_rest_ends_the_goal_and_stops_the_arm(start):
    world, node = start(FakePolicy(), drive=True)
    activate(world)
    handle = world.goal('go')
    world.new_chunks()
    assert node.come_to_rest().wait(10)
    assert world.result(handle).result.outcome == R.OUTCOME_DEACTIVATED
    world.wait(lambda: world.chunks[-1].horizon == 0, 'stop chunk')
    assert not world.goal('too late').accepted


def test_a_slow_model_skips_observations_and_blocks_nobody(start):
    policy = FakePolicy()
    world, _ = start(policy)
    activate(world)
    world.say('go')
    world.new_chunks()
    policy.gate.clear()
    world.wait(lambda: world.status[-1].stream_ages[0] >= 0, 'status')
    for _ in range(3):
        assert world.state == 'active'  # services answer while the model thinks
    world.code(S.OK, S.STATE_RUNNING)  # status at 1 Hz
    policy.gate.set()
    world.wait(lambda: world.status[-1].skipped > 3, 'skipped observations counted')
    skipped = world.status[-1].skipped
    world.cameras = set()
    world.code(S.CAMERA_STALE, S.STATE_WAITING)
    world.cameras = {'front', 'wrist'}
    world.new_chunks(5)
    assert world.status[-1].skipped <= skipped + 2  # a gap in the images, or the rate limit, skips nothing


def test_rate_limits_inference_in_observation_time(start):
    world, _ = start(FakePolicy(), rate=5.0)
    activate(world)
    world.say('go')
    stamps = [to_ns(c.header.stamp) for c in world.new_chunks(4)]
    assert min(np.diff(stamps)) >= 0.17e9
    assert world.status[-1].skipped <= 1


def test_simulated_clock(start):
    policy = FakePolicy()
    world, _ = start(policy, use_sim_time=True, drive=True)
    activate(world)
    world.say('go')
    world.code(S.CLOCK_NOT_RUNNING, says='/clock')
    assert not world.chunks
    world.clock = 100.0
    world.code(S.OK, S.STATE_RUNNING)
    handle = world.goal('until the clock goes back')
    world.new_chunks()
    world.clock = 50.0
    assert world.result(handle).result.outcome == R.OUTCOME_FAILED
    world.say('go on')
    world.wait(lambda: 50 < to_ns(world.chunks[-1].header.stamp) * 1e-9 < 90, 'chunks on the new time')
    world.clock = None
    world.code(S.CLOCK_NOT_RUNNING, S.STATE_WAITING, says='stands still')


def test_what_nobody_listens_to_costs_nothing(start, monkeypatch):
    policy, made = FakePolicy(), Counter()

    def counted(kind, name):
        inner = getattr(kind, name)

        def wrapped(*args, **kwargs):
            made[name] += 1
            return inner(*args, **kwargs)

        monkeypatch.setattr(kind, name, wrapped)

    counted(InferenceReport, 'fill')  # of the status
    counted(Window, 'percentiles')  # of status and diagnostics
    counted(inference_report, 'KeyValue')  # of diagnostics
    counted(foresight, 'KeyValue')
    counted(foresight, 'image_msg')
    world, node = start(policy, rate=100.0)
    activate(world)
    world.say('go')
    world.wait(lambda: made['fill'] and made['KeyValue'], 'somebody listens')
    for subscription in world.told:
        world.node.destroy_subscription(subscription)
    topics = ('/policy/status', '/diagnostics')
    world.wait(lambda: not any(map(node.count_subscribers, topics)), 'nobody listens')
    world.new_chunks(3)
    made.clear()
    planned = len(policy.planned) + len(policy.imagined)
    world.new_chunks(40)  # more than a second: each timer of the node had its turn
    assert not made
    assert len(policy.planned) + len(policy.imagined) == planned


def test_a_model_that_points_is_heard_in_pixels_of_its_cameras(start):
    policy = FakePolicy()
    policy.info = replace(FakePolicy.info, outputs=FakePolicy.info.outputs | {POINTS}, points=2)
    policy.points = np.array([[[0.5, 0.5], [0.0, 0.25]], [[1.0, 0.75], [0.25, 0.5]]])
    world, _ = start(policy)
    heard = []
    world.node.create_subscription(VisualTrace, 'policy/pointed', heard.append, qos.STATUS)
    activate(world)
    world.say('put the red block into the bowl')
    world.wait(lambda: {msg.camera for msg in heard} == {'front', 'wrist'}, 'where the block and the bowl are')
    world.wait(lambda: heard[-1].camera == 'wrist', 'both of a chunk')
    front, wrist = heard[-2:]
    assert front.kind == VisualTrace.NAMED and (front.width, front.height) == (8, 6)
    # The view is the image, 8 wide, with a bar of one pixel above and below it.
    assert (list(front.u), list(front.v)) == ([3.5, -0.5], [2.5, 0.5])
    assert (list(wrist.u), list(wrist.v)) == ([7.5, 1.5], [4.5, 2.5])
    assert front.header.frame_id == 'front_optical'
    assert to_ns(front.header.stamp) == to_ns(wrist.header.stamp) in {seen.t_ref for seen in policy.seen}


def test_diagnostics(start):
    world, _ = start(FakePolicy())
    activate(world)
    world.say('go')
    world.wait(lambda: any(dict_of(d)['code'] == 'OK' and dict_of(d)['chunks'] != '0' for d in world.diagnostics))
    newest = world.diagnostics[-1]
    values = dict_of(newest)
    assert newest.status[0].name == '/policy: inference'
    assert newest.status[0].level == DiagnosticStatus.OK
    assert float(values['rate [Hz]']) >= 0
    assert 'age of wrist [s]' in values
    assert len(values['latency p50/p95/p99 [ms]'].split('/')) == 3


def dict_of(diagnostics):
    return values_of(diagnostics.status[0])


def test_plans_and_predicted_images_come_out_while_somebody_listens(start):
    policy = FakePolicy()
    world, _ = start(policy, rate=10.0, plan_rate=2.0, imagine_rate=2.0)
    activate(world)
    world.say('go')
    world.wait(lambda: len(world.chunks) > 20, 'time for a plan')
    assert {steps for _, steps in policy.planned + policy.imagined} == {3}  # those of the warm-up
    subscriptions = world.look()
    assert world.wait(lambda: world.plans, 'plan text')[0].data == 'I go'
    image = world.wait(lambda: world.predicted, 'predicted image')[0]
    assert (image.width, image.height, image.encoding, image.header.frame_id) == (4, 4, 'rgb8', 'front_optical')
    assert bytes(image.data) == bytes(range(48))
    seen = {observation.t_ref for observation in policy.seen}
    assert to_ns(image.header.stamp) - 800_000_000 in seen
    world.wait(lambda: len(world.plans) >= 3, 'more plans')
    stamps = [t_ref for t_ref, steps in policy.planned if t_ref > 0]
    assert min(np.diff(stamps)) >= 0.3e9
    world.wait(lambda: (d := world.diagnosis('plan')) and int(values_of(d)['done']) >= 2, 'diagnostics of plan')
    found = world.diagnosis('plan')
    assert (found.level, found.message) == (DiagnosticStatus.OK, 'OK')
    assert float(values_of(found)['latency p50/p95 [ms]'].split('/')[0]) > 0
    for subscription in subscriptions:
        world.node.destroy_subscription(subscription)
    world.wait(lambda: 'nobody' in world.diagnosis('imagine').message, 'nobody listens')
    begun = len(policy.planned)
    world.new_chunks(10)
    assert len(policy.planned) <= begun + 1


def test_what_came_is_compared_with_what_was_imagined(start):
    policy = FakePolicy()
    world, node = start(policy, rate=10.0, plan_rate=0.0, imagine_rate=5.0)
    activate(world)
    world.say('go')
    assert math.isnan(world.code(S.OK, S.STATE_RUNNING).surprise)
    assert not node.get_subscriptions_info_by_topic('/front/camera_info')
    world.look()
    infos = []
    calibration = CameraInfo(width=8, height=6, k=[8.0, 0.0, 3.5, 0.0, 8.0, 2.5, 0.0, 0.0, 1.0], p=[8.0, *[0.0] * 11])
    ours = world.node.create_publisher(CameraInfo, 'front/camera_info', qos.SENSOR_OUT)
    world.node.create_subscription(CameraInfo, 'policy/camera_info', infos.append, qos.SENSOR)
    world.wait(lambda: ours.get_subscription_count() == 1, 'the policy asks for the calibration')
    ours.publish(calibration)
    info = world.wait(lambda: infos, 'camera info')[0]
    # 8 x 6 pixels get a bar of one row above, and are halved.
    assert (info.width, info.height, info.header.frame_id) == (4, 4, 'front_optical')
    np.testing.assert_allclose(info.k, [4, 0, 1.5, 0, 4, 1.5, 0, 0, 1])
    status = world.wait(lambda: not math.isnan(world.status[-1].surprise) and world.status[-1], 'a comparison')
    assert 0 < status.surprise < 1  # something grey was imagined, all is black
    assert to_ns(info.header.stamp) in {to_ns(image.header.stamp) for image in world.predicted}
    assert to_ns(status.surprise_stamp) in {to_ns(image.header.stamp) for image in world.predicted}
    assert to_ns(status.surprise_stamp) <= to_ns(status.header.stamp)
    world.wait(lambda: (d := world.diagnosis('surprise')) and 'nan' not in str(values_of(d)), 'diagnostics')
    world.say('come back')
    world.wait(lambda: math.isnan(world.status[-1].surprise), 'what was imagined for other words counts no more')


def test_an_action_that_is_due_comes_before_the_next_step(start):
    policy = FakePolicy()
    world, _ = start(policy, rate=10.0, plan_rate=5.0, imagine_rate=0.0)
    activate(world)
    world.look()
    world.say('go')
    world.wait(lambda: world.plans, 'plan text')
    policy.pen.clear()
    world.wait(lambda: policy.held, 'a step under way')
    mark, due = len(policy.did), policy.seen[-1].t_ref + 150_000_000
    world.wait(lambda: world.node.get_clock().now().nanoseconds > due, 'an action is due')
    policy.pen.set()
    world.wait(lambda: len(policy.did) > mark, 'what comes next')
    assert policy.did[mark] == 'act'
    assert policy.imagined == []


@pytest.mark.parametrize('inpaint, learned', [('always', False), ('auto', True), ('auto', False), ('never', True)])
def test_the_model_is_given_what_the_arm_is_about_to_do_if_it_learned_to_go_on_from_it(start, inpaint, learned):
    policy = FakePolicy()
    policy.info = replace(FakePolicy.info, learned_prefix=learned)
    world, node = start(policy, rate=10.0, inpaint=inpaint)
    assert world.transition(CONFIGURE)
    node.set_parameters([Parameter('drive', value=True)])
    assert world.transition(ACTIVATE)
    world.look()
    world.executor.publish(ExecutorStatus(epoch=3))
    world.say('go')
    world.new_chunks(3)
    assert all(prefix is None for prefix in policy.prefixes)  # nothing is executed
    world.executor.publish(
        ExecutorStatus(epoch=3, state=ExecutorStatus.STATE_EXECUTING, source=node.get_fully_qualified_name())
    )
    if inpaint == 'never' or not (learned or inpaint == 'always'):
        world.new_chunks(10)
        assert all(prefix is None for prefix in policy.prefixes)
        return
    world.wait(lambda: policy.prefixes[-1] is not None, 'what is under way')
    prefix = policy.prefixes[-1]
    assert 1 <= len(prefix.positions) <= 2 and prefix.dt == 0.05
    assert np.allclose(prefix.positions, policy.seen[-1].positions)  # of a policy that stays where it is
    policy.spoil = lambda chunk: replace(chunk, positions=chunk.positions + 0.2)
    world.wait(lambda: policy.prefixes[-1] is None, 'an arm that is not where the chunk has it does not follow it')
    assert world.status[-1].code == S.OK
    policy.spoil = None
    world.wait(lambda: policy.prefixes[-1] is not None, 'what is under way again')
    status = ExecutorStatus(
        epoch=3, state=ExecutorStatus.STATE_EXECUTING, source=node.get_fully_qualified_name(), sequence=0,
        last_verdict=ExecutorStatus.REJECT_OUT_OF_LIMITS,
    )  # fmt: skip
    world.executor.publish(status)
    world.wait(lambda: policy.prefixes[-1] is None, 'what was refused is not under way')
    status.sequence, status.last_verdict = world.chunks[-1].sequence, ExecutorStatus.ACCEPTED
    world.executor.publish(status)
    world.wait(lambda: policy.prefixes[-1] is not None, 'what was taken is')
    world.executor.publish(ExecutorStatus(epoch=4, state=ExecutorStatus.STATE_HOLDING))
    world.wait(lambda: policy.prefixes[-1] is None, 'nothing is under way any more')


def test_an_arm_that_is_to_carry_its_chunk_out_is_not_looked_at(start):
    policy = FakePolicy()
    world, node = start(policy, rate=10.0)
    activate(world)
    world.look()
    world.say('go')
    world.new_chunks(2)
    asked = []
    node._session.stalled = lambda t_ref, *_: asked.append(t_ref) or True
    world.wait(lambda: len(asked) > 5, 'it asks whether to look')
    assert policy.seen[-1].t_ref < asked[0]
    node._session.stalled = lambda *_: False
    world.new_chunks(2)


def test_a_new_instruction_takes_back_the_plan_of_the_old_one(start):
    policy = FakePolicy()
    world, _ = start(policy, rate=10.0, plan_rate=5.0)
    activate(world)
    world.look()
    world.say('go')
    world.wait(lambda: world.plans and world.plans[-1].data == 'I go', 'plan')
    world.say('come back')
    world.wait(lambda: world.plans[-1].data == 'I come back', 'plan of the new instruction')
    texts = [plan.data for plan in world.plans]
    assert texts[texts.index('') :].count('I go') == 0
    assert world.transition(DEACTIVATE)
    world.wait(lambda: world.plans[-1].data == '', 'no plan without instruction')


def test_a_plan_that_fails_stops_no_action(start):
    policy = FakePolicy()

    def fail(observation):
        raise RuntimeError('no words')

    world, _ = start(policy, rate=10.0, plan_rate=5.0, imagine_rate=5.0)
    world.look()
    assert world.transition(CONFIGURE)
    policy.words = fail
    assert world.transition(ACTIVATE)
    world.say('go')
    world.wait(lambda: (d := world.diagnosis('plan')) and 'no words' in d.message, 'the reason')
    assert world.diagnosis('plan').level == DiagnosticStatus.WARN
    world.wait(lambda: len(world.predicted) > 1, 'predicted images')
    world.new_chunks(5)
    world.code(S.OK, S.STATE_RUNNING)
    assert not world.plans
    policy.words = lambda observation: 'better'
    world.wait(lambda: world.plans, 'a plan')
    world.wait(lambda: world.diagnosis('plan').level == DiagnosticStatus.OK, 'all well')


def values_of(status):
    return {v.key: v.value for v in status.values}


def test_the_real_random_model_in_shadow(start):
    from vla_model.loading import load

    world, _ = start(load=load, threads=1, rate=2.0, plan_steps=8, imagine_steps=4)
    world.size = (64, 48)
    world.positions = [*world.profile.home, 0.02, 0.02]
    activate(world)
    world.look()
    world.say('press the red button')
    chunk = world.new_chunks()[0]
    assert chunk.shadow
    assert chunk.model_id.startswith('random-nano')
    assert len(chunk.positions) == chunk.horizon * 7
    assert np.isfinite(chunk.positions).all()
    world.wait(lambda: world.plans, 'plan text')  # random weights may have nothing to say
    image = world.wait(lambda: world.predicted, 'predicted image')[0]
    assert image.width == image.height
    assert len(set(image.data)) > 10
    horizon = round(chunk.horizon * chunk.dt * 1e9)
    answered = {to_ns(c.header.stamp) for c in world.chunks}
    assert to_ns(image.header.stamp) - horizon in answered


@pytest.mark.parametrize('drive', [False, True])
def test_in_shadow_nothing_that_was_sent_counts_as_what_the_arm_does(start, drive):
    """Or an arm that somebody else drives would look stuck, and the model would pass over what it sees."""
    world, node = start(FakePolicy(), rate=10.0, use_sim_time=False)
    assert world.transition(CONFIGURE)
    node.set_parameters([Parameter('drive', value=drive)])
    assert world.transition(ACTIVATE)
    assert node._session._committed.followed is drive
    executing = ExecutorStatus(epoch=3, state=ExecutorStatus.STATE_EXECUTING, source=node.get_fully_qualified_name())
    world.executor.publish(executing)
    world.look()
    world.say('go')
    world.wait(lambda: world.chunks and world.chunks[-1].epoch == 3, 'a chunk of the new epoch')
    assert node._session._committed.followed is drive
