"""Reference pages from the sources: messages, their codes, and the robot profile."""

import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vla_core.profile import RobotProfile, profile_names, profile_path
from vla_policy_node.ros.parameters import ABOUT

PARTS = {'msg': ('',), 'srv': ('request', 'response'), 'action': ('goal', 'result', 'feedback')}
_LINE = re.compile(
    r'(?P<type>[\w/]+(?:<=\d+)?(?:\[[^\]]*\])?)\s+(?P<name>\w+)\s*(?:=\s*(?P<value>\S+))?\s*(?:#\s*(?P<about>.*))?'
)


@dataclass
class Part:
    """A part of an interface: message, request, response, goal, result or feedback."""

    about: str = ''
    fields: list[tuple[str, str, str]] = field(default_factory=list)  # name, type, meaning
    constants: list[tuple[str, str, str]] = field(default_factory=list)  # name, value, meaning


def parse(text: str) -> list[Part]:
    """Return the parts of an interface file.

    A comment before the first field describes the part, another one its field or constant. Raises ValueError with the
    first line that cannot be parsed.
    """
    parts = [Part()]
    for line in text.splitlines():
        part = parts[-1]
        if line.strip() == '---':
            parts.append(Part())
        elif line.lstrip().startswith('#'):
            if not part.fields and not part.constants:
                part.about = f'{part.about} {line.lstrip("# ")}'.strip()
        elif line.strip():
            found = _LINE.fullmatch(line.strip())
            if found is None:
                raise ValueError(f'neither field nor constant: {line!r}')
            name, about = found['name'], found['about'] or ''
            if found['value'] is not None:
                part.constants.append((name, found['value'], about))
            else:
                part.fields.append((name, found['type'], about))
    return parts


def messages_page(package: Path) -> str:
    """Return the page of messages. package: source folder of vla_msgs."""
    lines = [
        '# Messages',
        '',
        'Written by `./vla reference` from `src/vla_msgs`. Codes by name: [codes](codes.md).',
        '',
    ]
    for kind, names in PARTS.items():
        for path in sorted((package / kind).glob(f'*.{kind}')):
            lines += [f'## {path.stem}', '', f'`vla_msgs/{kind}/{path.stem}`', '']
            for name, part in zip(names, parse(path.read_text()), strict=True):
                lines += [f'**{name}**', ''] if name else []
                lines += [part.about, ''] if part.about else []
                if part.fields:
                    rows = [(f'`{n}`', f'`{t}`', about) for n, t, about in part.fields]
                    lines += _table(('field', 'type', 'meaning'), rows)
                else:
                    lines += ['No fields.', '']
    return '\n'.join(lines)


def codes_page(package: Path) -> str:
    """Return the page of all constants, grouped by prefix. package: source folder of vla_msgs."""
    lines = [
        '# Codes', '',
        'Written by `./vla reference` from `src/vla_msgs`. What makes the executor hold, and what ends it, is in',
        '[interfaces](interfaces.md#what-makes-the-executor-hold).', '',
    ]  # fmt: skip
    for kind in PARTS:
        for path in sorted((package / kind).glob(f'*.{kind}')):
            found = [c for part in parse(path.read_text()) for c in part.constants]
            if found:
                lines += [f'## {path.stem}', '', *_table(('code', 'value', 'meaning'), _ticked(found))]
    return '\n'.join(lines)


def profile_page() -> str:
    """Return the page of the robot profile: entries of the dataclass, then those of the shipped profiles alone."""
    profiles = {name: yaml.safe_load(Path(profile_path(name)).read_text()) for name in profile_names()}
    values = {name: content['/**']['ros__parameters'] for name, content in profiles.items()}
    lines = [
        '# Robot profile', '',
        'Written by `./vla reference` from `RobotProfile` and the profiles that come with the suite. A profile is a',
        'ROS parameter file that every node of a robot gets: `src/vla_bringup/config/robots/`. Lists are in the order',
        'of `joint_names`. The nodes refuse a profile that lacks an entry of `robot` or has one',
        'more, and one whose lists are of different lengths.',
        '', '## `robot`', '',
    ]  # fmt: skip
    rows = [
        (f'`{f.name}`', _kind(f.name, f.type), 'yes' if f.default is MISSING else '', ABOUT[f.name], *(
            _shown(v['robot'].get(f.name)) for v in values.values()
        ))
        for f in fields(RobotProfile)
    ]  # fmt: skip
    lines += _table(('entry', 'type', 'needed', 'meaning', *values), rows)
    lines += [
        '## Beside it', '',
        'Parameters of the nodes that a robot decides, not a person; their meanings and ranges are in',
        '[parameters](parameters.md). `gains` are for the controller: the simulator takes them, on a robot you set',
        'them.', '',
    ]  # fmt: skip
    flat = {name: _flat({k: v for k, v in content.items() if k != 'robot'}) for name, content in values.items()}
    keys = sorted({key for entries in flat.values() for key in entries})
    lines += _table(('entry', *values), [(f'`{k}`', *(_shown(flat[name].get(k)) for name in values)) for k in keys])
    return '\n'.join(lines)


def write_reference(root: Path) -> bool:
    """Write all pages into the repository at root."""
    for name, text in pages(root).items():
        (root / 'docs' / 'reference' / name).write_text(text)
    return True


def pages(root: Path) -> dict[str, str]:
    """Return file name -> text. Raises ValueError where the sources are missing."""
    package = root / 'src' / 'vla_msgs'
    if not package.is_dir():
        raise ValueError(f'{package} is not there: run this at the root of the repository')
    return {'messages.md': messages_page(package), 'codes.md': codes_page(package), 'robot-profile.md': profile_page()}


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    cells = [[str(c).replace('|', '/') for c in row] for row in rows]
    return [f'| {" | ".join(head)} |', '|' + '---|' * len(head), *(f'| {" | ".join(row)} |' for row in cells), '']


def _ticked(constants: list[tuple[str, str, str]]) -> list[tuple[str, ...]]:
    return [(f'`{name}`', value, about) for name, value, about in constants]


def _kind(name: str, kind: Any) -> str:
    if name in ('workspace', 'tool_offset'):
        return 'six floats'
    if kind in (np.ndarray, np.ndarray | None):
        return 'float per joint'
    return {str: 'text', float: 'float'}.get(kind, 'list of text')


def _shown(value: Any) -> str:
    return '' if value is None else f'`{value}`'.replace("'", '')


def _flat(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {f'{prefix}{key}': value}
    return found
