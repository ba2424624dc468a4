"""The cache folder, its files, and the versions that these depend on. Importing this costs no torch."""

import json
import logging
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder of exported graphs and of verdicts on engines; deleting it is harmless."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'vla_model'


def write_json(file: Path, content: dict) -> None:
    """The file appears whole or not at all. A folder that cannot be written costs time at the next start, no more."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f'.{file.name}.{os.getpid()}')
        temporary.write_text(json.dumps(content, indent=2) + '\n')
        temporary.replace(file)
    except OSError as error:
        _log.warning('cannot write %s (%s): what was measured is not kept', file, error)


def read_json(file: Path) -> dict:
    """The object in a file; empty where there is none, or another kind of content."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def versions(*packages: str) -> str:
    """The installed versions of packages, by default of the libraries whose graphs are kept."""
    parts = []
    for package in packages or ('torch', 'openvino'):
        try:
            parts.append(f'{package} {version(package)}')
        except PackageNotFoundError:
            parts.append(f'no {package}')
    return ', '.join(parts)
