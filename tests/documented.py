"""Commands in the documentation: collected, and checked without being run.

A fenced block of bash, or a command indented by four spaces, is what a reader is meant to type. What it needs beside
./vla stands in a comment before it, `<!-- needs: robot -->`: see NEEDS. Of all other commands COVERED says which test
runs them.
"""

import ast
import importlib
import importlib.util
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import typer
import typer.core
import typer.main

from vla_bringup.processes import overrides

from .conftest import ROOT

NEEDS = {
    'robot': 'a real arm, or its drivers',
    'gpu': 'an NVIDIA GPU, several, or a Jetson',
    'ros': 'ros2cli, launch or rosdep: a ROS installation in /opt/ros',
    'docker': 'docker and its images',
    'root': 'rights that change the machine',
    'checkpoint': 'weights, bags or recordings that the reader has',
    'hours': 'hours',
}
SCRIPT = ('build', 'prepare', 'shell', 'test')  # what ./vla itself does, before Python
# Command of ./vla or module -> the test that runs it, or its code on less data. Each file must name the last word.
COVERED = {
    'parameters': 'tests/test_parameters.py',
    'build': 'tests/conftest.py',  # nothing runs without
    'test': 'tests/test_docs.py',
    'shell': 'tests/test_docs.py',
    'demo': 'tests/test_tutorial.py',
    'doctor': 'tests/test_doctor.py',
    'graph': 'tests/test_tutorial.py',
    'reference': 'tests/test_docs.py',
    'parity': 'src/vla_model/test/test_parity.py',
    'replay': 'tests/test_replay.py',
    'bench replay': 'src/vla_bringup/test/test_replay.py',
    'bench remote': 'src/vla_bench/test/test_bench_remote.py',
    'serve': 'src/vla_model/test/test_remote.py',
    'quantize': 'src/vla_model/test/test_quantize.py',
    'train collect': 'src/vla_training/test/test_collect.py',
    'train convert': 'tests/test_tutorial.py',
    'train annotate': 'tests/test_tutorial.py',
    'train frames': 'src/vla_training/test/test_tokenize.py',
    'train images': 'src/vla_training/test/test_tokenize.py',
    'train depth': 'src/vla_training/test/test_depth_tokenizer.py',
    'train tokenize': 'src/vla_training/test/test_tokenize.py',
    'train static-scenes': 'src/vla_training/test/test_static_scenes.py',
    'train fit': 'src/vla_training/test/test_ablate.py',
    'train evaluate': 'src/vla_training/test/test_evaluate.py',
    'bench model': 'src/vla_model/test/test_bench.py',
    'convert-vqgan': 'src/vla_model/test/test_rynnvla_policy.py',
    'bench rynnvla': 'src/vla_model/test/test_rynnvla_bench.py',
    'bench holds': 'src/vla_bench/test/test_bench_holds.py',
    'bench memory': 'src/vla_bench/test/test_bench_memory.py',
    'bench executor': 'tests/test_bench_executor.py',
    'bench overhead': 'tests/test_bench_overhead.py',
    'bench policy': 'tests/test_bench_policy.py',
    'bench motion': 'src/vla_bench/test/test_bench_motion.py',
    'vla_bench.fuzz.run': 'src/vla_bench/test/test_stress.py',
}
# Other programs that a page may use; only the files that they are given are checked.
TOOLS = {
    '.', 'apt-get', 'cat', 'cd', 'chrt', 'colcon', 'cp', 'docker', 'echo', 'export', 'git', 'jetson_clocks', 'kill',
    'ls', 'mkdir', 'nvpmodel', 'pip', 'rosdep', 'source', 'sysctl', 'torchrun', 'usermod', 'xhost',
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """Commands that stand together."""

    page: Path
    lines: tuple[str, ...]
    needs: tuple[str, ...]


def pages() -> list[Path]:
    return [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]


def blocks(page: Path) -> list[Block]:
    """Raises ValueError for a comment that names what NEEDS does not."""
    found, lines, needs, inside = [], [], (), ''
    for line in page.read_text().splitlines():
        fence = re.match(r'\s*```(\w*)', line)
        if fence:
            if inside == 'bash':
                found.append(Block(page, _joined(lines), needs))
            inside, lines = ('' if inside else fence.group(1) or 'text'), []
            if not inside:
                needs = ()
        elif inside:
            lines.append(line.strip())
        elif comment := re.match(r'\s*<!-- needs: (.*) -->', line):
            needs = tuple(word.strip() for word in comment.group(1).split(','))
            if unknown := set(needs) - set(NEEDS):
                raise ValueError(f'{page}: needs {sorted(unknown)}: one of {sorted(NEEDS)}')
        elif re.match(r' {4}(\./vla|python3?|pip|ros2|docker) ', line):
            found.append(Block(page, _joined([line.strip()]), needs))
        elif line.strip():
            needs = ()
    return found


def _joined(lines: list[str]) -> tuple[str, ...]:
    """Without comments and empty lines, continued lines in one."""
    text = re.sub(r'\s*\\\n\s*', ' ', '\n'.join(lines))
    return tuple(s for line in text.splitlines() if (s := re.sub(r'(^|\s)#.*$', '', line).strip()))


def split(line: str) -> list[str]:
    """Words of a command, without variables set before it, sudo, and what comes behind && or |."""
    words = shlex.split(re.split(r'\s(?:&&|\|)\s', line)[0])
    while words and (re.fullmatch(r'\w+=.*', words[0]) or words[0] == 'sudo'):
        words.pop(0)
    return words


def command_of(line: str) -> str:
    """The key of a command in COVERED; empty: none of ours, or only a variable that is set."""
    words = split(line)
    if words[:1] == ['./vla']:
        group, path = typer.main.get_command(_app()), []
        for word in words[1:]:
            path.append(word)
            group = group.commands.get(word)
            if not isinstance(group, typer.core.TyperGroup):
                break
        return ' '.join(path)
    if '-m' in words and words[0].startswith(('python', 'torchrun')):
        module = words[words.index('-m') + 1]
        rest = words[words.index('-m') + 2 :]
        return f'train {rest[0]}' if module == 'vla_training.cli' else module
    return ''


def check_line(line: str) -> str:
    """What is wrong with a command: its options, arguments or files do not exist. Empty: nothing."""
    wrong = [check_line(part) for part in re.split(r'\s(?:&&|\|)\s', line)[1:]]
    words = split(line)
    if not words:
        return ''.join(wrong)
    program = words[0].removeprefix('.venv/bin/')
    if program == './vla':
        wrong.append(_vla(words[1:]))
    elif program == 'ros2':
        wrong.append(_ros2(words[1:]))
    elif program.startswith('python') or program == 'torchrun':
        wrong.append(_module(words))
    elif program.startswith('install/'):
        wrong.append('' if (ROOT / program).exists() else f'{program} is not built')
    elif program not in TOOLS:
        wrong.append(f'{program}: neither ours nor among TOOLS')
    for word in words[1:]:
        path = word.split(':=')[-1].split('=')[-1].removeprefix('./')
        if re.match(r'(src|docs|docker|requirements|scripts|tests|install)/[\w./-]*$', path):
            wrong.append('' if (ROOT / path).exists() else f'{path} does not exist')
    return '; '.join(w for w in wrong if w)


def _app() -> typer.Typer:
    from vla_bringup.cli import app

    return app


def _vla(words: list[str]) -> str:
    if words and words[0] in SCRIPT:
        return '' if re.search(rf'^  {words[0]}\)', (ROOT / 'vla').read_text(), re.M) else f'./vla has no {words[0]}'
    command = typer.main.get_command(_app())
    while isinstance(command, typer.core.TyperGroup) and words and words[0] != '--help':
        name, *words = words
        command = command.commands.get(name)
        if command is None:
            return f'./vla has no {name}'
    if '--help' in words:
        return ''
    if isinstance(command, typer.core.TyperGroup):
        return 'a command is missing'
    try:
        command.make_context(command.name, list(words))  # parses, runs nothing
    except Exception as error:
        if hasattr(error, 'format_message'):  # click's, which typer brings under a name of its own
            return error.format_message()
        raise
    return ''


def launch_arguments(path: Path) -> dict[str, tuple[str, ...]]:
    """Name -> choices, () for any, of what a launch file declares; read without launch."""
    found: dict[str, tuple[str, ...]] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        called = getattr(node.func, 'id', '') if isinstance(node, ast.Call) else ''
        if called in ('model_arguments', 'parameter_arguments'):
            every = overrides.MODEL if called == 'model_arguments' else overrides.ARGUMENTS
            found |= dict.fromkeys([a.value for a in node.args if isinstance(a, ast.Constant)] or every, ())
        elif called == 'DeclareLaunchArgument':
            choices = next((k.value for k in node.keywords if k.arg == 'choices'), None)
            listed = choices.elts if isinstance(choices, ast.List) else []
            known = all(isinstance(e, ast.Constant) for e in listed)  # else any value: names are not looked up
            values = [e.value for e in listed] if known else []
            found[node.args[0].value] = tuple(values)
    return found


def _ros2(words: list[str]) -> str:
    verb, *rest = words
    if verb == 'launch' and rest[0] == 'vla_bringup':
        path = ROOT / 'src/vla_bringup/launch' / rest[1]
        if not path.is_file():
            return f'{rest[1]} does not exist'
        known = launch_arguments(path)
        for word in rest[2:]:
            name, _, value = word.partition(':=')
            if name == '--show-args':
                continue
            if name not in known:
                return f'{rest[1]} has no argument {name}'
            if known[name] and value not in known[name]:
                return f'{rest[1]}: {name} must be one of {known[name]}'
    elif verb == 'run' and rest[0].startswith('vla_'):
        if f'{rest[1]} =' not in (ROOT / 'src' / rest[0] / 'setup.py').read_text():
            return f'{rest[0]} has no executable {rest[1]}'
    elif verb in ('service', 'topic', 'action'):
        kinds = [w for w in rest if re.fullmatch(r'\w+/(msg|srv|action)/\w+', w)]
        for kind in kinds:
            package, part, name = kind.split('/')
            if not hasattr(importlib.import_module(f'{package}.{part}'), name):
                return f'there is no {kind}'
    elif verb not in ('launch', 'run', 'lifecycle', 'bag', 'param', 'node', 'control', 'multicast'):
        return f'ros2 has no {verb}'
    return ''


def _module(words: list[str]) -> str:
    if '-m' not in words:
        return ''
    module, *rest = words[words.index('-m') + 1 :]
    if importlib.util.find_spec(module) is None:
        return f'there is no module {module}'
    return _vla(['train', *rest]) if module == 'vla_training.cli' else ''
