"""A small world for a policy node, in this process over real DDS: robot, cameras, executor, user, and a fake model."""

import array
import threading
import time
from pathlib import Path

import numpy as np
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.action import ActionClient
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from vla_core.profile import RobotProfile
from vla_model.policy import IMAGE, PLAN, PolicyInfo, Prediction
from vla_model.types import Chunk, Observation, Plan, PredictedImage
from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import ActionChunk, ExecutorStatus
from vla_msgs.msg import PolicyStatus as S
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_time

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

    def goal(self, instruction, seconds=0, plan=False, **fields):
        """Sends a goal; returns its handle."""
        assert self.execute.wait_for_server(20.0)
        request = ExecuteInstruction.Goal(
            instruction=instruction, time_limit=Duration(sec=seconds), plan=plan, **fields
        )
        future = self.execute.send_goal_async(request, feedback_callback=lambda m: self.feedback.append(m.feedback))
        self.wait(future.done, 'goal response')
        return future.result()

    def result(self, handle):
        future = handle.get_result_async()
        self.wait(future.done, 'result of the goal')
        return future.result()


def activate(world):
    assert world.transition(CONFIGURE)
    assert world.transition(ACTIVATE)


def values_of(status):
    return {v.key: v.value for v in status.values}
