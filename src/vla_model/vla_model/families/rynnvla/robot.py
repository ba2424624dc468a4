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
FAR = 2.0  # a state that is further from the middle, in halves of the range, is in another unit or of another arm
ANSWERS = CONTINUOUS, DISCRETE = ('continuous', 'discrete')


@dataclass(frozen=True)
class RobotFile:
    """The fields of robot.json."""

    constants: str  # of normalisation, a key of KINDS
    cameras: tuple[str, ...]  # in prompt order: front, then wrist
    dt: float  # [s] between two steps of a chunk
    gripper_low: float  # opening [m] at the gripper's smallest number
    gripper_high: float  # and at its largest
    history: int = 1  # observations in the prompt: 1, or 2 with that of one step before, as LIBERO's checkpoints
    answer: str = CONTINUOUS  # what decides a chunk: the action head, or discrete tokens
    world: bool = True  # whether images can be imagined; without them a continuous answer needs no lm_head
    base: tuple[float, ...] = (-0.66, 0.0, 0.912)  # [m] of the arm's base in the frame of LIBERO's states
    mirrored: bool = False  # the model knows pictures with left and right swapped, as LIBERO's scripts make them

    def __post_init__(self) -> None:
        if self.constants not in KINDS:
            raise ValueError(f'constants must be one of {sorted(KINDS)}, got {self.constants!r}')
        if self.answer not in ANSWERS:
            raise ValueError(f'answer must be one of {list(ANSWERS)}, got {self.answer!r}')
        if not 1 <= len(self.cameras) <= 2 or len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f'cameras must be one or two distinct names, got {list(self.cameras)}')
        if self.history not in (1, 2) or not 0 < self.dt < np.inf or len(self.base) != 3:
            raise ValueError('history must be 1 or 2, dt above 0, and base three numbers')
        if not np.isfinite([self.gripper_low, self.gripper_high]).all() or self.gripper_low == self.gripper_high:
            raise ValueError('gripper_low and gripper_high must be two different openings [m]')

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
    apart: bool  # the world model predicts each view from itself alone; prompts are sorted by camera before time

    def state_of(self, robot: RobotFile, observation: Observation) -> np.ndarray:
        """(dims,) numbers of the state. Raises ValueError where the observation lacks something."""
        opening = observation.gripper
        if not self.tool:
            if np.shape(observation.positions) != (self.dof,):
                raise ValueError(f'the model needs {self.dof} joint positions, got {np.shape(observation.positions)}')
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

    def check_state(self, state: np.ndarray) -> None:
        """Raise ValueError where a number of a state (dims,) is not finite, or far outside of the training data."""
        if not np.isfinite(state).all():
            raise ValueError(f'the state is not finite: {state.tolist()}')
        far = np.abs(2 * state - self.state.low - self.state.high) > FAR * (self.state.high - self.state.low)
        if far.any():
            i = int(far.argmax())
            raise ValueError(
                f'number {i + 1} of the state is {state[i]:g}, far outside the range of the model '
                f'[{self.state.low[i]:g}, {self.state.high[i]:g}]: check its unit, the joint order, and constants and '
                f'base in {FILE}'
            )

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

    def actions(self, robot: RobotFile, steps: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return actions (n, dims), each of the state before it, in the units of training, of the steps of a chunk.

        steps: (n, dof or 6, and the opening), see `set_points`. positions: (dof,) [rad] before the first step; before a
        later one they are those of the step before.
        """
        arm, opening = steps[:, :-1], steps[:, -1]
        share = (opening - robot.gripper_low) / (robot.gripper_high - robot.gripper_low)
        if self.tool:
            return np.column_stack([arm / LIBERO_INPUT, np.sign(2 * share - 1)])
        before = np.vstack([positions, arm[:-1]])
        low, high = self.action.low[-1], self.action.high[-1]
        return np.column_stack([np.rad2deg(arm - before), low + share * (high - low)])


def _third_column(vector: np.ndarray) -> np.ndarray:
    """The z axis (3,) of the rotation of a rotation vector (3,)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-9:
        return np.array([0.0, 0.0, 1.0])
    k, z = vector / angle, np.array([0.0, 0.0, 1.0])
    return z * np.cos(angle) + np.cross(k, z) * np.sin(angle) + k * k[2] * (1 - np.cos(angle))


KINDS = {
    'libero': Kind(LIBERO_ACTION, LIBERO_STATE, LIBERO_WORLD_ACTION, 'osc_delta', True, 7, apart=False),
    'so100': Kind(SO100_ACTION, SO100_STATE, SO100_ACTION, 'joint_delta', False, 5, apart=True),
}
