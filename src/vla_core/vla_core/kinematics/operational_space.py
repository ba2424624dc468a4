"""What LIBERO's operational-space controller makes of an action: the tool pulled to a goal, as a second-order law.

Each control step sets the goal to the present pose moved by the action, and the controller follows with stiffness 150
and critical damping (robosuite's OSC_POSE, kp 150, damping ratio 1). A step so covers 0.13 of the action at rest and
0.27 in steady motion: actions are no displacements, and their sum is about four times too far. The law per axis, with
e the distance to the goal, w = sqrt(kp): e(t) = (e + (w e - v) t) exp(-w t). No ROS.
"""

from dataclasses import dataclass

import numpy as np

from vla_core.kinematics.ik import rotation_matrix, rotation_vector

STIFFNESS = 150.0  # [1/s^2]


@dataclass(frozen=True)
class Tool:
    """The tool in the base frame."""

    position: np.ndarray  # (3,) [m]
    rotation: np.ndarray  # (3, 3)
    velocity: np.ndarray  # (6,) [m/s], [rad/s]
    goal: np.ndarray  # (3, 3) rotation to which it is pulled while actions do not turn it


def poses(tool: Tool, actions: np.ndarray, dt: float) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) [m] and (n, 3, 3): the tool after each of the actions (n, 6), translations [m] and rotation vectors [rad].

    dt: [s] of a control step. An action without a turn keeps the goal of the one before.
    """
    positions, rotations = [], []
    for action in actions:
        goal = rotation_matrix(action[3:6]) @ tool.rotation if action[3:6].any() else tool.goal
        pull = np.append(action[:3], rotation_vector(goal @ tool.rotation.T))
        tool = _moved(tool, pull, goal, dt)
        positions.append(tool.position)
        rotations.append(tool.rotation)
    return np.array(positions).reshape(-1, 3), np.array(rotations).reshape(-1, 3, 3)


def actions(tool: Tool, positions: np.ndarray, rotations: np.ndarray, dt: float) -> np.ndarray:
    """(n, 6): the actions after which the tool is at these positions (n, 3) [m] and rotations (n, 3, 3)."""
    near, far, _, _ = _law(dt)
    found = []
    for position, rotation in zip(positions, rotations, strict=True):
        way = np.append(position - tool.position, rotation_vector(rotation @ tool.rotation.T))
        pull = (way - far * tool.velocity) / near
        found.append(pull)
        tool = _moved(tool, pull, rotation_matrix(pull[3:]) @ tool.rotation, dt)
    return np.array(found).reshape(-1, 6)


def _moved(tool: Tool, pull: np.ndarray, goal: np.ndarray, dt: float) -> Tool:
    near, far, faster, slower = _law(dt)
    way = near * pull + far * tool.velocity
    return Tool(
        tool.position + way[:3],
        rotation_matrix(way[3:]) @ tool.rotation,
        faster * pull + slower * tool.velocity,
        goal,
    )


def _law(dt: float) -> tuple[float, float, float, float]:
    """Way covered in a step per distance to the goal, and per speed; speed after it per distance, and per speed."""
    w = np.sqrt(STIFFNESS)
    decay = np.exp(-w * dt)
    return 1 - (1 + w * dt) * decay, dt * decay, STIFFNESS * dt * decay, (1 - w * dt) * decay
