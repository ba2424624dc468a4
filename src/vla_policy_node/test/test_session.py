"""The session without a node: what is in force, what is sent for it, and what the other thread sees."""

from types import SimpleNamespace

import numpy as np
import pytest

from vla_core.observe.committed_actions import CommittedActions
from vla_core.observe.streams import NS, Aligned
from vla_model.policy import Prediction
from vla_model.types import Chunk
from vla_msgs.msg import ExecutorStatus
from vla_policy_node.policy import session as module
from vla_policy_node.policy.session import NEW_EPOCH, SEAMLESS, STATUS_DELAY, SUPERSEDE, Answer, Session

ARM = '/policy'


@pytest.fixture
def clock(monkeypatch):
    """The monotonic clock [s] of the session: it stands still until a test moves it."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, 'time', SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def opened(drive=True, change=SEAMLESS, **options):
    """An active session and the list of what it sent."""
    session, sent = Session(ARM, lambda: 5 * NS), []
    session.open(sent.append, change=change, **options)
    session.activate(drive)
    return session, sent


def executing(epoch=1, sequence=0, verdict=ExecutorStatus.ACCEPTED, source=ARM, state=ExecutorStatus.STATE_EXECUTING):
    return ExecutorStatus(epoch=epoch, sequence=sequence, last_verdict=verdict, source=source, state=state)


def answer(session, t_ref=4 * NS, positions=None):
    """A ramp of joint 0 for what is in force, 0.1 rad a step of 0.1 s."""
    assignment, epoch = session.current()
    ramp = np.zeros((8, 7))
    ramp[:, 0] = 0.1 * np.arange(1, 9)
    chunk = Chunk(ramp if positions is None else positions, np.zeros(0), 0.1)
    aligned = Aligned(t_ref, {}, {}, index=1, arrived=0.0)
    return Answer(assignment, aligned, epoch, Prediction(chunk), 0.03, 0.0, 0)


def test_a_chunk_is_sent_while_its_assignment_is_in_force_and_only_then():
    session, sent = opened()
    session.record(executing(epoch=7))
    assert session.current() == (None, 7)
    session.put('lift the cube')
    first = answer(session)
    assert session.deliver(first)
    assert (sent[0].epoch, sent[0].sequence, sent[0].instruction, sent[0].shadow) == (7, 1, 'lift the cube', False)
    session.put('open the drawer')
    assert not session.deliver(first)
    second = answer(session)
    session.halt()
    assert session.current() == (None, 7) and session.instruction == ''
    assert not session.deliver(second)
    assert [m.chunk is None for m in sent] == [False, True]  # the stop request of halt
    session.put('lift the cube')
    assert not session.deliver(first)  # the same words are another assignment
    assert session.deliver(answer(session))


def test_the_sequence_grows_from_model_to_model():
    session, sent = opened()
    session.put('go')
    session.deliver(answer(session))
    session.halt()
    session.deactivate()
    session.close()
    session.open(sent.append, change=SEAMLESS)
    session.activate(False)
    session.put('go')
    assert session.deliver(answer(session))
    assert [m.sequence for m in sent] == [1, 2, 3] and sent[-1].shadow


def test_the_arm_is_stopped_only_by_an_active_session_that_drives_it():
    session, sent = opened(drive=False)
    session.put('go')
    session.halt()
    session.deactivate()
    assert not sent
    session, sent = opened()
    session.deactivate()
    session.halt()
    assert not sent
    session.activate(True)
    session.halt()
    assert [m.chunk for m in sent] == [None]


@pytest.mark.parametrize(('change', 'again'), [(NEW_EPOCH, False), (SEAMLESS, False), (SUPERSEDE, True)])
def test_the_same_words_are_a_new_assignment_only_where_instructions_supersede(change, again):
    session, _ = opened(change=change)
    heard = []
    session.changed.append(heard.append)
    session.put('go')
    before = session.current()[0]
    assert session.put('go') is again
    assert (session.current()[0] is not before) is again
    assert heard == ['go'] * (1 + again)


def test_with_new_epochs_the_arm_rests_before_it_follows_other_words(clock):
    session, sent = opened(change=NEW_EPOCH)
    session.record(executing())
    session.put('go')
    assert not sent and session.current()[0] is not None  # no motion to stop
    session.put('come back')
    assert [m.chunk for m in sent] == [None]
    assert session.comes_to_rest and session.current()[0] is None and session.instruction == 'come back'
    clock.now += 10
    assert session.comes_to_rest  # it is executing still
    session.record(executing(epoch=2, state=ExecutorStatus.STATE_BRAKING))
    assert session.comes_to_rest
    session.record(executing(epoch=2, state=ExecutorStatus.STATE_HOLDING))
    assert not session.comes_to_rest and session.current()[1] == 2
    assert session.current()[0].instruction == 'come back'


def test_a_status_from_before_the_stop_request_does_not_count_as_rest(clock):
    session, _ = opened(change=NEW_EPOCH)
    session.record(executing(state=ExecutorStatus.STATE_HOLDING))
    session.put('go')
    session.put('come back')
    clock.now += STATUS_DELAY / 2
    assert session.comes_to_rest
    clock.now += STATUS_DELAY
    assert not session.comes_to_rest


def test_a_failure_is_reported_once_in_full_until_a_chunk_is_sent():
    session, _ = opened()
    failures = []
    session.failed.append(lambda message, error: failures.append((message, error)))
    session.put('go')
    assignment, error = session.current()[0], ValueError('no such camera')
    session.fail(assignment, error)
    session.fail(assignment, error)
    text = 'inference failed, trying again: no such camera'
    assert session.failure == text and failures == [(text, error), (text, None)]
    session.deliver(answer(session))
    assert session.failure == ''
    session.fail(assignment, error)
    assert failures[-1] == (text, error)
    session.put('stop')
    session.fail(assignment, error)
    assert session.failure == '' and len(failures) == 3  # of an assignment that is over


def test_listeners_get_each_chunk_with_its_latency():
    session, _ = opened()
    delivered = []
    session.delivered.append(lambda *event: delivered.append(event))
    session.put('go')
    given = answer(session, t_ref=round(4.75 * NS))
    session.deliver(given)
    assert delivered == [(given, 1, pytest.approx(0.25))]


@pytest.mark.parametrize(
    ('status', 'has_prefix'),
    [
        (executing(sequence=1), True),
        (executing(sequence=1, verdict=ExecutorStatus.REJECT_WHOLLY_PAST), True),  # the arm keeps the chunk before
        (executing(sequence=1, verdict=ExecutorStatus.REJECT_SHADOW), True),  # another node's
        (executing(sequence=0, verdict=ExecutorStatus.REJECT_WHOLLY_PAST), False),
        (executing(sequence=1, source='/other'), False),
        (executing(sequence=1, state=ExecutorStatus.STATE_HOLDING), False),
        (executing(sequence=1, epoch=2), False),
    ],
)
def test_the_prefix_is_what_the_executor_executes(status, has_prefix):
    session, _ = opened(max_deviation=0.1)
    session.record(executing())
    session.put('go')
    session.deliver(answer(session))
    session.record(status)
    measured = np.array([0.2, 0, 0, 0, 0, 0, 0])
    prefix = session.prefix(round(4.2 * NS), session.current()[1], measured)
    assert (prefix is not None) is has_prefix


def test_nothing_is_committed_in_shadow_or_for_a_model_that_takes_no_prefix():
    measured = np.array([0.2, 0, 0, 0, 0, 0, 0])
    for drive, max_deviation in ((True, 0.1), (False, 0.1), (True, None)):
        session, _ = opened(drive, max_deviation=max_deviation)
        session.put('go')
        session.deliver(answer(session))
        prefix = session.prefix(round(4.2 * NS), 0, measured)
        assert (prefix is not None) is (drive and max_deviation is not None)


def test_a_stalled_arm_executes_its_chunk_unless_that_is_turned_off():
    for stall_fraction in (0.3, 0.0):
        session, _ = opened(stall_fraction=stall_fraction)
        session.put('go')
        found = []
        for k in range(20):
            found.append(session.stalled(k * NS // 5, 0, np.zeros(7)))
            if not found[-1]:
                session.deliver(answer(session, t_ref=k * NS // 5))
        assert any(found) is (stall_fraction > 0)


def test_committed_actions_are_used_under_the_lock_alone(monkeypatch):
    class Guarded(CommittedActions):
        def __getattribute__(self, name):
            assert session.lock._is_owned(), name
            return super().__getattribute__(name)

    session = Session(ARM, lambda: 5 * NS)
    monkeypatch.setattr(module, 'CommittedActions', Guarded)
    session.open(lambda message: None, max_deviation=0.1)
    session.activate(True)
    session.put('go')
    session.record(executing())
    session.deliver(answer(session))
    session.prefix(5 * NS, 1, np.zeros(7))
    session.stalled(5 * NS, 1, np.zeros(7))
    session.activate(False)
    with pytest.raises(AssertionError):
        _ = session._committed.delay
