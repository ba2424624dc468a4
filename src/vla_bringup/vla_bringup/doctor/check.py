"""One line of the doctor, and what keeps a probe from hanging or breaking the others."""

import subprocess
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from vla_model.engines.trial import ending


class Verdict(Enum):
    OK = 'ok'
    WARN = 'warning'
    BAD = 'bad'
    SKIP = 'skipped'


@dataclass(frozen=True)
class Check:
    """One line: a fact, what to think of it, and what to do. Skipped: the fact is why it could not be asked."""

    name: str
    fact: str
    verdict: Verdict = Verdict.OK
    remedy: str = ''


def warn(name: str, fact: str, remedy: str) -> Check:
    return Check(name, fact, Verdict.WARN, remedy)


def bad(name: str, fact: str, remedy: str) -> Check:
    return Check(name, fact, Verdict.BAD, remedy)


def skip(name: str, reason: str, remedy: str = '') -> Check:
    return Check(name, reason, Verdict.SKIP, remedy)


Found = Check | Iterable[Check]
Probing = Callable[[], Found]


def bounded(name: str, function: Probing, seconds: float) -> tuple[list[Check], bool]:
    """The checks of a probe and whether it ended; one that takes longer, or fails, is a bad line like any other.

    What it found before is kept. A probe that hangs in a system call cannot be stopped: its thread is left behind.
    """
    found: list[Check] = []

    def collect() -> None:
        try:
            checks = function()
            for check in [checks] if isinstance(checks, Check) else checks:
                found.append(check)
        except Exception as error:  # a probe must not take the others with it
            found.append(
                bad(
                    name,
                    f'could not be asked: {type(error).__name__}: {error}',
                    'a fault of the doctor: report it with ./vla doctor --json',
                )
            )

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        late = bad(name, f'no answer within {seconds:.0f} s', 'a driver, a disk or the network hangs: see dmesg')
        return [*found, late], False
    return found, True


def said(words: list[str], timeout: float = 10.0) -> str | None:
    """What a program printed; None where it is not installed. Raises RuntimeError with its complaint."""
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
        known = done.returncode > 0 and lines  # of a program that dies, the last line is about something else
        raise RuntimeError(f'{words[0]}: {lines[-1] if known else ending(done.returncode)}')
    return done.stdout
