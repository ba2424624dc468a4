"""Inputs and outputs of a policy, as plain numpy. Importing this costs no torch."""

from dataclasses import dataclass, field

import numpy as np

JOINTS, TOOL = 'joints', 'tool'  # spaces of the numbers of a chunk, see Chunk.space


@dataclass(frozen=True)
class Trace:
    """A line in the image of a camera along which the tool moves: its points are passed in order."""

    camera: str
    points: np.ndarray  # (n, 2) x right and y down [px]; pixel centres are whole numbers
    width: int  # [px] of the image that the points are of
    height: int  # [px]


@dataclass(frozen=True)
class Observation:
    """Images and measured state of the robot at one reference time."""

    t_ref: int  # [ns] time that the observation stands for, on the clock of its source
    images: dict[str, np.ndarray]  # camera name -> (height, width, 3) uint8 RGB
    positions: np.ndarray  # (dof,) [rad], order of the robot profile's joint_names
    velocities: np.ndarray  # (dof,) [rad/s]
    gripper: float  # opening between the fingers [m]; 0.0 where the robot has none
    instruction: str
    # (6,) position [m] and rotation vector [rad] of the tool in the base frame; None unless the policy needs it.
    tool: np.ndarray | None = None
    steering: Trace | None = None  # the tool is to follow this line; only where PolicyInfo.steers
    # Images as in `images`, from PolicyInfo.history before; None where they are not known.
    before: dict[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Chunk:
    """Set-points for the steps after an observation: step i is due at t_ref + (i + 1) * dt."""

    positions: np.ndarray  # (horizon, dof) [rad], absolute; of the space TOOL: (horizon, arm_dim), see PolicyInfo
    gripper: np.ndarray  # (horizon,) opening [m]; (0,): gripper untouched
    dt: float  # [s]
    frozen: int = 0  # leading steps that are the prefix given to the model
    confidence: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # (horizon,) 0..1; (0,): unknown
    space: str = JOINTS  # JOINTS, or TOOL: actions in the policy's own action_space, which are never sent to a robot


@dataclass(frozen=True)
class Plan:
    """The plan text of the model: all sub-tasks, the finished ones and the current one."""

    t_ref: int  # [ns] of the observation it answers
    text: str
    confidence: float  # mean probability of the tokens, 0..1


@dataclass(frozen=True)
class PredictedImage:
    """The image that the model predicts for the first camera at the end of the chunk."""

    t_ref: int  # [ns] of the observation it answers
    due: int  # [ns] time for which it is predicted
    image: np.ndarray  # (side, side, 3) uint8 RGB
    confidence: float  # mean probability of the codes, 0..1


@dataclass(frozen=True)
class PredictedViews:
    """The images that the model predicts for every camera after the robot has executed given actions."""

    t_ref: int  # [ns] of the observation before these actions
    due: int  # [ns] time for which they are predicted
    images: dict[str, np.ndarray]  # camera name -> (side, side, 3) uint8 RGB
    confidence: float  # mean probability of the codes, 0..1


@dataclass(frozen=True)
class DepthMap:
    """The depth that the model predicts for the observed image of a camera."""

    t_ref: int  # [ns] of the observation
    camera: str
    codes: np.ndarray  # (rows, columns) int64 codes of the depth tokenizer
    depth: np.ndarray | None = None  # (height, width) float32; None without a depth decoder
    metric: bool = False  # depth is in metres; False: 0..1 of the image's range, near is 0
