"""An episode as data: goal and initial scene. No MuJoCo here."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Goal:
    """Goal of an instruction, as names of bodies."""

    task: str
    object: str  # the button to press, the block to stack, the produce to put
    target: str  # the block to stack on, the bowl to put into; '' for a button


@dataclass(frozen=True)
class Placement:
    """Pose and colour of one prop at the start of the episode."""

    name: str  # of the body outside the simulator: red_button, tomato
    slot: str  # of the body in the MuJoCo model: button_0, tomato
    x: float  # [m] base frame
    y: float  # [m]
    yaw: float  # [rad] about z
    rgb: tuple[float, float, float] | None  # 0..1; None: the prop's own colours


@dataclass(frozen=True)
class CameraJitter:
    """Small displacement of one camera from its nominal pose."""

    offset: np.ndarray  # (3,) [m], axes of the camera's parent body
    rotation: np.ndarray  # (3,) [rad] rotation vector, same axes


@dataclass(frozen=True)
class Episode:
    """All random quantities of one episode."""

    task: str
    seed: int
    instruction: str
    goal: Goal
    placements: tuple[Placement, ...]
    joint_offset: np.ndarray  # (7,) [rad] added to the home position
    cameras: dict[str, CameraJitter]  # by camera name
    light: np.ndarray  # (3,) factor on the light's red, green and blue
    light_direction: np.ndarray  # (3,) added to the direction of the light, whose length is about 1


@dataclass(frozen=True)
class SceneState:
    """Scene for success tests and referee. Positions [m] in the base frame."""

    positions: dict[str, np.ndarray]  # body name -> (3,)
    speeds: dict[str, float]  # body name -> [m/s]
    presses: dict[str, float]  # button name -> how far its cap is down, 0..1 of its travel
    tool: np.ndarray  # (3,) tool centre point
    opening: float  # [m] of the gripper
