"""Reports the conversion of each bag: streams, frames and damage."""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from vla_core import clocks
from vla_core.clocks import NS
from vla_training.bag import Damage

GAP = 1.5  # times the usual interval
AHEAD, MANY = 0.01, 0.05  # [s], share of the messages: stamps so far ahead of arrival are reported, although used
STILL = 2e-3  # [rad] smallest range of a joint that counts as motion; sensors have noise


@dataclass
class StreamReport:
    """Stamps of the readable messages of one stream."""

    topic: str
    stamps: array = field(default_factory=lambda: array('q'))  # [ns], as they came
    lags: array = field(default_factory=lambda: array('q'))  # [ns] arrival minus stamp, where it is known

    def add(self, stamp: int, received: int = 0) -> None:
        """Add a message. stamp, received: times [ns]; received 0: unknown."""
        self.stamps.append(stamp)
        if received:
            self.lags.append(received - stamp)

    def ahead(self) -> float:
        """Return how far stamps are ahead of arrival [s], if more than a share MANY of them is ahead; else 0."""
        lags = np.asarray(self.lags, np.int64)
        early = lags[lags < -AHEAD * NS]
        return -float(np.median(early)) / NS if len(early) > MANY * len(lags) else 0.0

    def summary(self) -> dict[str, Any]:
        """Return the statistics of the stream for the report.

        rate [Hz]: from the median interval. gaps: longer than GAP intervals. longest_gap [s]. lost_in_gaps: messages.
        out_of_order: messages stamped before their predecessor. lag [s]: median time from stamp to arrival.
        """
        steps = np.diff(np.asarray(self.stamps, np.int64)) / NS
        forward = np.diff(np.unique(np.asarray(self.stamps, np.int64))) / NS
        usual = float(np.median(forward)) if len(forward) else 0.0
        gaps = forward[np.greater(forward, GAP * usual)] if usual else np.zeros(0)
        return {
            'topic': self.topic,
            'messages': len(self.stamps),
            'rate': round(1 / usual, 3) if usual else 0.0,
            'gaps': len(gaps),
            'longest_gap': round(float(forward.max()), 4) if len(forward) else 0.0,
            'lost_in_gaps': int((np.rint(gaps / usual) - 1).sum()) if usual else 0,
            'out_of_order': int((steps < 0).sum()),
            'lag': round(float(np.median(self.lags)) / NS, 4) if len(self.lags) else None,
        }


@dataclass
class ToolPixelReport:
    """How the tool's pixels of one camera were found."""

    frames: int = 0  # frames that were asked for
    known: int = 0
    source: str = ''  # what they were computed from; empty: none is known
    why_not: str = ''  # reason for the first unknown one


@dataclass
class BagReport:
    """One bag."""

    bag: str
    streams: dict[str, StreamReport] = field(default_factory=dict)
    unusable: Counter[str] = field(default_factory=Counter)  # cause -> images without a complete set
    causes: dict[str, str] = field(default_factory=dict)  # cause in `unusable` -> the sentence of the first of them
    dropped: Counter[str] = field(default_factory=Counter)  # cause -> frames
    gaps: list[float] = field(default_factory=list)  # [s] gaps that ended an episode
    stand_ins: Counter[str] = field(default_factory=Counter)  # camera -> frames with an earlier image
    oldest: float = 0.0  # [s] largest age of these images
    tool_pixels: dict[str, ToolPixelReport] = field(default_factory=dict)  # camera -> its tool pixels
    left_out: set[str] = field(default_factory=set)  # known columns of tool pixels that the data set lacks
    clocks: list[str] = field(default_factory=list)  # a sentence per clock of a sender that was set
    slow: list[str] = field(default_factory=list)  # a sentence per camera that is slower than the frame rate
    low: Any = None  # (dof,) [rad] least joint positions
    high: Any = None  # same, largest
    bad_messages: Counter[str] = field(default_factory=Counter)  # topic -> messages with impossible content
    examples: dict[str, str] = field(default_factory=dict)  # topic -> fault of the first of them
    # topic -> sentence: its stamps are ahead, not too far to be used
    ahead: dict[str, str] = field(default_factory=dict)
    damage: Damage = field(default_factory=Damage)
    worst_skew: float = 0.0  # [s] between two values of a frame that was kept
    kept: int = 0  # [frame]
    episodes: int = 0
    failed: str = ''  # why the bag could not be converted at all

    def stream(self, name: str, topic: str) -> StreamReport:
        if name not in self.streams:
            self.streams[name] = StreamReport(topic)
        return self.streams[name]

    def bad(self, topic: str, why: str, count: int = 1) -> None:
        self.bad_messages[topic] += count
        self.examples.setdefault(topic, why)

    def tool_pixel(self, camera: str) -> ToolPixelReport:
        return self.tool_pixels.setdefault(camera, ToolPixelReport())

    def without_set(self, cause: str, sentence: str) -> None:
        """Count an image without a complete set. cause: short name. sentence: fault and remedy."""
        self.unusable[cause] += 1
        self.causes.setdefault(cause, sentence)

    def stood_in(self, camera: str, age: float) -> None:
        """Count a frame whose image of the camera is older than the frame by age [s]."""
        self.stand_ins[camera] += 1
        self.oldest = max(self.oldest, age)

    def clock_set(self, since: int, why: str) -> None:
        """Note that a sender's clock was set. since: time since the start of the bag [ns]."""
        self.clocks.append(f'after {since / NS:.1f} s of the bag, {why}')

    def judge_stamps(self) -> None:
        """Note the streams whose stamps are ahead of arrival, but close enough to be used. Call it at the end."""
        for name, stream in self.streams.items():
            if AHEAD < (seconds := stream.ahead()) <= clocks.FUTURE_TOLERANCE:
                self.ahead[stream.topic] = clocks.ahead(f'{name} on {stream.topic}', seconds)

    def moved(self, positions: np.ndarray) -> None:
        """Add joint positions (dof,) [rad] to the range of motion."""
        self.low = positions if self.low is None else np.minimum(self.low, positions)
        self.high = positions if self.high is None else np.maximum(self.high, positions)

    @property
    def motion(self) -> float | None:
        """Return the largest range of a joint [rad]; None: no joint state was received."""
        return float((self.high - self.low).max()) if self.low is not None else None

    @property
    def corrupt(self) -> int:
        return sum(self.bad_messages.values()) + sum(self.damage.undecodable.values())

    def as_dict(self) -> dict[str, Any]:
        return {
            'bag': self.bag,
            'episodes': self.episodes,
            'frames_kept': self.kept,
            'frames_dropped': dict(self.dropped),
            'images_without_a_complete_set': dict(self.unusable),
            'causes': dict(self.causes),
            'gaps_that_ended_an_episode': {'count': len(self.gaps), 'longest': round(max(self.gaps, default=0.0), 3)},
            'frames_with_an_older_image': dict(self.stand_ins),
            'oldest_image': round(self.oldest, 4),
            'tool_pixels': {name: vars(found) for name, found in self.tool_pixels.items()},
            'columns_left_out': sorted(self.left_out),
            'worst_skew': round(self.worst_skew, 4),
            'motion': None if self.motion is None else round(self.motion, 6),
            'streams': {name: stream.summary() for name, stream in self.streams.items()},
            'messages_with_wrong_content': dict(self.bad_messages),
            'messages_undecodable': dict(self.damage.undecodable),
            'examples': [*(f'{t}: {why}' for t, why in self.examples.items()), *self.damage.examples],
            'ahead': list(self.ahead.values()),
            'order': self.damage.order + self.clocks,
            'slow_cameras': self.slow,
            'damage': self.damage.problems,
            'passed_over': dict(self.damage.foreign),
            'parts_without_checksum': self.damage.unchecked,
            'failed': self.failed,
        }


def notes(report: dict[str, Any]) -> list[str]:
    """Return the lines that the user should read about one bag, from its as_dict."""
    if report.get('skipped'):
        return [report['skipped']]
    lines = [f'not converted: {report["failed"]}'] if report['failed'] else []
    lines += report.get('order', []) + report.get('slow_cameras', [])  # reports of earlier versions have none
    if report.get('motion') is not None and report['motion'] < STILL:
        lines.append(
            f'the arm never moved: no joint by more than {report["motion"] * 1000:.2g} mrad; '
            'check that its states, and not those of another robot or of a stopped driver, were recorded'
        )
    lines += report.get('ahead', []) + report['damage'] + report['examples']
    if foreign := report.get('passed_over'):
        names = ', '.join(f'{topic} ({encoding})' for topic, encoding in sorted(foreign.items()))
        lines.append(f'topics passed over, their messages are not of ROS 2: {names}')
    lines += [f'{count} frames dropped: {why}' for why, count in report['frames_dropped'].items()]
    causes = report.get('causes', {})  # reports of earlier versions have none
    for cause, count in report['images_without_a_complete_set'].items():
        sentence = f'; the first: {causes[cause]}' if cause in causes else ''
        lines.append(f'{count} images without a set: {cause}{sentence}')
    for camera, count in report.get('frames_with_an_older_image', {}).items():
        lines.append(f'{count} frames have an image of {camera} from before, {report["oldest_image"]:g} s old at most')
    lines += _tool_pixel_notes(report.get('tool_pixels', {}))  # reports of earlier versions have none
    if left_out := report.get('columns_left_out'):
        lines.append(
            f'the data set has no column {", ".join(left_out)}, because its first episode has no such pixels: convert '
            'this bag first, or into a data set of its own'
        )
    if report['gaps_that_ended_an_episode']['count']:
        gaps = report['gaps_that_ended_an_episode']
        lines.append(f'{gaps["count"]} gaps without frames ended an episode, the longest {gaps["longest"]} s')
    if report['damage'] and report['parts_without_checksum']:
        lines.append('parts of the bag have no checksum: wrong pixels in them would not be noticed')
    return lines


def _tool_pixel_notes(cameras: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line per reason for unknown tool pixels. cameras: name -> ToolPixelReport as a dict."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, found in cameras.items():
        if found['known'] < found['frames']:
            share = f'in {found["frames"] - found["known"]} of {found["frames"]} frames'
            reasons.setdefault((share, found['why_not']), []).append(name)
    return [f'tool pixel unknown {share} of {", ".join(names)}: {why}' for (share, why), names in reasons.items()]


def stream_table(reports: list[dict[str, Any]]) -> Table:
    """Return a table with a row per stream of each bag."""
    table = Table('bag', 'stream', 'messages', 'Hz', 'gaps', 'longest [s]', 'lost', 'out of order', 'lag [s]')
    for report in reports:
        for name, s in report['streams'].items():
            numbers = s['messages'], s['rate'], s['gaps'], s['longest_gap'], s['lost_in_gaps'], s['out_of_order']
            lag = s.get('lag')  # reports of earlier versions have none
            table.add_row(report['bag'], name, *(f'{n:g}' for n in numbers), '' if lag is None else f'{lag:.3f}')
        table.add_section()
    return table


def bag_table(reports: list[dict[str, Any]]) -> Table:
    """Return a table with a row per bag."""
    table = Table('bag', 'episodes', 'frames', 'dropped', 'corrupt messages', 'worst skew [s]')
    for r in reports:
        corrupt = sum(r['messages_with_wrong_content'].values()) + sum(r['messages_undecodable'].values())
        numbers = r['episodes'], r['frames_kept'], sum(r['frames_dropped'].values()), corrupt, r['worst_skew']
        table.add_row(r['bag'], *(f'{n:g}' for n in numbers))
    return table
