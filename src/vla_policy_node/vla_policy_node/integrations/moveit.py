"""The way home by MoveIt: planned around what its planning scene knows, and executed by its own controller."""

from typing import Any

from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.task import Future

from vla_core.profile import RobotProfile
from vla_policy_node.ros.optional import message_type
from vla_policy_node.ros.waiting import StepFailed, act

ACTION = 'move_action'
TOLERANCE = 0.01  # [rad] of each joint at the goal
ATTEMPTS = 5  # of the planner


class MoveItHome:
    """The MoveGroup action with the robot profile's home position as its goal.

    group: planning group. speed: fraction of the limits, for velocity and acceleration. seconds: for planning and
    motion together. Raises ValueError when moveit_msgs is not installed.
    """

    def __init__(self, node: Node, profile: RobotProfile, *, group: str, speed: float, seconds: float) -> None:
        wanted_by = 'moveit.enabled'
        self._kind = message_type('moveit_msgs', 'action', 'MoveGroup', wanted_by)
        self._constraints = message_type('moveit_msgs', 'msg', 'Constraints', wanted_by)
        self._joint = message_type('moveit_msgs', 'msg', 'JointConstraint', wanted_by)
        self._codes = message_type('moveit_msgs', 'msg', 'MoveItErrorCodes', wanted_by)
        self._node, self._profile = node, profile
        self._group, self._speed, self._seconds = group, speed, seconds
        self._client = ActionClient(node, self._kind, ACTION)

    def close(self) -> None:
        self._client.destroy()

    def goal(self) -> Any:
        """The MoveGroup goal, from wherever the arm is."""
        goal = self._kind.Goal()
        request = goal.request
        request.group_name = self._group
        request.num_planning_attempts, request.allowed_planning_time = ATTEMPTS, min(10.0, self._seconds / 2)
        request.max_velocity_scaling_factor = request.max_acceleration_scaling_factor = float(self._speed)
        request.start_state.is_diff = True  # the present state
        joints = [
            self._joint(
                joint_name=name, position=float(home), tolerance_above=TOLERANCE, tolerance_below=TOLERANCE, weight=1.0
            )
            for name, home in zip(self._profile.joint_names, self._profile.home, strict=True)
        ]
        request.goal_constraints = [self._constraints(joint_constraints=joints)]
        goal.planning_options.plan_only = False
        return goal

    async def run(self, unless: Future) -> None:
        """Plan and move, until `unless` is done. Raises StepFailed with MoveIt's error code."""
        answer = await act(self._node, self._client, ACTION, self.goal(), self._seconds, unless)
        code = answer.result.error_code.val
        if code != self._codes.SUCCESS:
            raise StepFailed(f'MoveIt did not bring the arm home: error code {code} (moveit_msgs/MoveItErrorCodes)')
