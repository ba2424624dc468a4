"""ROS parameter files as YAML: read with the meaning that they have for ROS, written so that ROS can read them."""

from collections.abc import Hashable, Mapping
from typing import Any

import yaml


class _Reader(yaml.SafeLoader):
    """A key that comes twice has the entries of both mappings, as in rcl; PyYAML alone drops the first silently."""


class _Writer(yaml.SafeDumper):
    """No aliases, which rcl refuses; texts in quotes, or rcl takes one like y or 1e3 for a bool or a number."""

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
    """The second value; of two mappings the entries of both."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return second
    common = {key: _both(first[key], second[key]) for key in first.keys() & second.keys()}
    return {**first, **second, **common}


_Reader.add_constructor('tag:yaml.org,2002:map', _mapping)
_Writer.add_representer(str, lambda writer, text: writer.represent_scalar('tag:yaml.org,2002:str', text, style='"'))


def parse(text: str) -> Any:
    """What a YAML text has. Raises yaml.YAMLError."""
    return yaml.load(text, _Reader)


def parameter_file(parameters: Mapping[str, Any]) -> str:
    """A ROS parameter file with parameters, by name, for a node of any name in any namespace."""
    return yaml.dump({'/**': {'ros__parameters': dict(parameters)}}, Dumper=_Writer, width=1_000_000)
