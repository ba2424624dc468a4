"""What rcl loses of a command line: an empty list that is to replace another value."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from vla_core.parameter_file import parse


def refuse_lost_lists(words: Sequence[str]) -> None:
    """Raise ValueError for an empty list that stands for another value of an earlier file or option.

    rcl drops an empty list. Where it is the only value of its parameter the node can see that it was given; where it
    comes after another one that other one stays in force, without a word. words: the command line.
    """
    known: list[tuple[str, str, str]] = []  # what has a value: node pattern, parameter, where it is from
    for source, node, values in _sources(words):
        for name, value in values.items():
            if value is not None and value != []:
                known.append((node, name, source))
                continue
            for other, same, earlier in known:
                if same == name and (other == node or '*' in other + node):
                    raise ValueError(
                        f'{source} gives {name} an empty list, which ROS drops: the value of {earlier} would stay. '
                        "Write [''] for a list of names without any"
                    )


def _sources(words: Sequence[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(where, node pattern, parameters by full name) in the order in which rcl reads them.

    What it cannot read is passed over here: rcl has the better message.
    """
    for word, given in pairwise(words):
        try:
            if word == '--params-file':
                content = parse(Path(given).read_text())
                for node, parameters in content.items():
                    yield f'parameter file {given}', node, dict(_flat(parameters['ros__parameters']))
            elif word in ('-p', '--param'):
                name, _, value = given.partition(':=')
                node, _, name = name.rpartition(':')
                yield f'option -p {given}', node or '/**', {name: yaml.safe_load(value)}
        except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError):
            continue


def _flat(tree: dict[str, Any], above: str = '') -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f'{above}{name}.')
        else:
            yield f'{above}{name}', value
