"""The tasks as phases of motion: where the tool goes, what the gripper does, and how to tell that it worked. No ROS."""

from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np

from vla_sim.kinematics import IKError, Kinematics, tool_down
from vla_sim.motion import Waypoint
from vla_sim.props import BLOCK_EDGE, CAP_TOP, CAP_TRAVEL, resting_height
from vla_sim.success import SceneState, in_bowl, stacked
from vla_sim.tasks import Goal, parse_instruction

Objects = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> position (3,) [m], orientation (4,) wxyz; base frame

SAFE = 0.20  # [m] height at which the tool passes over everything on the table
FINGERTIP = 0.009  # [m] that the closed fingers reach beyond the tool centre point
OVER = 0.10  # [m] above the pose of a grasp or a press: from here straight down
CLOSE = 0.06  # [m] across, from a tool to what it is said to be over
ROOM = 0.01  # [m] between the fingertips and what they pass over
THERE = (0.008, 0.12)  # [m] across and [rad] from a grasp: a tool that needs only go down


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


# Grips from above that are as good within half a turn: 1 a long thing, 2 a cube, 0 round: any. Long things lie along x.
GRIPS = {'block': 2, 'tomato': 0, 'lemon': 1, 'banana': 1, 'carrot': 1, 'eggplant': 1}
MIDDLE = {'banana': 0.008}  # [m] along y, from the body's position to the middle of what the fingers close on


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


class PressButton(Skill):
    """Press a button with the closed fingers."""

    DEEP = 0.004  # [m] commanded below where the cap ends: the arm is soft, the spring is not

    def __init__(self, goal: Goal, kinematics: Kinematics, max_opening: float) -> None:
        super().__init__(kinematics, max_opening)
        self.button, self.cap = goal.object, f'{goal.object}_cap'
        name = self.button.replace('_', ' ')
        self.subtasks = (f'move above the {name}', f'press the {name}', f'move away from the {name}')
        self.needs = (self.button, self.cap)

    def phases(self, measured: Measured) -> list[Make]:
        return [self._above, self._press, self._away]

    def clear(self, measured: Measured, at: Waypoint) -> Phase:
        return Phase(self.subtasks[0], 0.0, rise(at))

    def _tool_at(self, measured: Measured, height: float) -> Waypoint:
        """Fingertips this high [m] above the foot of the button, hand turned away from the base."""
        tool = raised(measured.position(self.button), height + FINGERTIP)
        return Waypoint(tool, float(np.arctan2(tool[1], tool[0])))

    def _above(self, measured: Measured, at: Waypoint) -> Phase:
        return Phase(self.subtasks[0], 0.0, (self._tool_at(measured, CAP_TOP + 0.05),), dwell=0.1)

    def _press(self, measured: Measured, at: Waypoint) -> Phase:
        def pressed(now: Measured) -> bool:
            down = now.position(self.button)[2] + CAP_TOP - now.position(self.cap)[2]
            return bool(down > 0.85 * CAP_TRAVEL)

        deep = self._tool_at(measured, CAP_TOP - CAP_TRAVEL - self.DEEP)
        return Phase(self.subtasks[1], 0.0, (deep,), dwell=0.4, ready=pressed)

    def _away(self, measured: Measured, at: Waypoint) -> Phase:
        return Phase(self.subtasks[2], self.max_opening, (up(at), self.home), dwell=0.1)


class PickPlace(Skill):
    """Take an object and put it onto a block or into a bowl."""

    def __init__(self, goal: Goal, kinematics: Kinematics, max_opening: float) -> None:
        super().__init__(kinematics, max_opening)
        self.goal, self.object, self.target = goal, goal.object, goal.target
        self.stack = goal.task == 'stack_block'
        self.kind = 'block' if self.stack else goal.object
        self.low = resting_height(self.kind)  # [m] of the object's own position above what it lies on
        self.width = 2 * self.low  # [m] between the fingers: all things here are as wide as high
        name, place = goal.object.replace('_', ' '), goal.target.replace('_', ' ')
        put = f'set the {name} onto the {place}' if self.stack else f'lower the {name} into the {place}'
        self.subtasks = (
            f'reach for the {name}',
            f'grasp the {name}',
            f'carry the {name} to the {place}',
            put,
            f'let go of the {name}',
            'move back',
        )
        self.needs = (self.object, self.target)

    def phases(self, measured: Measured) -> list[Make]:
        take = [] if self.held(measured) else [self._reach, self._grasp]
        return [*take, self._carry, self._lower, self._let_go, self._rise, self._go_home]

    def clear(self, measured: Measured, at: Waypoint) -> Phase:
        holding = self.held(measured)
        return Phase(self.subtasks[2 if holding else 0], 0.0 if holding else self.max_opening, rise(at))

    def boxed_in(self, measured: Measured) -> bool:
        return super().boxed_in(measured) and not self._over(measured.tool, self._middle(measured))

    # ---- what is measured

    def held(self, measured: Measured) -> bool:
        """The fingers are closed on something as wide as the object, and the object is between them."""
        offset = np.linalg.norm(measured.position(self.object) - measured.tool)
        return bool(abs(measured.gripper - self.width) < 0.008 and offset < 0.03)

    def placed(self, measured: Measured) -> bool:
        """The object lies where it belongs."""
        positions = {name: measured.position(name) for name in self.needs}
        state = SceneState(positions, speeds={}, presses={}, tool=measured.tool, opening=measured.gripper)
        return stacked(state, self.goal) if self.stack else in_bowl(state, self.goal)

    def _lost(self, measured: Measured) -> str:
        return '' if self.held(measured) else f'the {self.object} slipped from the hand'

    # ---- the phases

    def _reach(self, measured: Measured, at: Waypoint) -> Phase:
        spot = measured.position(self.object)
        tool = self._middle(measured)
        over = self._over(at.position, tool)
        grasp = Waypoint(tool, self._grasp_yaw(measured, tool, at.yaw if over else None))
        height = min(OVER, max(at.position[2] - tool[2], self._lowest())) if over else OVER
        above = Waypoint(raised(tool, height), grasp.yaw)
        there = np.hypot(*(at.position - tool)[:2]) < THERE[0] and abs(at.yaw - grasp.yaw) < THERE[1]

        def moved(now: Measured) -> str:
            away = np.linalg.norm(now.position(self.object) - spot)
            return f'the {self.object} moved by {away * 1e3:.0f} mm' if away > 0.008 else ''

        opening = min(self.max_opening, self.width + 0.030)
        waypoints = (grasp,) if over and there else (above, grasp)
        return Phase(self.subtasks[0], opening, waypoints, dwell=0.15, broken=moved)

    def _grasp(self, measured: Measured, at: Waypoint) -> Phase:
        return Phase(self.subtasks[1], 0.0, dwell=0.5, ready=self.held)

    def _carry(self, measured: Measured, at: Waypoint) -> Phase:
        place = self._place(measured, at)
        over = Waypoint(raised(place.position, OVER - 0.02), place.yaw)
        lift = Waypoint(raised(at.position, OVER), at.yaw)
        level = max(lift.position[2], over.position[2])
        lift, over = up(lift, level), up(over, level)
        return Phase(self.subtasks[2], 0.0, (lift, over), dwell=0.1, broken=self._lost)

    def _lower(self, measured: Measured, at: Waypoint) -> Phase:
        return Phase(self.subtasks[3], 0.0, (self._place(measured, at),), dwell=0.2, broken=self._lost)

    def _let_go(self, measured: Measured, at: Waypoint) -> Phase:
        opening = min(self.max_opening, self.width + 0.030)

        def open_enough(now: Measured) -> bool:
            return now.gripper > self.width + 0.015

        return Phase(self.subtasks[4], opening, dwell=0.4, ready=open_enough)

    def _rise(self, measured: Measured, at: Waypoint) -> Phase:
        return Phase(self.subtasks[5], self.max_opening, (up(at),), dwell=0.3, ready=self.placed, patience=2.0)

    def _go_home(self, measured: Measured, at: Waypoint) -> Phase:
        return Phase(self.subtasks[5], self.max_opening, (self.home,), dwell=0.1)

    # ---- geometry

    def _middle(self, measured: Measured) -> np.ndarray:
        """(3,) [m] of the object, where the fingers close on it."""
        middle = np.array([0.0, MIDDLE.get(self.kind, 0.0), 0.0])
        return measured.position(self.object) + measured.rotation_of(self.object) @ middle

    def _lowest(self) -> float:
        """[m] of a tool above the middle of the object, that turns over it."""
        return self.low + FINGERTIP + ROOM

    def _over(self, tool: np.ndarray, middle: np.ndarray) -> bool:
        """The tool is right over the object, and need not go up first."""
        away = tool - middle
        return bool(np.hypot(*away[:2]) < CLOSE and away[2] > self._lowest() - ROOM)

    def _grasp_yaw(self, measured: Measured, tool: np.ndarray, now: float | None = None) -> float:
        """[rad] of the tool: along the object, within the wrist's reach, fingers clear of the other things.

        now: [rad] of a tool that is there already, and should turn little.
        """
        ahead = float(np.arctan2(tool[1], tool[0]))  # the wrist is in mid-range when the tool faces away from the base
        if GRIPS[self.kind] == 0:
            candidates = ahead + np.linspace(-np.pi / 2, np.pi / 2, 12, endpoint=False)
        else:
            step = np.pi / GRIPS[self.kind]
            first = measured.yaw(self.object) - ahead
            candidates = ahead + np.array([wrap(first + k * step) for k in range(2 * GRIPS[self.kind])])

        def cost(yaw: float) -> float:
            fingers = np.array([np.sin(yaw), -np.cos(yaw)]) * (self.width / 2 + 0.025)
            room = min(
                (
                    float(np.hypot(*(position[:2] - tool[:2] - side * fingers)))
                    for name, (position, _) in measured.objects.items()
                    if name != self.object
                    for side in (-1, 1)
                ),
                default=1.0,
            )
            turn = 0.0 if now is None else abs(yaw - now)
            return abs(yaw - ahead) + 2.0 * turn + 40.0 * max(0.0, 0.07 - room)

        trouble: IKError | None = None
        for yaw in sorted(candidates, key=cost):
            try:
                self.kinematics.inverse(tool, tool_down(yaw), measured.q)
            except IKError as error:
                trouble = error
            else:
                return float(yaw)
        raise IKError(f'cannot grasp the {self.object}: {trouble}')

    def _place(self, measured: Measured, at: Waypoint) -> Waypoint:
        """Pose of the tool that puts the held object onto the middle of the target."""
        tool_yaw, offset = at.yaw, np.zeros(3)
        if self.held(measured):  # how the object lies in the hand; before that it is where the hand closes
            tool_yaw = float(np.arctan2(measured.rotation[1, 0], measured.rotation[0, 0]))
            offset = measured.rotation.T @ (measured.position(self.object) - measured.tool)
        target = measured.position(self.target)
        yaw = at.yaw + float(np.arctan2(target[1], target[0]) - np.arctan2(at.position[1], at.position[0]))
        if self.stack:  # edges along the edges of the block below
            lies = yaw + measured.yaw(self.object) - tool_yaw
            yaw += wrap(measured.yaw(self.target) - lies, np.pi / 2)
        height = BLOCK_EDGE + 0.002 if self.stack else self.low + 0.022  # of the object's position above the target's
        return Waypoint(raised(target, height) - tool_down(yaw) @ offset, yaw)


def wrap(angle: float, period: float = 2 * np.pi) -> float:
    """The angle [rad] moved by whole periods into half a period around zero."""
    return float((angle + period / 2) % period - period / 2)


def skill_for(task: str, instruction: str, kinematics: Kinematics, max_opening: float) -> Skill:
    """The skill that follows an instruction. Raises ValueError when the sentence is none of that task's."""
    goal = parse_instruction(instruction)
    if goal.task != task:
        raise ValueError(f'the instruction {instruction!r} is one of task {goal.task}, not of {task}')
    return (PressButton if task == 'press_button' else PickPlace)(goal, kinematics, max_opening)
