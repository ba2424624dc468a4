"""LIBERO's operational-space controller: the motion of the tool for each action, by a second-order law. No ROS.

Each control step sets the goal to the present pose moved by the action. The controller follows with stiffness 150 and
critical damping (robosuite's OSC_POSE, kp 150, damping ratio 1). A step covers 0.13 of the action at rest, and 0.27 in
steady motion. So actions are not displacements: their sum is about four times too far. The law per axis is
e(t) = (e + (w e - v) t) exp(-w t), with e the distance to the goal and w = sqrt(kp).
"""

from dataclasses import dataclass

import numpy as np

from vla_core.kinematics.ik import rotation_matrix, rotation_vector

STIFFNESS = 150.0  # [1/s^2]


@dataclass(frozen=True)
class Tool:
    """State of the tool in the base frame."""

    position: np.ndarray  # (3,) [m]
    rotation: np.ndarray  # (3, 3)
    velocity: np.ndarray  # (6,) [m/s], [rad/s]
    goal: np.ndarray  # (3, 3) goal of the rotation, kept by actions without a rotation


def poses(tool: Tool, actions: np.ndarray, dt: float) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (n, 3) [m] and rotations (n, 3, 3) of the tool after each action.

    actions: (n, 6), translations [m] and rotation vectors [rad]. dt: [s] of a control step. An action without a
    rotation keeps the goal of the one before.
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
    """Return the actions (n, 6) after which the tool is at these positions (n, 3) [m] and rotations (n, 3, 3)."""
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
    """Return the distance covered in a step per distance to the goal, and per velocity; the velocity after it alike."""
    w = np.sqrt(STIFFNESS)
    decay = np.exp(-w * dt)
    return 1 - (1 + w * dt) * decay, dt * decay, STIFFNESS * dt * decay, (1 - w * dt) * decay
