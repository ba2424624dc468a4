"""Parameter files are read as rcl reads them, and rcl reads back what was written."""

import pytest
import yaml

from vla_core.parameter_file import parameter_file, parse


def test_rcl_reads_back_what_was_written(ros, tmp_path):
    """Texts that look like a bool or a number, a list that stands twice: PyYAML alone writes y and an alias."""
    twice = [1.0, 2.0]
    values = {'a': 'y', 'b': '1e3', 'c': 'é: "1"\n', 'd': ['n', '5'], 'e': 1e-6, 'f': twice, 'g': twice}
    (path := tmp_path / 'x.yaml').write_text(parameter_file(values))
    words = ['--ros-args', '--params-file', str(path)]
    node = ros.add('some', cli_args=words, automatically_declare_parameters_from_overrides=True)
    read = {name: node.get_parameter(name).value for name in values}
    assert {name: list(v) if not isinstance(v, str | float) else v for name, v in read.items()} == values


def test_a_node_that_stands_twice_has_the_parameters_of_both_places(ros, tmp_path):
    text = '/**: {ros__parameters: {a: 1, b: {c: 2}}}\n/**: {ros__parameters: {b: {d: 3}, a: 4}}\n'
    (path := tmp_path / 'x.yaml').write_text(text)
    words = ['--ros-args', '--params-file', str(path)]
    node = ros.add('some', cli_args=words, automatically_declare_parameters_from_overrides=True)
    assert {n: node.get_parameter(n).value for n in ('a', 'b.c', 'b.d')} == {'a': 4, 'b.c': 2, 'b.d': 3}
    assert parse(text) == {'/**': {'ros__parameters': {'a': 4, 'b': {'c': 2, 'd': 3}}}}


@pytest.mark.parametrize('text', ['{[a]: 1}', '&a {b: *a}', '{a: '])
def test_what_is_no_yaml_is_refused(text):
    with pytest.raises(yaml.YAMLError):
        parse(text)
