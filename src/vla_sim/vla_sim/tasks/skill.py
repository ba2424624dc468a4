"""A task as phases of motion: where the tool goes, what the gripper does, and what must be measured then. No ROS."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vla_sim.kinematics import Kinematics
from vla_sim.motion import Waypoint
from vla_sim.rendering.opengl import mujoco

Objects = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> position (3,) [m], orientation (4,) wxyz; base frame

SAFE = 0.20  # [m] height at which the tool passes over everything on the table
FINGERTIP = 0.009  # [m] that the closed fingers reach beyond the tool centre point
OVER = 0.10  # [m] above the pose of a grasp or a press: from here straight down


@dataclass(frozen=True)
class Measured:
    """What is known at one time, in the base frame."""

    q: np.ndarray  # (dof,) [rad]
    tool: np.ndarray  # (3,) [m] tool centre point
    rotation: np.ndarray  # (3, 3) of the tool
    gripper: float  # opening [m]
    objects: Objects

    def position(self, name: str) -> np.ndarray:
        """(3,) [m]"""
        return self.objects[name][0]

    def rotation_of(self, name: str) -> np.ndarray:
        """(3, 3) orientation of an object."""
        matrix = np.empty(9)
        mujoco.mju_quat2Mat(matrix, self.objects[name][1])
        return matrix.reshape(3, 3)

    def yaw(self, name: str) -> float:
        """[rad] direction of the object's x axis seen from above; of its y axis when x stands upright."""
        axes = self.rotation_of(name)
        x, y, _ = axes[:, 0] if abs(axes[2, 0]) < 0.7 else axes[:, 1]
        return float(np.arctan2(y, x))


@dataclass(frozen=True)
class Phase:
    """One motion, from rest to rest, and how to tell that it worked."""

    subtask: str
    gripper: float  # [m] opening commanded from its start
    waypoints: tuple[Waypoint, ...] = ()  # none: stand still
    dwell: float = 0.0  # [s] at rest at its end, at least
    ready: Callable[[Measured], bool] = lambda measured: True  # the next phase may begin
    patience: float = 1.5  # [s] waits so long for `ready`, then starts over
    broken: Callable[[Measured], str] = lambda measured: ''  # why going on is useless; empty: it is not


Make = Callable[[Measured, Waypoint], Phase]  # from what is measured, and the pose that the path has come to by then


class Skill:
    """One task."""

    subtasks: tuple[str, ...]  # in words, in order
    needs: tuple[str, ...]  # the objects that it must know about

    def __init__(self, kinematics: Kinematics, max_opening: float) -> None:
        self.kinematics, self.max_opening = kinematics, max_opening
        position, rotation = kinematics.forward(kinematics.home)
        self.home = Waypoint(position, float(np.arctan2(rotation[1, 0], rotation[0, 0])))

    def phases(self, measured: Measured) -> list[Make]:
        """What is left to do. Each is made when the commanded path gets there, from what is measured by then."""
        raise NotImplementedError

    def clear(self, measured: Measured, at: Waypoint) -> Phase:
        """Straight up and out of the way, to start over from there."""
        raise NotImplementedError

    def boxed_in(self, measured: Measured) -> bool:
        """The tool is among the things on the table: it has to get clear of them first."""
        return bool(measured.tool[2] < SAFE - 0.05)


def raised(position: np.ndarray, height: float) -> np.ndarray:
    """(3,) [m] the position, this much higher."""
    return position + np.array([0.0, 0.0, height])


def up(at: Waypoint, height: float = SAFE) -> Waypoint:
    """The same place at this height [m], or where it is if that is higher."""
    return Waypoint(np.array([at.position[0], at.position[1], max(at.position[2], height)]), at.yaw)


def rise(at: Waypoint) -> tuple[Waypoint, ...]:
    """Straight up to SAFE; nothing to do for a tool that is there."""
    return (up(at),) if at.position[2] < SAFE else ()


def wrap(angle: float, period: float = 2 * np.pi) -> float:
    """The angle [rad] moved by whole periods into half a period around zero."""
    return float((angle + period / 2) % period - period / 2)
