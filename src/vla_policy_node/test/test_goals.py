"""Instructions and goals of the policy node over real DDS: a fake model, and a small world around it."""

import math

import pytest
from action_msgs.msg import GoalStatus
from std_msgs.msg import String

from vla_model.tokens.prompt_texts import plan
from vla_msgs.msg import ExecutorStatus
from vla_policy_node.policy.goals import MOST
from vla_policy_node.ros import qos

from .policy_world import ACTIVATE, CONFIGURE, DEACTIVATE, FakePolicy, R, S, activate


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
    assert 'continues' in response.result.message
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


def test_in_shadow_other_words_stop_no_motion(start):
    world, _ = start(FakePolicy())
    activate(world)
    world.say('first')
    world.new_chunks()
    world.say('second')
    world.wait(lambda: world.chunks[-1].instruction == 'second', 'chunks for the new words')
    assert all(c.horizon > 0 for c in world.chunks)


def test_a_goal_that_asks_for_plans_gets_its_progress(start):
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
