"""Explains why a bag, or part of it, cannot be used. `convert` and `replay` share these sentences."""

from collections.abc import Mapping
from pathlib import Path

from vla_core.observe.streams import GRIPPER, GRIPPER_MAX_AGE, NS
from vla_training.bag import topics_seen
from vla_training.convert.report import BagReport

OTHER_TIME = 1e6  # [s] a stamp this far from the clock counts from another origin: it is no delay
SLOW = 0.9  # smallest rate of a camera, as a share of the frame rate


def other_time(stream: str, topic: str, stamp: int, now: int) -> str:
    """Return a sentence for a stamp [ns] that counts from another origin than the bag's clock, now [ns]; else ''."""
    if stamp == 0 and now > NS:
        return f'{stream} on {topic}: its header.stamp is zero: the driver must stamp its messages'
    if abs(now - stamp) <= OTHER_TIME * NS:
        return ''
    return (
        f'{stream} on {topic} is stamped {stamp / NS:.3f} s and the clock of the bag is at {now / NS:.3f} s: '
        'stamps in simulation time need /clock in the bag, or a recorder with use_sim_time'
    )


def slow_cameras(report: BagReport, cameras: Mapping[str, str], fps: int) -> list[str]:
    """Return a sentence for each camera (name -> topic) with fewer frames per second than `fps`."""
    found = []
    for name, topic in cameras.items():
        rate = report.streams[name].summary()['rate'] if name in report.streams else 0.0
        if 0 < rate < SLOW * fps:
            found.append(
                f'{name} on {topic} gives {rate:g} frames/s, --fps asks for {fps}: give --fps {rate:.0f} or less'
            )
    return found


def slow_gripper(report: BagReport) -> list[str]:
    """Return a sentence if the gripper's states are too rare for consecutive frames."""
    stream = report.streams.get(GRIPPER)
    rate = stream.summary()['rate'] if stream else 0.0
    if stream is None or not 0 < rate * GRIPPER_MAX_AGE < 1:
        return []
    return [
        f'gripper on {stream.topic} gives {rate:g} states/s, and one is used for {GRIPPER_MAX_AGE:g} s '
        '(gripper_max_age): set its driver to a higher rate'
    ]


def missing_topics(wanted: Mapping[str, str], seen: Mapping[str, str]) -> list[str]:
    """Return a sentence for each stream (wanted: name -> topic) without a message. seen: topic -> type of the bag."""
    there = ', '.join(sorted(seen)) or 'none'
    return [
        f'no {name} received on {topic}: check that it is published and the topic name (topics in the bag: {there})'
        for name, topic in wanted.items()
        if topic not in seen
    ]


def why_nothing(bag: Path, report: BagReport, wanted: Mapping[str, str]) -> str:
    """Return the main cause in one sentence; '': unknown. wanted: stream -> topic of the required streams.

    The bag is read once more for the names of its topics. Raises ValueError when the path is no bag.
    """
    seen = topics_seen(bag, lambda found: False)
    if not seen:
        nothing = 'none of its messages is of ROS 2' if report.damage.foreign else 'it has no message'
        return next(iter(report.damage.problems), nothing)
    for line in missing_topics(wanted, seen):
        return line
    for topic in wanted.values():
        if topic in report.examples:
            return report.examples[topic]
    for cause, _ in report.unusable.most_common(1):
        return report.causes.get(cause, cause)
    return ''
