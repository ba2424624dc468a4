"""Lists without an entry, on the way through rcl, and what the nodes make of them."""

import pytest
import yaml
from rclpy.parameter import Parameter

from vla_policy_node.ros.arguments import refuse_lost_lists
from vla_policy_node.ros.parameters import declare

TEXTS, NUMBERS = Parameter.Type.STRING_ARRAY, Parameter.Type.DOUBLE_ARRAY


@pytest.fixture
def file(tmp_path):
    """file(node pattern, **parameters) -> the path of a parameter file."""

    def write(node='/**', **parameters):
        path = tmp_path / f'{len(list(tmp_path.iterdir()))}.yaml'
        path.write_text(yaml.safe_dump({node: {'ros__parameters': parameters}}))
        return str(path)

    return write


@pytest.fixture
def node(ros, file):
    """node(**parameters) -> a node that was given them in a parameter file."""
    return lambda **parameters: ros.add('some', cli_args=['--ros-args', '--params-file', file(**parameters)])


@pytest.mark.parametrize(
    ('given', 'default', 'value'),
    [
        ([], TEXTS, []),
        ([''], TEXTS, []),
        ([], ['a', 'b'], []),
        ([''], ['a', 'b'], []),
        (None, ['a', 'b'], ['a', 'b']),
        (['x'], TEXTS, ['x']),
        ([], NUMBERS, []),
        ([], [0.0], []),
        ([1.0], NUMBERS, [1.0]),
    ],
)
def test_an_empty_list_is_an_empty_list_and_not_the_default(node, given, default, value):
    here = node(other=1, **{} if given is None else {'list': given})
    for _ in range(2):  # the second time it is only read
        assert list(declare(here, 'list', default, 'some names')) == value


def test_a_list_that_was_not_given_is_missing_and_one_that_was_given_empty_is_not(node):
    here = node(given=[])
    with pytest.raises(ValueError, match='parameter absent must be given: some names'):
        declare(here, 'absent', TEXTS, 'some names')
    assert declare(here, 'absent', TEXTS, 'some names', optional=True) is None
    assert declare(here, 'given', TEXTS, 'some names', optional=True) == []


@pytest.mark.parametrize(
    ('given', 'default', 'error'),
    [
        ([], 'text', 'parameter one .* was given without a value'),
        ([], 0.5, 'parameter one .* was given without a value'),
        (['a', ''], TEXTS, 'parameter one has an empty name among others'),
        ([''], NUMBERS, 'parameter one .*expecting type'),
    ],
)
def test_what_makes_no_list_is_refused_by_name(node, given, default, error):
    with pytest.raises(ValueError, match=error):
        declare(node(one=given), 'one', default, 'something')


def test_an_empty_list_in_a_node_of_this_process_is_one_too(ros):
    here = ros.add('some', parameter_overrides=[Parameter('list', value=[])])
    assert declare(here, 'list', ['a'], 'some names') == []


def test_an_empty_list_that_rcl_would_drop_for_an_earlier_value_is_refused(file):
    profile = file(robot={'fingers': ['f']}, cameras=['front'])
    on_top = file(robot={'fingers': []})
    for words in (['--params-file', on_top], ['-p', 'robot.fingers:=[]'], ['-p', 'policy:robot.fingers:=[]']):
        with pytest.raises(
            ValueError, match=r'gives robot.fingers an empty list, which ROS drops: the value of .*yaml'
        ):
            refuse_lost_lists(['--ros-args', '--params-file', profile, *words])
    refuse_lost_lists(['--ros-args', '--params-file', on_top, '-p', 'robot.other:=[]', '-p', 'broken', '--params-file'])
    refuse_lost_lists(['--params-file', profile, '-p', "robot.fingers:=['']", '--params-file', 'nowhere.yaml'])
    refuse_lost_lists(['--params-file', file('/arm/policy', list=['a']), '--params-file', file('/arm/show', list=[])])
