"""Common parts of tasks that put an object onto or into another: grasp, carry, put down, release."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from vla_sim.assets.objects import spoken
from vla_sim.assets.props import resting_height
from vla_sim.kinematics import IKError, Kinematics, tool_down
from vla_sim.motion import Waypoint
from vla_sim.tasks.episode import Goal, SceneState
from vla_sim.tasks.skill import FINGERTIP, OVER, Make, Measured, Phase, Skill, raised, rise, up, wrap
from vla_sim.tasks.success import AT_OBJECT, LIFTED, SETTLED, let_go
from vla_sim.tasks.success import OVER as OVER_TARGET
from vla_sim.tasks.task import Task

CLOSE = 0.06  # [m] horizontal tolerance of a tool above the object
ROOM = 0.01  # [m] between the fingertips and the objects under them
THERE = (0.008, 0.12)  # [m] horizontally and [rad] from a grasp, at which the tool may go straight down
# Equivalent grasps from above within half a turn: 1 for a long object (along x), 2 for a cube, 0 (any) for round ones.
GRIPS = {'block': 2, 'tomato': 0, 'lemon': 1, 'banana': 1, 'carrot': 1, 'eggplant': 1}
MIDDLE = {'banana': 0.008}  # [m] along y, from the body's position to the middle of the grasp


class Placing(Task):
    """A task whose goal has a target."""

    stages = ('reach', 'grasp', 'carry', 'place')
    put: ClassVar[str]  # text of the sub-task of putting down, with {object} and {target}
    edges_along: ClassVar[bool] = False  # the object's edges are to be along those of the target

    @abstractmethod
    def rests(self, state: SceneState, goal: Goal) -> bool:
        """Return whether the object is on or in the target."""

    @abstractmethod
    def height(self, low: float) -> float:
        """Return the height of the object above the target at its release [m]. low: its height over its support [m]."""

    def success_test(self, goal: Goal) -> 'RestTest':
        return RestTest(self, goal)

    def stages_at(self, goal: Goal, state: SceneState, start: dict[str, np.ndarray]) -> list[str]:
        at, reached = state.positions[goal.object], []
        lifted = at[2] - start[goal.object][2] > LIFTED
        if np.linalg.norm(state.tool - at) < AT_OBJECT:
            reached.append('reach')
        if lifted:
            reached.append('grasp')
        if lifted and np.hypot(*(at - state.positions[goal.target])[:2]) < OVER_TARGET:
            reached.append('carry')
        return reached + ['place'] * self.rests(state, goal)

    def skill(self, goal: Goal, kinematics: Kinematics, max_opening: float) -> Skill:
        return PickPlace(goal, self, kinematics, max_opening)


class RestTest:
    """Success once the released object has been at rest on or in the target for SETTLED [s]."""

    def __init__(self, task: Placing, goal: Goal) -> None:
        self.task, self.goal, self.reached, self._held = task, goal, False, 0.0

    def update(self, state: SceneState, dt: float) -> None:
        """state: the scene now; dt: seconds since the last call."""
        rests = self.task.rests(state, self.goal) and let_go(state, self.goal)
        self._held = self._held + dt if rests else 0.0
        self.reached = self._held >= SETTLED


class PickPlace(Skill):
    """Takes an object and puts it onto a block or into a bowl."""

    def __init__(self, goal: Goal, task: 'Placing', kinematics: Kinematics, max_opening: float) -> None:
        super().__init__(kinematics, max_opening)
        self.goal, self.object, self.target, self.task = goal, goal.object, goal.target, task
        self.kind = task.object_kind or goal.object
        self.low = resting_height(self.kind)  # [m] of the object's own position above the surface under it
        self.width = 2 * self.low  # [m] between the fingers: all objects are as wide as high
        name, place = spoken(goal.object), spoken(goal.target)
        self.subtasks = (
            f'reach for the {name}',
            f'grasp the {name}',
            f'carry the {name} to the {place}',
            task.put.format(object=name, target=place),
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
        """Return whether the fingers are closed at the width of the object, with the object between them."""
        offset = np.linalg.norm(measured.position(self.object) - measured.tool)
        return bool(abs(measured.gripper - self.width) < 0.008 and offset < 0.03)

    def placed(self, measured: Measured) -> bool:
        """Return whether the object is at its target."""
        positions = {name: measured.position(name) for name in self.needs}
        state = SceneState(positions, speeds={}, presses={}, tool=measured.tool, opening=measured.gripper)
        return self.task.rests(state, self.goal)

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
        """Return the grasp point of the object, (3,) [m]."""
        middle = np.array([0.0, MIDDLE.get(self.kind, 0.0), 0.0])
        return measured.position(self.object) + measured.rotation_of(self.object) @ middle

    def _lowest(self) -> float:
        """Return the lowest height of a turning tool above the middle of the object [m]."""
        return self.low + FINGERTIP + ROOM

    def _over(self, tool: np.ndarray, middle: np.ndarray) -> bool:
        """Return whether the tool is straight above the object, and need not rise first."""
        away = tool - middle
        return bool(np.hypot(*away[:2]) < CLOSE and away[2] > self._lowest() - ROOM)

    def _grasp_yaw(self, measured: Measured, tool: np.ndarray, now: float | None = None) -> float:
        """Return the yaw of the tool [rad]: along the object, within the wrist's range, fingers clear of other objects.

        now: yaw of a tool that is above the object already and should turn little [rad].
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
        """Return the pose of the tool that puts the held object onto the middle of the target."""
        tool_yaw, offset = at.yaw, np.zeros(3)
        if self.held(measured):  # pose of the object in the hand; before the grasp the grasp point
            tool_yaw = float(np.arctan2(measured.rotation[1, 0], measured.rotation[0, 0]))
            offset = measured.rotation.T @ (measured.position(self.object) - measured.tool)
        target = measured.position(self.target)
        yaw = at.yaw + float(np.arctan2(target[1], target[0]) - np.arctan2(at.position[1], at.position[0]))
        if self.task.edges_along:
            lies = yaw + measured.yaw(self.object) - tool_yaw
            yaw += wrap(measured.yaw(self.target) - lies, np.pi / 2)
        return Waypoint(raised(target, self.task.height(self.low)) - tool_down(yaw) @ offset, yaw)
