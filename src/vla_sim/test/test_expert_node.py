"""The expert node without a network: its callbacks are called here, and what it publishes is kept."""

from pathlib import Path

import domain_coordinator
import numpy as np
import pytest
import rclpy
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from tf2_msgs.msg import TFMessage

from vla_msgs.msg import Episode, ExecutorStatus
from vla_policy_node.ros.chunk_msg import to_ns, to_time
from vla_sim import messages
from vla_sim.assets.robot import ARM_JOINTS, FINGER_JOINTS, HOME
from vla_sim.expert_node import ExpertNode
from vla_sim.world import World

PROFILE = Path(__file__).parents[2] / 'vla_bringup/config/robots/sim_panda.yaml'
STEP = 200_000_000  # [ns]


class Kept(list):
    """Stands for a publisher."""

    def publish(self, msg):
        self.append(msg)

    def wait_for_all_acked(self, timeout):
        self.acked = True


class Bench:
    """The node with a simulated world before it; time is the node's own, stamps are relative to now."""

    def __init__(self, node):
        self.node, self.world = node, World('press_button')
        node._chunks, node._progress, self.said = Kept(), Kept(), []
        self.chunks, self.progress = node._chunks, node._progress
        logger = node.get_logger()
        for level in ('warning', 'error'):
            setattr(logger, level, lambda text, **_: self.said.append(text))
        node.get_logger = lambda: logger

    def now(self):
        return self.node.get_clock().now().nanoseconds

    def episode(self, stamp=None, instruction=None):
        msg = Episode(index=1, task='press_button', instruction=instruction or self.world.instruction)
        msg.header.stamp = to_time(stamp or self.now() - STEP)
        self.node._on_episode(msg)

    def status(self, **fields):
        self.node._on_status(ExecutorStatus(**{'state': ExecutorStatus.STATE_HOLDING, 'epoch': 4, **fields}))

    def joints(self, stamp, positions=HOME):
        values = np.r_[positions, 0.04, 0.04]
        names = (*ARM_JOINTS, *FINGER_JOINTS)
        self.node._on_joints(messages.joint_state(to_time(stamp), names, values, 0 * values, 0 * values))

    def objects(self, stamp, frame='panda_link0'):
        poses = self.world.objects().items()
        self.node._on_objects(
            TFMessage(transforms=[messages.transform(to_time(stamp), frame, *pose) for pose in poses])
        )

    def observe(self):
        stamp = self.now()
        self.joints(stamp)
        self.objects(stamp)

    def tick(self):
        """One cycle; what it published."""
        before = len(self.chunks)
        self.node._tick()
        return self.chunks[before:]


@pytest.fixture
def bench():
    with domain_coordinator.domain_id() as domain:
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=int(domain), signal_handler_options=rclpy.SignalHandlerOptions.NO)
        node = ExpertNode(context=context, cli_args=['--ros-args', '--params-file', str(PROFILE)])
        yield Bench(node)
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_chunks_carry_the_address_that_the_executor_asks_for(bench):
    bench.episode()
    bench.status()
    for _ in range(3):
        bench.observe()
        bench.tick()
    assert [chunk.sequence for chunk in bench.chunks] == [1, 2, 3]
    chunk = bench.chunks[-1]
    assert (chunk.epoch, chunk.source, chunk.model_id, chunk.shadow) == (4, '/expert', 'expert', False)
    assert chunk.header.frame_id == 'panda_link0' and chunk.horizon == 16 and len(chunk.positions) == 16 * 7
    assert chunk.instruction == bench.world.instruction and tuple(chunk.joint_names) == ARM_JOINTS
    assert [msg.current for msg in bench.progress] == [bench.node._expert._skill.subtasks[0]]


def test_t_ref_is_the_joint_state_that_fits_the_objects(bench):
    bench.episode()
    bench.status()
    now = bench.now()
    for ago in (30, 20, 10, 0):
        bench.joints(now - ago * 1_000_000)
    bench.objects(now - 15_000_000)
    (chunk,) = bench.tick()
    assert to_ns(chunk.header.stamp) == now - 20_000_000


@pytest.mark.parametrize(
    ('feed', 'said'),
    [
        (lambda b: b.joints(b.now()), 'no sim/objects of this episode'),
        (lambda b: b.objects(b.now()), 'no usable joint state of this episode received on joint_states'),
        (lambda b: (b.joints(b.now() - 10 * STEP), b.objects(b.now())), 'joint_states is 2.'),
        (lambda b: (b.joints(b.now()), b.objects(b.now() - 10 * STEP)), 'sim/objects are 2.'),
        (lambda b: (b.joints(b.now()), b.objects(b.now(), 'world')), 'in frame world, must be in panda_link0'),
        (lambda b: (b.joints(b.now(), HOME * np.nan), b.objects(b.now())), 'not finite for'),
        (lambda b: b.node._on_joints(JointState(name=['a'], position=[0.0])), "lacks ['panda_joint1'"),
    ],
)
def test_missing_and_stale_inputs_are_named_and_nothing_is_published(bench, feed, said):
    bench.episode(stamp=bench.now() - 20 * STEP)
    bench.status()
    feed(bench)
    assert bench.tick() == []
    assert any(said in text for text in bench.said), bench.said


def test_what_was_seen_before_the_reset_is_not_used(bench):
    bench.status()
    bench.observe()
    bench.episode(stamp=bench.now())
    assert bench.tick() == [] and 'of this episode' in bench.said[-1]
    bench.observe()
    assert len(bench.tick()) == 1


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        (None, 'no executor/status received'),
        ({'state': ExecutorStatus.STATE_INACTIVE}, 'not active: activate it'),
        ({'hold_reason': ExecutorStatus.HOLD_OPERATOR_STOP}, 'call executor/resume'),
        ({'source': '/policy'}, '/policy drives the executor: stop it'),
    ],
)
def test_an_executor_that_takes_no_chunks_gets_none(bench, fields, said):
    bench.episode()
    bench.observe()
    if fields is not None:
        bench.status(**fields)
    assert bench.tick() == [] and said in bench.said[-1]
    bench.status()
    assert len(bench.tick()) == 1


def test_a_set_point_elsewhere_is_first_brought_to_the_arm(bench):
    bench.episode()
    bench.observe()
    bench.status(tracking_error=0.8)
    (chunk,) = bench.tick()
    assert np.reshape(chunk.positions, (16, 7)) == pytest.approx(np.tile(HOME, (16, 1)))
    assert len(chunk.gripper) == 0 and not bench.progress
    bench.status(tracking_error=0.05)
    bench.tick()
    assert len(bench.progress) == 1


def test_it_stops_the_arm_when_disabled_at_a_reset_and_at_the_end(bench):
    bench.episode()
    bench.status()

    def drive():
        bench.observe()
        (chunk,) = bench.tick()
        assert chunk.horizon == 16

    drive()
    bench.node.set_parameters([Parameter('enabled', value=False)])
    (stop,) = bench.tick()
    assert stop.horizon == 0 and len(stop.positions) == 0 and stop.source == '/expert'
    assert bench.tick() == []
    bench.node.set_parameters([Parameter('enabled', value=True)])
    drive()
    bench.episode()
    assert bench.chunks[-1].horizon == 0
    drive()
    assert bench.node.come_to_rest().is_set() and bench.chunks.acked
    assert bench.chunks[-1].horizon == 0
    bench.observe()
    assert bench.tick() == []


def test_an_instruction_that_it_does_not_know_is_an_error(bench):
    bench.status()
    bench.episode(instruction='make tea')
    bench.observe()
    assert bench.tick() == [] and "no task has the instruction 'make tea'" in bench.said[0]


def test_a_new_epoch_starts_from_where_the_arm_is(bench):
    bench.episode()
    bench.status()
    bench.observe()
    bench.tick()
    bench.status(epoch=5)
    moved = HOME + 0.4
    stamp = bench.now()
    bench.joints(stamp, moved)
    bench.objects(stamp)
    (chunk,) = bench.tick()
    assert chunk.epoch == 5
    assert np.abs(chunk.positions[:7] - moved).max() < 0.01 and not bench.said
