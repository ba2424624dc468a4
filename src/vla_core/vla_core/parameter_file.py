"""Reads and writes ROS parameter files as YAML, with the meaning that they have for ROS."""

from collections.abc import Hashable, Mapping
from typing import Any

import yaml


class _Reader(yaml.SafeLoader):
    """Loader that merges the mappings of a repeated key, as rcl does. PyYAML alone drops the first silently."""


class _Writer(yaml.SafeDumper):
    """Dumper without aliases, which rcl refuses, and with quoted texts. rcl reads y as a bool and 1e3 as a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _mapping(reader: _Reader, node: yaml.MappingNode) -> dict[Any, Any]:
    reader.flatten_mapping(node)
    found: dict[Any, Any] = {}
    for name, content in node.value:
        key, value = reader.construct_object(name, deep=True), reader.construct_object(content, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, f'{key} cannot be a key', name.start_mark)
        found[key] = _both(found[key], value) if key in found else value
    return found


def _both(first: Any, second: Any) -> Any:
    """Return the second value, or of two mappings the entries of both."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return second
    common = {key: _both(first[key], second[key]) for key in first.keys() & second.keys()}
    return {**first, **second, **common}


_Reader.add_constructor('tag:yaml.org,2002:map', _mapping)
_Writer.add_representer(str, lambda writer, text: writer.represent_scalar('tag:yaml.org,2002:str', text, style='"'))


def parse(text: str) -> Any:
    """Return the content of a YAML text. Raises yaml.YAMLError."""
    return yaml.load(text, _Reader)


def parameter_file(parameters: Mapping[str, Any]) -> str:
    """Return the text of a ROS parameter file with these parameters, for a node of any name in any namespace."""
    return yaml.dump({'/**': {'ros__parameters': dict(parameters)}}, Dumper=_Writer, width=1_000_000)
