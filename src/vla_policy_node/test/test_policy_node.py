"""The policy node over real DDS, in this process: a small world publishes cameras and joints, a fake model answers."""

import gc
import math
import re
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from rclpy.parameter import Parameter

from vla_core.kinematics.arm import load_kinematics
from vla_model.policy import Prediction
from vla_model.types import TOOL, Chunk
from vla_msgs.msg import ExecutorStatus
from vla_policy_node.ros.chunk_msg import to_ns

from .policy_world import ACTIVATE, CLEANUP, CONFIGURE, DEACTIVATE, WARM_UP, FakePolicy, R, S, activate, values_of


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


def test_an_executor_that_holds_is_reported_to_the_client(start):
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
    policy, before = FakePolicy(), set(threading.enumerate())  # other tests end with active nodes
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
        assert not [t for t in set(threading.enumerate()) - before if t.name == 'inference']
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


def test_a_robot_of_another_name_is_reported_from_the_start(start):
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


def test_a_model_that_fails_is_reported_and_tried_again(start):
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


def test_a_slow_model_skips_observations_and_blocks_no_callback(start):
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


def test_simulated_clock(start, capfd):
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
    result = world.result(handle).result
    assert result.outcome == R.OUTCOME_FAILED
    assert math.isnan(result.duration)  # its start is a time of the clock of before
    assert re.search(r'clock goes back" ended after \d+\.\d s of wall time', ''.join(capfd.readouterr()))
    world.say('go on')
    world.wait(lambda: 50 < to_ns(world.chunks[-1].header.stamp) * 1e-9 < 90, 'chunks on the new time')
    world.clock = None
    world.code(S.CLOCK_NOT_RUNNING, S.STATE_WAITING, says='stands still')


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


@pytest.mark.parametrize('inpaint, learned', [('always', False), ('auto', True), ('auto', False), ('never', True)])
def test_the_model_is_given_the_action_prefix_if_it_learned_to_continue_one(start, inpaint, learned):
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
