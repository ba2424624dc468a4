"""What a released RynnVLA-002 folder does not say of its robot: robot.json, and the numbers of states and actions.

Actions of LIBERO are inputs of its operational-space controller, those of SO100 are degrees relative to the state.
"""

from dataclasses import dataclass

import numpy as np

from vla_model.families.rynnvla.constants import (
    LIBERO_ACTION,
    LIBERO_INPUT,
    LIBERO_STATE,
    LIBERO_TOOL,
    LIBERO_WORLD_ACTION,
    SO100_ACTION,
    SO100_STATE,
)
from vla_model.families.rynnvla.tokens import Scale
from vla_model.types import Observation

FILE = 'robot.json'
ANSWERS = CONTINUOUS, DISCRETE = ('continuous', 'discrete')


@dataclass(frozen=True)
class RobotFile:
    """The fields of robot.json."""

    constants: str  # of normalisation, a key of KINDS
    cameras: tuple[str, ...]  # in prompt order: front, then wrist
    dt: float  # [s] between two steps of a chunk
    gripper_low: float  # opening [m] at the gripper's smallest number
    gripper_high: float  # and at its largest
    history: int = 1  # observations in the prompt; LIBERO's checkpoints see 2
    answer: str = CONTINUOUS  # what decides a chunk: the action head, or discrete tokens
    world: bool = True  # whether images can be imagined; without them a continuous answer needs no lm_head
    base: tuple[float, ...] = (-0.66, 0.0, 0.912)  # [m] of the arm's base in the frame of LIBERO's states

    def __post_init__(self) -> None:
        if self.constants not in KINDS:
            raise ValueError(f'constants must be one of {sorted(KINDS)}, got {self.constants!r}')
        if self.answer not in ANSWERS:
            raise ValueError(f'answer must be one of {list(ANSWERS)}, got {self.answer!r}')
        if not 1 <= len(self.cameras) <= 2 or self.history < 1 or not self.dt > 0 or len(self.base) != 3:
            raise ValueError('cameras must be one or two, history 1 or more, dt above 0, and base three numbers')

    @property
    def needs_logits(self) -> bool:
        """Whether anything is decided by tokens."""
        return self.world or self.answer == DISCRETE

    @property
    def kind(self) -> 'Kind':
        return KINDS[self.constants]


@dataclass(frozen=True)
class Kind:
    """Scales of a group of checkpoints, and the meaning of their numbers."""

    action: Scale
    state: Scale
    world_action: Scale  # of the action in a world-model prompt
    action_space: str  # see config.ACTION_SPACES
    tool: bool  # the state is the tool's pose and the two fingers; else joints [deg] and gripper
    dof: int  # joints of the arm

    def state_of(self, robot: RobotFile, observation: Observation) -> np.ndarray:
        """(dims,) numbers of the state. Raises ValueError where the observation lacks something."""
        opening = observation.gripper
        if not self.tool:
            span = self.state.high[-1] - self.state.low[-1]
            share = (opening - robot.gripper_low) / (robot.gripper_high - robot.gripper_low)
            return np.append(np.rad2deg(observation.positions), self.state.low[-1] + share * span)
        if observation.tool is None:
            raise ValueError('this model needs the pose of the tool: give the robot description')
        turn = observation.tool[3:].copy()
        if turn[0] < 0:  # the same rotation, as the quaternions of LIBERO give it: about +x, by up to a whole turn
            turn *= 1 - 2 * np.pi / max(float(np.linalg.norm(turn)), 1e-9)
        axis = _third_column(observation.tool[3:])
        at = observation.tool[:3] + robot.base + LIBERO_TOOL * axis
        return np.concatenate([at, turn, [opening / 2, -opening / 2]])

    def set_points(
        self, robot: RobotFile, values: np.ndarray, observation: Observation
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions (n, dims) in the units of training -> ((n, dof or 6) in action_space, (n,) openings [m])."""
        arm, gripper = values[:, :-1], values[:, -1]
        low, high = self.action.low[-1], self.action.high[-1]
        if self.tool:
            share = (np.sign(gripper) + 1) / 2  # LIBERO reads the sign alone: -1 open, +1 closed
            arm = arm * LIBERO_INPUT
        else:
            share = (gripper - low) / (high - low)
            arm = np.deg2rad(arm) + observation.positions
        return arm, robot.gripper_low + share * (robot.gripper_high - robot.gripper_low)


def _third_column(vector: np.ndarray) -> np.ndarray:
    """The z axis (3,) of the rotation of a rotation vector (3,)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-9:
        return np.array([0.0, 0.0, 1.0])
    k, z = vector / angle, np.array([0.0, 0.0, 1.0])
    return z * np.cos(angle) + np.cross(k, z) * np.sin(angle) + k * k[2] * (1 - np.cos(angle))


KINDS = {
    'libero': Kind(LIBERO_ACTION, LIBERO_STATE, LIBERO_WORLD_ACTION, 'osc_delta', True, 7),
    'so100': Kind(SO100_ACTION, SO100_STATE, SO100_ACTION, 'joint_delta', False, 5),
}
