"""The worker without a node: a session, sets of images that a test makes, and a model that answers at once."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from vla_core.observe.streams import JOINTS, NS, Aligned
from vla_model.policy import Prediction
from vla_model.types import Chunk
from vla_msgs.msg import ExecutorStatus
from vla_policy_node.policy.inference import Inference
from vla_policy_node.policy.session import SEAMLESS, Session
from vla_policy_node.policy.task_scheduler import TaskScheduler


class Model:
    """Chunks that stay where the arm is; `spoil` changes them or raises; `gate` closed: it thinks on."""

    def __init__(self):
        self.seen, self.prefixes, self.prepared, self.spoil = [], [], [], lambda chunk: chunk
        self.gate = threading.Event()
        self.gate.set()

    def prepare(self, instruction):
        self.prepared.append(instruction)

    def act(self, observation, prefix=None):
        self.seen.append(observation)
        self.prefixes.append(prefix)
        assert self.gate.wait(20)
        return Prediction(self.spoil(Chunk(np.tile(observation.positions, (8, 1)), np.zeros(0), 0.1)))


class Rig:
    def __init__(self, **options):
        self.model, self.sent, self.aligned, self.index = Model(), [], None, 0
        self.session = Session('/policy', lambda: self.aligned.t_ref + NS // 10)
        self.session.open(self.sent.append, change=SEAMLESS, **options)
        self.session.activate(drive=True)
        self.worker = Inference(
            self.model,
            7,
            self.session,
            observe=lambda: self.aligned,
            scheduler=TaskScheduler([]),
            rate=10.0,
            retry=0.01,
        )

    def set(self, seconds, sets=1):
        """The newest set is of this time; with those passed over there are so many new ones."""
        self.index += sets
        values = {'front': np.zeros((4, 4, 3), np.uint8), JOINTS: (np.zeros(7), np.zeros(7))}
        t_ref = round(seconds * NS)
        self.aligned = Aligned(t_ref, values, dict.fromkeys(values, t_ref), self.index, time.monotonic())
        self.worker.wake()

    def wait(self, condition):
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, (self.session.failure, self.sent)
            time.sleep(0.001)


@pytest.fixture
def make():
    rigs = []
    yield lambda **options: rigs.append(Rig(**options)) or rigs[-1]
    for rig in rigs:
        rig.model.gate.set()
        assert rig.worker.close()


def test_each_new_set_is_answered_once_at_the_rate(make):
    rig = make()
    rig.session.put('go')
    for seconds, chunks in ((1.0, 1), (1.1, 2), (1.15, 2), (1.2, 3)):  # 1.15 s comes too soon at 10 Hz
        rig.set(seconds)
        rig.wait(lambda count=chunks: len(rig.sent) >= count)
    assert [m.t_ref for m in rig.sent] == [round(s * NS) for s in (1.0, 1.1, 1.2)]
    assert rig.model.prepared == ['go']


def test_what_is_thought_out_while_the_instruction_changes_is_not_sent(make):
    rig = make()
    skipped = []
    rig.session.delivered.append(lambda answer, *_: skipped.append(answer.skipped))
    rig.model.gate.clear()
    rig.set(1.0)
    rig.session.put('go')
    rig.wait(lambda: rig.model.seen)
    rig.session.put('come back')
    rig.set(1.1)
    rig.model.gate.set()
    rig.wait(lambda: rig.sent)
    assert rig.sent[0].instruction == 'come back' and rig.sent[0].t_ref == round(1.1 * NS)
    rig.set(1.4, sets=3)
    rig.wait(lambda: len(rig.sent) == 2)
    assert skipped == [0, 2]
    rig.session.halt()
    assert rig.sent[-1].chunk is None


def test_the_epoch_is_the_one_from_before_the_model_was_asked(make):
    rig = make()
    rig.session.record(ExecutorStatus(epoch=1))
    rig.model.gate.clear()
    rig.set(1.0)
    rig.session.put('go')
    rig.wait(lambda: rig.model.seen)
    rig.session.record(ExecutorStatus(epoch=2))
    rig.model.gate.set()
    rig.wait(lambda: rig.sent)
    assert rig.sent[0].epoch == 1
    rig.set(1.2)
    rig.wait(lambda: len(rig.sent) == 2)
    assert rig.sent[1].epoch == 2


def test_a_failure_is_reported_to_the_session_and_tried_again(make):
    rig = make()
    rig.model.spoil = lambda chunk: replace(chunk, positions=chunk.positions[:0])
    rig.set(1.0)
    rig.session.put('go')
    rig.wait(lambda: 'must be (horizon, 7)' in rig.session.failure)
    rig.model.spoil = lambda chunk: chunk
    rig.set(1.2)
    rig.wait(lambda: rig.sent and rig.session.failure == '')


@pytest.mark.parametrize('max_deviation', [0.1, None])
def test_the_model_is_given_the_prefix_of_the_session(make, max_deviation):
    rig = make(max_deviation=max_deviation)
    rig.set(1.0)
    rig.session.put('go')
    rig.wait(lambda: rig.sent)
    rig.set(1.2)
    rig.wait(lambda: len(rig.sent) == 2)
    assert rig.model.prefixes[0] is None
    assert (rig.model.prefixes[1] is not None) is (max_deviation is not None)


def test_a_stalled_arm_is_not_looked_at(make):
    rig = make()
    asked = []
    rig.session.stalled = lambda t_ref, *_: asked.append(t_ref) or len(asked) == 1
    rig.set(1.0)
    rig.session.put('go')
    rig.wait(lambda: asked)
    rig.set(1.2)
    rig.wait(lambda: rig.sent)
    assert [m.t_ref for m in rig.sent] == [round(1.2 * NS)]
