"""A task as phases of motion: tool path, gripper command, and the condition at the end. No ROS."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vla_sim.kinematics import Kinematics
from vla_sim.motion import Waypoint
from vla_sim.rendering.opengl import mujoco

Objects = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> position (3,) [m], orientation (4,) wxyz; base frame

SAFE = 0.20  # [m] height of the tool above all objects on the table
FINGERTIP = 0.009  # [m] length of the closed fingers beyond the tool centre point
OVER = 0.10  # [m] above a grasp or a press, from where the tool goes straight down


@dataclass(frozen=True)
class Measured:
    """Measurements at one time, in the base frame."""

    q: np.ndarray  # (dof,) [rad]
    tool: np.ndarray  # (3,) [m] tool centre point
    rotation: np.ndarray  # (3, 3) of the tool
    gripper: float  # opening [m]
    objects: Objects

    def position(self, name: str) -> np.ndarray:
        """Return the position of an object, (3,) [m]."""
        return self.objects[name][0]

    def rotation_of(self, name: str) -> np.ndarray:
        """Return the orientation of an object, (3, 3)."""
        matrix = np.empty(9)
        mujoco.mju_quat2Mat(matrix, self.objects[name][1])
        return matrix.reshape(3, 3)

    def yaw(self, name: str) -> float:
        """Return the direction of the object's x axis seen from above [rad]; that of y when x is vertical."""
        axes = self.rotation_of(name)
        x, y, _ = axes[:, 0] if abs(axes[2, 0]) < 0.7 else axes[:, 1]
        return float(np.arctan2(y, x))


@dataclass(frozen=True)
class Phase:
    """A motion from rest to rest, and the condition of its success."""

    subtask: str
    gripper: float  # [m] opening commanded from its start
    waypoints: tuple[Waypoint, ...] = ()  # none: stand still
    dwell: float = 0.0  # [s] at rest at its end, at least
    ready: Callable[[Measured], bool] = lambda measured: True  # the next phase may begin
    patience: float = 1.5  # [s] longest wait for `ready`, before the expert starts over
    broken: Callable[[Measured], str] = lambda measured: ''  # reason to give up; empty: none


Make = Callable[[Measured, Waypoint], Phase]  # of measurements, and the pose at that time of the path


class Skill:
    """The motion of one task for a goal."""

    subtasks: tuple[str, ...]  # texts, in order
    needs: tuple[str, ...]  # names of the objects that it needs

    def __init__(self, kinematics: Kinematics, max_opening: float) -> None:
        self.kinematics, self.max_opening = kinematics, max_opening
        position, rotation = kinematics.forward(kinematics.home)
        self.home = Waypoint(position, float(np.arctan2(rotation[1, 0], rotation[0, 0])))

    def phases(self, measured: Measured) -> list[Make]:
        """Return the remaining phases. Each is made when the commanded path reaches it, from measurements then."""
        raise NotImplementedError

    def clear(self, measured: Measured, at: Waypoint) -> Phase:
        """Return a phase that rises out of the way, before a new attempt."""
        raise NotImplementedError

    def boxed_in(self, measured: Measured) -> bool:
        """Return whether the tool is between objects on the table, and must rise first."""
        return bool(measured.tool[2] < SAFE - 0.05)


def raised(position: np.ndarray, height: float) -> np.ndarray:
    """Return the position (3,) [m] raised by height [m]."""
    return position + np.array([0.0, 0.0, height])


def up(at: Waypoint, height: float = SAFE) -> Waypoint:
    """Return the waypoint raised to this height [m], unchanged if it is higher."""
    return Waypoint(np.array([at.position[0], at.position[1], max(at.position[2], height)]), at.yaw)


def rise(at: Waypoint) -> tuple[Waypoint, ...]:
    """Return the waypoint straight up at SAFE; empty for a tool at that height."""
    return (up(at),) if at.position[2] < SAFE else ()


def wrap(angle: float, period: float = 2 * np.pi) -> float:
    """Return the angle [rad] shifted by whole periods to within half a period of zero."""
    return float((angle + period / 2) % period - period / 2)
