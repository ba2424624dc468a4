"""Grippers that are driven by actions: open or closed, and one goal for each change, never one per chunk.

A Franka hand that gets a new grasp drops what it holds.
"""

from typing import Any

from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.task import Future

from vla_policy_node.ros.optional import message_type

CLOSE_BELOW, OPEN_ABOVE = 0.4, 0.6  # of the opening: half, with a hysteresis that noise does not cross
FULLY = 0.001  # [m] a grasp counts wherever the fingers stop: its tolerance is the whole opening, and this


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

    def send(self, opening: float) -> None:
        """opening: distance between the fingers [m]. Called at every control step."""
        fraction = opening / self._max_opening
        if self._wanted is None or fraction < CLOSE_BELOW or fraction > OPEN_ABOVE:
            self._wanted = fraction > 0.5
        if self._wanted == self._asked:
            return
        client, name, goal = self._goals[self._wanted]
        if self._under_way is not None and self._asked is not None and self._goals[self._asked][0].server_is_ready():
            if not self._cancelled and not isinstance(self._under_way, Future):
                self._cancelled = True
                self._under_way.cancel_goal_async()
            return
        if not client.server_is_ready():
            self._node.get_logger().error(f'no action server {name}: gripper not moved', throttle_duration_sec=5.0)
            return
        self._asked, self._cancelled = self._wanted, False
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

    def _on_answer(self, answer: Future) -> None:
        handle = answer.result()
        if handle is None or not handle.accepted:
            self._node.get_logger().error('the gripper refused its goal: is it homed, is it in an error?')
            self._under_way = None
            return
        self._under_way = handle
        handle.get_result_async().add_done_callback(self._on_result)

    def _on_result(self, _: Future) -> None:
        self._under_way = None


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
