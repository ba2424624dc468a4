"""The cache folder, its files, and the library versions that they depend on. Importing this costs no torch."""

import json
import logging
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder of exported graphs and of verdicts on engines. It may be deleted."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'vla_model'


def write_json(file: Path, content: dict) -> None:
    """Write a JSON file atomically. Log a warning where the folder cannot be written; the next start is slower."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f'.{file.name}.{os.getpid()}')
        temporary.write_text(json.dumps(content, indent=2) + '\n')
        temporary.replace(file)
    except OSError as error:
        _log.warning('cannot write %s (%s): what was measured is not kept', file, error)


def read_json(file: Path) -> dict:
    """Return the object in a JSON file; empty where the file is missing or holds something else."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def versions(*packages: str) -> str:
    """Return the installed versions of packages; by default, of the libraries whose graphs are cached."""
    parts = []
    for package in packages or ('torch', 'openvino'):
        try:
            parts.append(f'{package} {version(package)}')
        except PackageNotFoundError:
            parts.append(f'no {package}')
    return ', '.join(parts)
