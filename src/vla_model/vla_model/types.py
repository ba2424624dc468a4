"""What crosses the model's boundary. Plain numpy; importing this costs no torch."""

from dataclasses import dataclass, field

import numpy as np

JOINTS, TOOL = 'joints', 'tool'  # what the numbers of a chunk are, see Chunk.space


@dataclass(frozen=True)
class Observation:
    """What the robot saw at one reference time."""

    t_ref: int  # [ns] time that the observation stands for, on the clock of its source
    images: dict[str, np.ndarray]  # camera name -> (height, width, 3) uint8 RGB
    positions: np.ndarray  # (dof,) [rad], order of the robot profile's joint_names
    velocities: np.ndarray  # (dof,) [rad/s]
    gripper: float  # opening between the fingers [m]; 0.0 where the robot has none
    instruction: str
    # (6,) position [m] and rotation vector [rad] of the tool in the base frame; None unless the policy needs it.
    tool: np.ndarray | None = None


@dataclass(frozen=True)
class Chunk:
    """Set-points for the steps after an observation: step i is due at t_ref + (i + 1) * dt."""

    positions: np.ndarray  # (horizon, dof) [rad], absolute; of the space TOOL: (horizon, arm_dim), see PolicyInfo
    gripper: np.ndarray  # (horizon,) opening [m]; (0,): gripper untouched
    dt: float  # [s]
    frozen: int = 0  # leading steps that were given to the model, not decided by it
    confidence: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # (horizon,) 0..1; (0,): unknown
    space: str = JOINTS  # JOINTS, or TOOL: actions of a policy in its own action_space, which no robot is sent


@dataclass(frozen=True)
class Plan:
    """What the model says about the task: its own words, from which the sub-task is read."""

    t_ref: int  # [ns] of the observation it answers
    text: str
    confidence: float  # mean probability of the tokens, 0..1


@dataclass(frozen=True)
class PredictedImage:
    """What the model expects the first camera to see when the chunk is done."""

    t_ref: int  # [ns] of the observation it answers
    due: int  # [ns] time that it shows
    image: np.ndarray  # (side, side, 3) uint8 RGB
    confidence: float  # mean probability of the codes, 0..1
