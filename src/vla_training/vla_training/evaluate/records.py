"""Records the episodes of a policy, each appended to a file when it ends, so that an interrupted run can continue."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vla_sim.rollout import EpisodeResult, wilson

HELD_OUT, CONTRAST = 'held-out', 'contrast'  # groups of episodes
EPISODES = 'episodes.jsonl'  # first line: facts that all episodes share
RENAMED = {'estimate': 'action_decoding', 'reuse': 'kv_reuse', 'seams': 'blending'}  # old name of a fact -> new


@dataclass(frozen=True)
class Record:
    """One episode. Times are simulated."""

    group: str  # HELD_OUT, or CONTRAST: one scene with two instructions
    task: str
    seed: int
    instruction: str
    success: bool
    missed: str  # first stage of the task that was not reached, see vla_sim.tasks.referee; empty: success
    wrong: str  # action on another object than the instructed one; empty: none
    duration: float  # [s]
    chunks: int
    refused: int  # chunks that the executor refused
    seams: tuple[float, ...]  # [rad] largest joint jump between two chunks while the arm moves
    messages: tuple[str, ...]  # reasons for refused chunks and for holds

    @classmethod
    def of(cls, group: str, result: EpisodeResult, messages: int = 3) -> 'Record':
        """Return the record of a result, with at most `messages` of its messages."""
        values = {f.name: getattr(result, f.name) for f in fields(cls) if f.name != 'group'}
        return cls(group=group, **(values | {'messages': result.messages[:messages]}))

    @property
    def key(self) -> tuple[str, str, int, str]:
        return self.group, self.task, self.seed, self.instruction

    @property
    def reason(self) -> str:
        """Return the cause of a failure in a few words."""
        return 'wrong object' if self.wrong else self.missed


@dataclass(frozen=True)
class Share:
    """A share of episodes."""

    count: int
    of: int  # number of all

    @property
    def rate(self) -> float:
        return self.count / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Return Wilson's 95 % interval."""
        return wilson(self.count, self.of)

    def __str__(self) -> str:
        low, high = self.interval
        return f'{100 * self.rate:.1f} % ({100 * low:.1f} .. {100 * high:.1f})'

    @classmethod
    def successes(cls, records: list[Record]) -> 'Share':
        return cls(sum(r.success for r in records), len(records))

    @classmethod
    def mistakes(cls, records: list[Record]) -> 'Share':
        return cls(sum(bool(r.wrong) for r in records), len(records))


class RecordFile:
    """The records of one folder."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        """Open or create the file. facts: shared by all episodes, such as the model and the latency.

        Raises ValueError when the file has other facts.
        """
        self.path = folder / EPISODES
        self.records: list[Record] = []
        if self.path.exists():
            lines = self.path.read_text().splitlines()
            before = _json(self.path, lines[0]) if lines else {}
            before = {RENAMED.get(name, name): value for name, value in before.items()}
            if before != json.loads(json.dumps(facts)):
                differ = sorted(k for k in {*before, *facts} if before.get(k) != facts.get(k))
                raise ValueError(
                    f'{folder} holds episodes of other settings ({", ".join(differ)} differ): give another folder, '
                    'or remove it'
                )
            whole = [line for line in lines[1:] if line.endswith('}')]  # the last one may be cut
            self.records = [_record(self.path, line) for line in whole]
            self._write(facts)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._write(facts)

    def _write(self, facts: dict[str, Any]) -> None:
        new = self.path.with_suffix('.new')
        new.write_text('\n'.join([json.dumps(facts), *(json.dumps(asdict(r)) for r in self.records), '']))
        new.replace(self.path)

    def add(self, record: Record) -> None:
        self.records.append(record)
        with self.path.open('a') as file:
            file.write(json.dumps(asdict(record)) + '\n')

    def missing(self, keys: Iterable[tuple[str, str, int, str]]) -> list[tuple[str, str, int, str]]:
        """Return the keys without a record, in order."""
        known = {r.key for r in self.records}
        return [key for key in keys if key not in known]


def _json(path: Path, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f'{path} is damaged ({error}): remove it') from None


def _record(path: Path, line: str) -> Record:
    content = _json(path, line)
    try:
        return Record(**(content | {'seams': tuple(content['seams']), 'messages': tuple(content['messages'])}))
    except (TypeError, KeyError) as error:
        raise ValueError(f'{path} was written by another version ({error}): give another folder') from None
