"""Instructions without a node: which are refused, which come into force, and when."""

from types import SimpleNamespace

import pytest

from vla_policy_node.policy.instructions import Instructions
from vla_policy_node.policy.session import SUPERSEDE, Session


@pytest.fixture
def rig():
    """Instructions of an open session, and all that they report."""
    session, said = Session('/policy', lambda: 0), []
    session.open(lambda message: None)
    report = SimpleNamespace(
        refuse=lambda why: said.append(('refuse', why)),
        accept=lambda: said.append(('accept',)),
        publish=lambda: said.append(('publish',)),
    )
    log = SimpleNamespace(
        info=lambda text: said.append(('info', text)), error=lambda text: said.append(('error', text))
    )
    instructions = Instructions(session, report, log)
    instructions.longest = 12
    return SimpleNamespace(session=session, said=said, instructions=instructions)


@pytest.mark.parametrize(
    ('words', 'why'),
    [
        (' \n', 'the instruction is empty: say what the robot shall do'),
        ('lift the cube', 'the instruction has 13 characters, instruction_max_length is 12: shorten it'),
    ],
)
def test_a_bad_instruction_is_refused_by_topic_and_by_goal(rig, words, why):
    rig.session.activate(drive=False)
    rig.instructions.receive('go')
    rig.said.clear()
    rig.instructions.receive(words)
    assert rig.said == [('error', f'~/instruction refused: {why}'), ('refuse', why)]
    assert rig.instructions.refusal(words) == why
    assert rig.session.instruction == 'go'


def test_an_instruction_from_before_the_activation_is_taken_then_and_only_once(rig):
    rig.instructions.receive('one')
    rig.instructions.receive(' two ')
    assert rig.session.instruction == '' and 'not active' in rig.instructions.refusal('go')
    rig.session.activate(drive=False)
    rig.instructions.activate()
    assert rig.session.instruction == 'two' and rig.instructions.refusal('go') == ''
    rig.session.halt()
    rig.instructions.clear()
    rig.instructions.activate()
    assert rig.session.instruction == ''


def test_the_same_words_again_are_taken_without_a_word_unless_they_supersede(rig):
    rig.session.activate(drive=False)
    assert rig.instructions.take('go\n') == 'go'
    assert rig.said == [('accept',), ('info', 'instruction: "go"'), ('publish',)]
    rig.said.clear()
    assert rig.instructions.take('go') == 'go'
    assert rig.said == [('accept',)]
    rig.session.change = SUPERSEDE
    rig.instructions.take('go')
    assert ('publish',) in rig.said


def test_a_node_that_leaves_takes_no_instruction(rig):
    rig.session.activate(drive=False)
    rig.instructions.leaving = True
    rig.instructions.receive('go')
    assert rig.session.instruction == '' and 'not active' in rig.instructions.refusal('go')
    assert not rig.said
