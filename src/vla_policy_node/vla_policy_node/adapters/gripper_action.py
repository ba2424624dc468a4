"""Grippers that are driven by actions: open or closed, and one goal for each change, never one per chunk.

A goal that is refused or aborted is sent again while it is wanted and the arm is driven. A closing goal is an exception
once the fingers may hold something: a Franka hand that gets a new grasp drops what it holds.
"""

import time
from typing import Any

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.task import Future

from vla_policy_node.ros.optional import message_type

CLOSE_BELOW, OPEN_ABOVE = 0.4, 0.6  # of the opening: half, with a hysteresis that noise does not cross
FULLY = 0.001  # [m] a grasp counts wherever the fingers stop: its tolerance is the whole opening, and this
REPEAT = 1.0  # [s] between a failure and the next goal, by a monotonic clock
REPORTED = 3  # failures in a row from which on they are a fault of the robot that a person must know
EMPTY = 3  # closing goals at most that are aborted in a row for no reason given: no object was found
SHORT = 0.05  # of the opening: fingers that stop so far from being closed may hold something


class GripperAction:
    """goals: open (True) and closed (False) -> action type, name, goal. max_opening [m]."""

    def __init__(self, node: Node, goals: dict[bool, tuple[Any, str, Any]], max_opening: float) -> None:
        self._node, self._max_opening = node, max_opening
        kinds = {name: kind for kind, name, _ in goals.values()}
        self._clients = {name: ActionClient(node, kind, name) for name, kind in kinds.items()}
        self._goals = {opened: (self._clients[name], name, goal) for opened, (_, name, goal) in goals.items()}
        self._wanted: bool | None = None
        self._asked: bool | None = None  # of the newest goal
        self._under_way: Any = None  # its future, then its handle, None when it is over
        self._cancelled = False
        self._due: float | None = None  # when the newest goal is to be sent again, by a monotonic clock
        self._failures = 0  # of the same goal, in a row
        self._failure = ''  # the last of them, one sentence
        self._looked = 0.0  # when the server was looked for last

    @property
    def problem(self) -> str:
        """What is wrong with the gripper, one sentence; '' if nothing is known to be."""
        return self._failure if self._failures >= REPORTED else ''

    def send(self, opening: float, driven: bool) -> None:
        """opening: distance between the fingers [m]. Called at every control step.

        driven: a chunk is being executed; only then a goal that failed is sent again.
        """
        fraction = opening / self._max_opening
        if self._wanted is None or fraction < CLOSE_BELOW or fraction > OPEN_ABOVE:
            self._wanted = fraction > 0.5
        now = time.monotonic()
        self._look_for_server(now)
        if self._wanted == self._asked and not (driven and self._due is not None and now >= self._due):
            return
        client, name, goal = self._goals[self._wanted]
        if self._under_way is not None:
            if not self._cancelled and not isinstance(self._under_way, Future):
                self._cancelled = True
                self._under_way.cancel_goal_async()
            return
        if not client.server_is_ready():
            self._node.get_logger().error(f'no action server {name}: gripper not moved', throttle_duration_sec=5.0)
            return
        if self._wanted != self._asked:
            self._failures = 0
        self._asked, self._cancelled, self._due = self._wanted, False, None
        self._under_way = client.send_goal_async(goal)
        self._under_way.add_done_callback(self._on_answer)

    def check(self) -> list[str]:
        """One sentence for each action that has no server."""
        return [
            f'there is no action server {name}: start the gripper driver, check topics.gripper_command'
            for name, client in self._clients.items()
            if not client.server_is_ready()
        ]

    def close(self) -> None:
        for client in self._clients.values():
            client.destroy()

    def _look_for_server(self, now: float) -> None:
        """A goal whose server has gone never ends: it failed."""
        if self._under_way is None or self._asked is None or now - self._looked < REPEAT:
            return
        self._looked = now
        client, name, _ = self._goals[self._asked]
        if not client.server_is_ready():
            self._under_way = None
            self._failed(f'action server {name} has gone')

    def _on_answer(self, answer: Future) -> None:
        if answer is not self._under_way:  # of a server that has gone
            return
        handle = answer.result()
        if handle is None or not handle.accepted:
            self._under_way = None
            self._failed('it refused the goal')
            return
        self._under_way = handle
        handle.get_result_async().add_done_callback(lambda future: self._on_result(handle, future))

    def _on_result(self, handle: Any, future: Future) -> None:
        if handle is not self._under_way:
            return
        self._under_way = None
        answer = future.result()
        if self._cancelled:  # by ourselves: what is wanted now is a new goal
            self._asked = None
        elif answer is not None and answer.status == GoalStatus.STATUS_ABORTED:
            self._aborted(answer.result)
        else:
            self._failures = 0

    def _aborted(self, result: Any) -> None:
        """Return what control_msgs/GripperCommand or franka_msgs/Grasp and Move report with an aborted goal."""
        stopped, error = self._fingers_stopped(result), getattr(result, 'error', '')
        if stopped:
            self._failures = 0
            if not result.stalled:
                self._node.get_logger().warning(
                    'the gripper aborted a closing goal with its fingers apart: they may hold something, so the goal '
                    'is not sent again'
                )
            return
        self._failed(f'it aborted the goal{": " * bool(error)}{error}')
        if not self._asked and not error and self._failures >= EMPTY:
            self._due = None

    def _fingers_stopped(self, result: Any) -> bool:
        """Whether closing fingers met something, as far as the result shows. Controllers of ros2_controllers set
        `stalled` then, and franka_gripper's gripper_action only where its fingers are."""
        if self._asked or not hasattr(result, 'stalled'):
            return False
        (_, _, opened), (_, _, closed) = self._goals[True], self._goals[False]
        way = opened.command.position - closed.command.position
        return bool(result.stalled) or abs(result.position - closed.command.position) > SHORT * abs(way)

    def _failed(self, why: str) -> None:
        """The newest goal is to be sent again."""
        self._failures += 1
        what = 'open' if self._asked else 'close'
        self._failure = f'the gripper did not {what}: {why}; is it homed, is it in an error?'
        self._due = time.monotonic() + REPEAT
        if self._failures in (1, REPORTED):
            self._node.get_logger().error(self._failure)


def gripper_command(node: Node, action: str, max_opening: float, scale: float, effort: float) -> GripperAction:
    """control_msgs/GripperCommand on `action`. scale: its position per opening; effort: largest [N]."""
    kind = message_type('control_msgs', 'action', 'GripperCommand', 'gripper: gripper_command')

    def goal(opening: float) -> Any:
        goal = kind.Goal()
        goal.command.position, goal.command.max_effort = float(opening * scale), float(effort)
        return goal

    return GripperAction(node, {True: (kind, action, goal(max_opening)), False: (kind, action, goal(0.0))}, max_opening)


def franka_hand(node: Node, base: str, max_opening: float, speed: float, force: float) -> GripperAction:
    """franka_msgs Grasp and Move on `base`/grasp and `base`/move. speed [m/s], force [N]."""
    grasp = message_type('franka_msgs', 'action', 'Grasp', 'gripper: franka')
    move = message_type('franka_msgs', 'action', 'Move', 'gripper: franka')
    closing, opening = grasp.Goal(), move.Goal()
    closing.width, closing.speed, closing.force = 0.0, float(speed), float(force)
    closing.epsilon.inner = closing.epsilon.outer = float(max_opening + FULLY)
    opening.width, opening.speed = float(max_opening), float(speed)
    return GripperAction(
        node, {True: (move, f'{base}/move', opening), False: (grasp, f'{base}/grasp', closing)}, max_opening
    )
