"""Runs nodes as processes without `ros2 launch`: starts them, detects the end of one, stops all."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_prefix

from vla_bringup.processes.nodes import NodeSpec
from vla_model.engines.trial import ending

STOP_TIME = 10.0  # [s] from SIGINT to SIGKILL
LAST_LINES = 25  # last lines of a log, shown when its node ended


class NodeEnded(RuntimeError):
    """The process of a node ended by itself. name: full node name; code: exit code, negative for a signal."""

    def __init__(self, name: str, code: int, text: str) -> None:
        super().__init__(text)
        self.name, self.code = name, code


def command(spec: NodeSpec, folder: Path) -> list[str]:
    """Return the command line of a node and write its parameter file into folder.

    Raises ValueError if the node is not installed.
    """
    try:
        program = Path(get_package_prefix(spec.package), 'lib', spec.package, spec.executable)
    except PackageNotFoundError:
        raise ValueError(f'package {spec.package} is not built: run ./vla build') from None
    if not program.is_file():
        raise ValueError(f'{spec.package} has no executable {spec.executable}: run ./vla build')
    words = [str(program), '--ros-args', '-r', f'__node:={spec.name}', '-r', f'__ns:={spec.namespace or "/"}']
    for old, new in spec.remappings:
        words += ['-r', f'{old}:={new}']
    if spec.parameters:
        words += ['--params-file', str(spec.write_parameters(folder))]
    # The log of the node is its output, which is kept: no second copy in ~/.ros/log.
    return [*words, '--disable-external-lib-logs']


class Supervisor:
    """Starts nodes inside a with statement; at its end every process is stopped.

    folder: for a log file and a parameter file per node. environment: added to that of this process.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._environment = {**os.environ, 'PYTHONUNBUFFERED': '1', **(environment or {})}
        self._processes: dict[str, subprocess.Popen] = {}
        self._logs: dict[str, Path] = {}

    def __enter__(self) -> 'Supervisor':
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, spec: NodeSpec) -> None:
        """Start one node. Raises ValueError when it cannot be started."""
        if spec.full_name in self._processes:
            raise ValueError(f'{spec.full_name} runs already')
        words = command(spec, self.folder)
        log = self.folder / f'{spec.file_stem}.log'
        with log.open('wb') as output:  # a file, not a pipe: a full pipe without a reader would block the node
            self._processes[spec.full_name] = subprocess.Popen(
                words,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self._environment,
                start_new_session=True,  # Ctrl-C reaches this process alone, which stops the nodes in order
                preexec_fn=_in_child,  # noqa: PLW1509 (it takes no lock)
            )
        self._logs[spec.full_name] = log

    def check(self) -> None:
        """Raise NodeEnded, with the last lines of its log, if a node ended by itself."""
        for name, process in self._processes.items():
            if (code := process.poll()) is not None:
                text = f'{name} {ending(code)}. The end of {self._logs[name]}:\n{self.last_lines(name)}'
                raise NodeEnded(name, code, text)

    def alive(self, name: str) -> bool:
        """Return whether a started node still runs. name: full node name."""
        return self._processes[name].poll() is None

    def pid(self, name: str) -> int:
        """Return the process id of a node. name: full node name."""
        return self._processes[name].pid

    def last_lines(self, name: str) -> str:
        """Return the last lines of a node's output."""
        lines = self._logs[name].read_text(errors='replace').splitlines()
        return '\n'.join('    ' + line for line in lines[-LAST_LINES:]) or '    (no output)'

    def stop(self, names: list[str] | None = None) -> dict[str, int]:
        """Stop nodes, all by default, in reverse order of their start; return the exit codes of those that still ran.

        Each gets SIGINT after the end of the one before, and SIGKILL to its group after STOP_TIME.
        """
        names = list(reversed(self._processes)) if names is None else names
        going = {name: self._processes.pop(name) for name in names}
        codes = {}
        try:
            for name in names:
                if going[name].poll() is None:
                    codes[name] = _stop(going[name])
        finally:  # a second Ctrl-C, too, stops all processes
            for process in going.values():
                _kill(process)
        return codes


def _stop(process: subprocess.Popen) -> int:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_TIME)
    except subprocess.TimeoutExpired:
        pass
    _kill(process)
    return process.returncode


def _kill(process: subprocess.Popen) -> None:
    """Send SIGKILL to the process group of a process."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()


# Loaded before any fork: between fork and exec only plain calls are safe.
_prctl = ctypes.CDLL(None).prctl if sys.platform == 'linux' else None
_PR_SET_PDEATHSIG = 1


def _in_child() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the background job of a shell passes on an ignored SIGINT
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGINT)  # the nodes stop if this process is killed
