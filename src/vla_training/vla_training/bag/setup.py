"""Defines the topics of a robot's bags and the settings of their conversion."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vla_core.observe.streams import CAMERA_MAX_AGE, GRIPPER, JOINTS
from vla_core.profile import RobotProfile, profile_parameters
from vla_policy_node.ros.images import COMPRESSED
from vla_training.bag import topics_seen

STATES, SET_POINTS = 'states', 'set-points'


@dataclass(frozen=True)
class Setup:
    """Topics of the bags (absolute names) and settings of their conversion."""

    profile: RobotProfile
    cameras: dict[str, str]  # name -> topic
    joint_states: str
    gripper_joint_states: str
    joint_command: str
    gripper_command: str
    namespace: str
    fps: int
    actions: str  # STATES or SET_POINTS
    instruction: str = ''  # for every episode; empty: that of the bag
    shortest: int = 10  # [frame] shortest episode
    camera_gap: float = CAMERA_MAX_AGE  # [s] largest age of an image that replaces missing ones of its camera
    urdf: str = ''  # file of the robot description, for the tool's pixels; empty: the topic
    encoding: str = ''  # rgb8 or bgr8: colour order of images that do not give it

    @classmethod
    def load(cls, robot: str | Path, *, namespace: str = '', **settings: Any) -> 'Setup':
        """Return the setup of a robot profile, given by name or file. Raises ValueError naming a missing entry."""
        profile, parameters = RobotProfile.load(robot), profile_parameters(robot)
        prefix = f'/{namespace.strip("/")}' if namespace.strip('/') else ''

        def absolute(topic: str) -> str:
            return topic if topic.startswith('/') else f'{prefix}/{topic}'

        try:
            names, topics = parameters['cameras'], parameters['camera_topics']
            found = {name: absolute(topic) for name, topic in parameters['topics'].items()}
            return cls(
                profile=profile,
                cameras={n: absolute(t) for n, t in zip(names, topics, strict=True)},
                joint_states=found['joint_states'],
                gripper_joint_states=found['gripper_joint_states'],
                joint_command=found['joint_command'],
                gripper_command=found['gripper_command'],
                namespace=prefix,
                **settings,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'the robot profile {robot} lacks topics or cameras ({error})') from error

    def topic(self, name: str) -> str:
        return f'{self.namespace}/{name}'

    def found_in(self, bag: Path) -> tuple['Setup', dict[str, str]]:
        """Return the setup with `<topic>/compressed` where the bag has it, and topic -> type of the bag's start.

        Raises ValueError when the path is no bag.
        """
        pairs = {name: (topic, topic.removesuffix(COMPRESSED) + COMPRESSED) for name, topic in self.cameras.items()}
        # The form of the images is known when each camera has sent one, or at the end of the bag.
        seen = topics_seen(bag, lambda seen: all(a in seen or b in seen for a, b in pairs.values()))
        cameras = {name: next((t for t in seen if t in pair), pair[0]) for name, pair in pairs.items()}
        return replace(self, cameras=cameras), seen

    @property
    def gripper(self) -> bool:
        return bool(self.profile.gripper_joint_names)

    @property
    def streams(self) -> dict[str, str]:
        """Return stream -> topic of all streams of a complete set."""
        fingers = {GRIPPER: self.gripper_joint_states} if self.gripper else {}
        return {**self.cameras, JOINTS: self.joint_states, **fingers}
