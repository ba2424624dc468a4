"""A line of the doctor, and the bounds that keep a probe from stopping the others."""

import subprocess
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from vla_model.engines.trial import ending


class Verdict(Enum):
    OK = 'ok'
    WARN = 'warning'
    FAIL = 'fail'
    SKIP = 'skipped'


@dataclass(frozen=True)
class Check:
    """One line: a fact, its verdict and a remedy. With verdict SKIP the fact is the reason why there is no answer."""

    name: str
    fact: str
    verdict: Verdict = Verdict.OK
    remedy: str = ''


def warn(name: str, fact: str, remedy: str) -> Check:
    return Check(name, fact, Verdict.WARN, remedy)


def fail(name: str, fact: str, remedy: str) -> Check:
    return Check(name, fact, Verdict.FAIL, remedy)


def skip(name: str, reason: str, remedy: str = '') -> Check:
    return Check(name, reason, Verdict.SKIP, remedy)


Found = Check | Iterable[Check]
Probing = Callable[[], Found]


def bounded(name: str, function: Probing, seconds: float) -> tuple[list[Check], bool]:
    """Return the checks of a probe, and whether it ended within seconds [s].

    A probe that raises, or that takes longer, adds a check with verdict FAIL; its earlier checks are kept.
    A probe that hangs in a system call cannot be stopped: its thread is left running.
    """
    found: list[Check] = []

    def collect() -> None:
        try:
            checks = function()
            for check in [checks] if isinstance(checks, Check) else checks:
                found.append(check)
        except Exception as error:  # the other probes must run
            found.append(
                fail(
                    name,
                    f'the check failed: {type(error).__name__}: {error}',
                    'a fault of the doctor: report it with ./vla doctor --json',
                )
            )

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        late = fail(name, f'no answer within {seconds:.0f} s', 'a driver, a disk or the network hangs: see dmesg')
        return [*found, late], False
    return found, True


def output_of(words: list[str], timeout: float = 10.0) -> str | None:
    """Return the standard output of a program; None where it is not installed. timeout: [s].

    Raises RuntimeError with the last line of its error output when it fails.
    """
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        raise RuntimeError(f'{words[0]} does not answer within {timeout:.0f} s') from None
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        known = done.returncode > 0 and lines  # a program that is killed does not print the cause
        raise RuntimeError(f'{words[0]}: {lines[-1] if known else ending(done.returncode)}')
    return done.stdout
