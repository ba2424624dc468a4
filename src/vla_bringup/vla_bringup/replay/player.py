"""A bag for `ros2 bag play`: topics with their names in the graph, and messages to latch before the player starts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rclpy.serialization import serialize_message
from std_msgs.msg import String

from vla_bringup.bags.bag import Bag, RawMessage
from vla_bringup.replay.feed import CLOCK, DESCRIPTION, load_setup
from vla_core.observe.streams import NS
from vla_policy_node.ros.camera_info import camera_info_topic
from vla_policy_node.ros.images import COMPRESSED
from vla_training.bag.setup import Setup

INSTRUCTION = 'policy/instruction'
# Topics of the instruction, of which the first with messages counts. Simulated episodes precede other instructions.
WORDS = ('sim/task', 'policy/instruction_in_force', INSTRUCTION)
STATIC = '/tf_static'
PLAYER = '/rosbag2_player'  # the node that `ros2 bag play` makes
CLOCK_RATE = 100  # [Hz] of /clock where the bag has none
LATCHED = {'history': 'keep_last', 'depth': 100, 'reliability': 'reliable', 'durability': 'transient_local'}


class Latched(NamedTuple):
    """A message from before the start, to be latched on a topic."""

    topic: str  # name in the graph
    kind: str
    messages: Sequence[bytes]


@dataclass(frozen=True)
class Playback:
    """Topics, remappings and latched messages for the player."""

    bag: Path
    rate: float
    offset: float  # [s]
    topics: dict[str, str]  # name in the bag -> name in the graph
    inputs: Sequence[str]  # names in the graph that the policy requires
    own_clock: bool  # play the bag's /clock; False: the player makes one from the times of recording
    namespace: str
    cameras: dict[str, str]  # name -> topic with its images
    compressed: bool  # whether a camera is on another topic than in the robot profile
    description: str = ''  # URDF
    before: list[Latched] = field(default_factory=list)
    instruction: bool = True  # whether bag or caller has an instruction

    def command(self, qos_file: Path, *, paused: bool) -> list[str]:
        """Return the command line of the player. qos_file: written by write_qos."""
        remaps = [f'{old}:={new}' for old, new in self.topics.items() if old != new]
        return [
            'ros2', 'bag', 'play', str(self.bag), '--rate', str(self.rate), '--start-offset', str(self.offset),
            *([] if self.own_clock else ['--clock', str(CLOCK_RATE)]),
            *(['--start-paused', '--disable-keyboard-controls'] if paused else []),
            '--qos-profile-overrides-path', str(qos_file),
            '--topics', *self.topics, *(['--remap', *remaps] if remaps else []),
        ]  # fmt: skip

    def write_qos(self, path: Path) -> Path:
        """Write the QoS overrides and return the path: topics that are latched in a running system are latched here."""
        latched = {STATIC, self.topic(DESCRIPTION), self.topic(INSTRUCTION)}
        path.write_text(yaml.safe_dump({old: LATCHED for old, new in self.topics.items() if new in latched}))
        return path

    def topic(self, name: str) -> str:
        """Return the absolute name of a topic in the namespace of the nodes."""
        return f'{self.namespace}/{name}'


def playback(
    path: Path, robot: str, namespace: str, *, instruction: str = '', offset: float = 0.0, rate: float = 1.0
) -> Playback:
    """Return the playback of a bag. instruction: replaces those in the bag.

    offset: start in the bag [s]; messages latched before it are published at once. Raises ValueError for a wrong bag or
    argument.
    """
    if offset < 0 or rate <= 0:
        raise ValueError(f'start_offset is {offset:g} s and rate {rate:g}: must be 0 or more, and above 0')
    setup = load_setup(robot, namespace)
    with Bag(path) as bag:
        if offset >= bag.seconds:
            raise ValueError(f'start_offset is {offset:g} s, and the bag {path} has {bag.seconds:.1f} s')
        return _plan(path, bag, setup, instruction.strip(), offset, rate)


def _plan(path: Path, bag: Bag, setup: Setup, instruction: str, offset: float, rate: float) -> Playback:
    there = {topic: kind for topic, kind in bag.topics.items() if bag.counts[topic]}
    cameras = {n: _first([t, t.removesuffix(COMPRESSED) + COMPRESSED], there) or t for n, t in setup.cameras.items()}
    joints = [setup.joint_states, *([setup.gripper_joint_states] if setup.gripper else [])]
    inputs = list(dict.fromkeys([*cameras.values(), *joints]))
    if missing := [topic for topic in inputs if topic not in there]:
        raise ValueError(
            f'{path} has no message on {", ".join(missing)}: give robot and namespace of this bag. It has '
            f'{", ".join(sorted(there)) or "none at all"}'
        )
    infos = [camera_info_topic(topic) for topic in setup.cameras.values()]
    topics = {topic: topic for topic in [*inputs, *infos] if topic in there}
    words = _first([setup.topic(name) for name in WORDS], there)
    named = {CLOCK: [CLOCK, setup.topic('clock')], '/tf': ['/tf', setup.topic('tf')]}
    named |= {STATIC: [STATIC, setup.topic('tf_static')], setup.topic(DESCRIPTION): [setup.topic(DESCRIPTION)]}
    for name, candidates in named.items():
        if found := _first(candidates, there):
            topics[found] = name
    if words and not instruction:
        topics[words] = setup.topic(INSTRUCTION)
    latched = {topic: name for topic, name in topics.items() if name in {STATIC, *map(setup.topic, LATEST)}}
    until = bag.start + round(offset * NS)
    before = _latched(list(bag.raw(latched, until)) if offset else [], latched, there)
    if instruction:
        words_given = serialize_message(String(data=instruction))
        before.append(Latched(setup.topic(INSTRUCTION), 'std_msgs/msg/String', [words_given]))
    description = next((str(m.data.data) for m in bag.messages([setup.topic(DESCRIPTION)])), '')
    return Playback(
        bag=path,
        rate=rate,
        offset=offset,
        topics=topics,
        inputs=inputs,
        own_clock=CLOCK in topics.values(),
        namespace=setup.namespace,
        cameras=cameras,
        compressed=cameras != setup.cameras,
        description=description,
        before=before,
        instruction=bool(instruction or words),
    )


LATEST = (DESCRIPTION, INSTRUCTION)  # their newest message counts; of /tf_static all do


def _latched(found: Sequence[RawMessage], names: dict[str, str], kinds: dict[str, str]) -> list[Latched]:
    kept: dict[str, list[bytes]] = {}
    for m in found:
        own = kept.setdefault(m.topic, [])
        if names[m.topic] != STATIC:
            own.clear()
        own.append(m.data)
    return [Latched(names[topic], kinds[topic], messages) for topic, messages in kept.items()]


def _first(candidates: Sequence[str], there: dict[str, Any]) -> str:
    return next((topic for topic in candidates if topic in there), '')
