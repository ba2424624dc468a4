"""Tries engines in a child process before this process makes one.

Native code that dies by a signal, hangs or takes all memory then ends the trial, not the process that drives an arm.
The cache folder keeps verdicts by processor, threads, versions and model, so that later starts need no trial.
Importing this costs no torch.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vla_model.engines.cache import cache_folder, read_json, versions, write_json
from vla_model.engines.processor import cpu_flags, cpu_name

ENGINE, IMAGES = 'engine', 'image_engine'  # the parameters that a candidate is for
PASSED, REFUSED, DIED, HUNG, MEMORY = 'passed', 'refused', 'died', 'hung', 'memory'
LOADING, TRYING, COMPILING = 120.0, 60.0, 300.0  # [s] at most for a small model; for 'compile' as much more
PARAMETERS_PER_SECOND = 1e7  # a larger model has a second more for so many
RETRY = 24 * 3600.0  # [s] after which 'auto' tries an engine again that hung or had no memory
STOPPED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # a user's, no verdict
KEPT = 200  # models and settings whose verdicts are kept
LIBRARIES = ('torch', 'openvino', 'triton', 'tensorrt')  # the native code
FORMAT = 1  # grows when a trial does something else
FILE = 'trials.json'
REQUEST, RESULTS = 'request.json', 'results.jsonl'  # between parent and child
NO_MEMORY = ('out of memory', 'bad_alloc', 'MemoryError')
AGAIN = './vla doctor --again'
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """An engine of the network, or one of the image encoder with its precision."""

    part: str  # ENGINE or IMAGES
    name: str
    dtype: str = ''  # of the image encoder

    def __str__(self) -> str:
        return ' '.join(w for w in (self.part, self.name, self.dtype) if w)


@dataclass(frozen=True)
class Verdict:
    """The outcome of a trial. Times are in ms."""

    outcome: str  # PASSED, REFUSED, DIED, HUNG or MEMORY
    why: str = ''  # the rest of a sentence that starts with the candidate; empty: it passed
    ms: float = math.nan  # median of a forward
    share: float = math.nan  # of the time of eager in float32, measured in turns
    error: float = math.nan  # relative difference of logits, or share of codes that differ
    when: float = 0.0  # [s] since 1970

    @property
    def passed(self) -> bool:
        return self.outcome == PASSED

    @property
    def native(self) -> bool:
        """Whether this engine would have ended or blocked this process."""
        return self.outcome in (DIED, HUNG, MEMORY)


@dataclass(frozen=True)
class Subject:
    """The model that candidates are tried on, and the conditions under which it will run."""

    load: Mapping[str, Any]  # fields of LoadOptions, and the reference
    parameters: float  # numbers of its network
    identity: str  # changes with weights and configuration
    quantized: bool = False
    options: tuple[str, ...] = ()  # of its network, see NetworkConfig

    @property
    def key(self) -> str:
        """The key of verdicts in the cache: model, machine, versions and precision."""
        load = self.load
        flags = hashlib.sha256(' '.join(sorted(cpu_flags())).encode()).hexdigest()[:8]
        cores = f'{load["threads"]} threads on {len(os.sched_getaffinity(0))} cores'
        where = load['device'] if load['device'] == 'cpu' else f'{load["device"]} {_gpu(load["device"])}'
        machine = f'{cpu_name()} {flags}, {cores}, {where}'
        return f'{FORMAT}, {machine}, {versions(*LIBRARIES)}, {load["dtype"]}, {self.identity}'


def identity_of(name: str, config: str, seed: int | None, files: Sequence[Path]) -> str:
    """Return name and digest of a model: of configuration, seed, and names, sizes and times of its files."""
    found = hashlib.sha256(f'{config} {seed}'.encode())
    for path in files:
        stat = path.stat()
        found.update(f'{path.name} {stat.st_size} {stat.st_mtime_ns}'.encode())
    return f'{name}-{found.hexdigest()[:12]}'


def verdicts(
    subject: Subject, candidates: Sequence[Candidate], named: bool = False, again: bool = False
) -> dict[Candidate, Verdict]:
    """Return the verdicts of candidates. A candidate without a valid verdict in the cache folder is tried.

    named: the candidates are a user's choice, so that all but passed and died ones are tried again. again: try all.
    Raises ValueError where the model cannot be loaded for a trial.
    """
    key, file = subject.key, cache_folder() / FILE
    with _locked():  # other processes wait for these verdicts, and do not disturb the measured times
        kept = {} if again else _known(file, key)
        found = {c: kept[c] for c in candidates if c in kept and not _outdated(kept[c], named)}
        if missing := [c for c in candidates if c not in found]:
            _log.info('trying in a process of its own: %s', ', '.join(map(str, missing)))
            tried = run(subject, missing)
            _keep(file, key, tried)
            found |= tried
    return found


def _outdated(verdict: Verdict, named: bool) -> bool:
    """Return whether to try again: after a hang or lack of memory in time, and after a refusal of a named engine."""
    if verdict.outcome in (HUNG, MEMORY):
        return named or not 0 <= time.time() - verdict.when <= RETRY
    return named and verdict.outcome == REFUSED


def known(subject: Subject) -> dict[Candidate, Verdict]:
    """Return all cached verdicts on this model on this machine."""
    return _known(cache_folder() / FILE, subject.key)


def run(subject: Subject, candidates: Sequence[Candidate]) -> dict[Candidate, Verdict]:
    """Try the candidates in a child process; after a death, another child tries the remaining ones.

    Raises ValueError where the child cannot load the model.
    """
    found: dict[Candidate, Verdict] = {}
    while left := [c for c in candidates if c not in found]:
        found |= _child(subject, left)
    return found


def _child(subject: Subject, candidates: Sequence[Candidate]) -> dict[Candidate, Verdict]:
    """Return the verdicts of one child: of all candidates, or of those up to its death. Raises as `run`."""
    with tempfile.TemporaryDirectory(prefix='vla-trial-') as made:
        folder = Path(made)
        request = {'load': dict(subject.load), 'candidates': [asdict(c) for c in candidates]}
        (folder / REQUEST).write_text(json.dumps(request))
        (folder / RESULTS).touch()
        with (folder / 'output').open('w+', errors='replace') as output:
            process = subprocess.Popen(
                [sys.executable, '-m', 'vla_model.engines.trial_child', made, str(os.getpid())],
                cwd=folder,
                env={**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                bound = _wait(process, folder / RESULTS, subject, candidates)
            finally:
                process.kill()
                code = process.wait()
            output.seek(0)
            text = output.read()
        stages = _stages(folder / RESULTS)
    found = {candidates[s['end']]: Verdict(**s['verdict'], when=time.time()) for s in stages if 'end' in s}
    if failed := next((s['failed'] for s in stages if 'failed' in s), ''):
        raise ValueError(f'the model cannot be loaded to try engines on it: {failed}')
    if len(found) == len(candidates):
        return found
    _log.info('the output of a trial that ended early:\n%s', text)
    verdict = _verdict_of_end(code, bound, text)
    begun = next((candidates[s['begin']] for s in reversed(stages) if 'begin' in s), None)
    if begun is None or begun in found:
        raise ValueError(f'the process that tries engines {verdict.why}, before it tried one: {_last_line(text)}')
    return found | {begun: verdict}


def _wait(process: subprocess.Popen, results: Path, subject: Subject, candidates: Sequence[Candidate]) -> float:
    """Wait for the end of a child, or until a stage exceeds its time limit. Return the limit [s]; 0: it ended."""
    size, since, bound = -1, time.monotonic(), 0.0
    more = subject.parameters / PARAMETERS_PER_SECOND
    while True:
        try:
            process.wait(0.05)
            return 0.0
        except subprocess.TimeoutExpired:
            pass
        if (now := results.stat().st_size) != size:
            size, since = now, time.monotonic()
            stages = _stages(results)
            begun = next((candidates[s['begin']] for s in reversed(stages) if 'begin' in s), None)
            bound = more + (LOADING if begun is None else TRYING)
            bound += COMPILING if begun is not None and begun.name == 'compile' else 0.0
        if time.monotonic() - since > bound:
            return bound


def _stages(results: Path) -> list[dict]:
    """Return the stages that a child wrote, one per line; a cut last line is ignored."""
    stages = []
    for line in results.read_text().splitlines():
        with contextlib.suppress(ValueError):
            stages.append(json.loads(line))
    return stages


def _verdict_of_end(code: int, bound: float, output: str) -> Verdict:
    """Return the verdict of the candidate at which a child ended. bound: exceeded time limit [s], or 0."""
    now = time.time()
    if bound:
        return Verdict(HUNG, f'gave no result within {bound:.0f} s', when=now)
    if -code in STOPPED:
        raise ValueError(f'the process that tries engines {ending(code)}: start again')
    if code == -signal.SIGKILL or any(word in output for word in NO_MEMORY):
        return Verdict(MEMORY, f'ran out of memory ({ending(code)})', when=now)
    return Verdict(DIED, ending(code), when=now)


def ending(code: int) -> str:
    """Describe the end of a process by the exit code that `subprocess` returns."""
    if code >= 0:
        return f'ended with exit code {code}'
    try:
        return f'was killed by {signal.Signals(-code).name}'
    except ValueError:
        return f'was killed by signal {-code}'


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else 'it wrote nothing'


def _gpu(device: str) -> str:
    """Return the name of a GPU. Imports torch."""
    import torch

    return f'{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}'


# ---- the cache folder


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Hold the lock of trials, one process at a time. A cache folder that cannot be written has no lock."""
    with contextlib.ExitStack() as held:
        try:
            cache_folder().mkdir(parents=True, exist_ok=True)
            file = held.enter_context((cache_folder() / f'{FILE}.lock').open('w'))
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            _log.info('no lock in the cache folder: %s', error)
        yield


def _known(file: Path, key: str) -> dict[Candidate, Verdict]:
    found = {}
    try:
        for entry in read_json(file).get(key, []):
            found[Candidate(**entry['candidate'])] = Verdict(**entry['verdict'])
    except (TypeError, KeyError, AttributeError):  # another program wrote there
        return {}
    return found


def _keep(file: Path, key: str, tried: Mapping[Candidate, Verdict]) -> None:
    content = read_json(file)
    entries = {**_known(file, key), **tried}
    content.pop(key, None)  # the newest is the last one
    content[key] = [{'candidate': asdict(c), 'verdict': asdict(v)} for c, v in entries.items()]
    for old in list(content)[:-KEPT]:
        del content[old]
    write_json(file, content)
