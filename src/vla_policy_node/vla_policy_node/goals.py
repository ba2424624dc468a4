"""The ExecuteInstruction action of the policy node. Everything here runs in the node's one spin thread."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node
from rclpy.task import Future

from vla_msgs.action import ExecuteInstruction
from vla_policy_node.core.streams import NS
from vla_policy_node.inference import Assignment
from vla_policy_node.ros.chunk_msg import to_ns

Result, Feedback = ExecuteInstruction.Result, ExecuteInstruction.Feedback


@dataclass(eq=False)
class Goal:
    handle: ServerGoalHandle
    assignment: Assignment
    started: int  # [ns] on the node's clock
    deadline: int | None  # [ns]
    done: Future  # of (outcome, message)


class Goals:
    """At most one goal at a time; a newer one ends it.

    refusal: why an instruction cannot be taken now, empty when it can. take: puts an instruction in force, which
    ends the goal before it. halt: ends the motion of the instruction in force.

    The execute coroutine awaits a Future, so that the single spin thread stays free to hear a cancel request.
    """

    def __init__(
        self,
        node: Node,
        *,
        refusal: Callable[[str], str],
        take: Callable[[str], Assignment],
        halt: Callable[[], None],
    ) -> None:
        self._node, self._refusal, self._take, self._halt = node, refusal, take, halt
        self._current: Goal | None = None
        self._running = 0  # coroutines that have not returned
        self._server = ActionServer(
            node,
            ExecuteInstruction,
            '~/execute_instruction',
            self._execute,
            goal_callback=self._on_goal,
            cancel_callback=self._on_cancel,
        )

    @property
    def following(self) -> bool:
        """Whether a goal is in force."""
        return self._current is not None

    @property
    def busy(self) -> bool:
        """Whether a result is still to be sent."""
        return self._running > 0

    def end(self, outcome: int, message: str) -> None:
        """End the current goal, if there is one. What the arm does is the caller's business."""
        if self._current is not None:
            goal, self._current = self._current, None
            goal.done.set_result((outcome, message))

    def tick(self, feedback: Callable[[], Any] | None) -> None:
        """Enforce the time limit; send feedback when the caller says it is due."""
        goal = self._current
        if goal is None:
            return
        if goal.deadline is not None and self._now() >= goal.deadline:
            limit = (goal.deadline - goal.started) / NS
            self._halt()
            self.end(Result.OUTCOME_TIME_LIMIT, f'the time limit of {limit:g} s was reached')
        elif feedback is not None and goal.handle.is_active:
            goal.handle.publish_feedback(feedback())

    def destroy(self) -> None:
        self._server.destroy()

    def _now(self) -> int:
        return self._node.get_clock().now().nanoseconds

    def _on_goal(self, request: Any) -> GoalResponse:
        reason = self._refusal(request.instruction)
        if not reason and to_ns(request.time_limit) < 0:
            reason = 'the time limit is below zero: give a duration, or zero for none'
        if reason:
            self._node.get_logger().warning(f'goal refused: {reason}')
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _on_cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        if self._current is not None and self._current.handle is handle:
            self._halt()
            self.end(Result.OUTCOME_CANCELLED, 'cancelled by the client')
        return CancelResponse.ACCEPT

    async def _execute(self, handle: ServerGoalHandle) -> Any:
        self._running += 1
        try:
            return await self._follow(handle)
        finally:
            self._running -= 1

    async def _follow(self, handle: ServerGoalHandle) -> Any:
        now, limit = self._now(), to_ns(handle.request.time_limit)
        if handle.is_cancel_requested:
            handle.canceled()
            return Result(outcome=Result.OUTCOME_CANCELLED, message='cancelled before it began')
        reason = self._refusal(handle.request.instruction)  # the node may have been deactivated since the goal came
        if reason:
            handle.abort()
            return Result(outcome=Result.OUTCOME_DEACTIVATED, message=reason)
        assignment = self._take(handle.request.instruction)
        goal = Goal(handle, assignment, now, now + limit if limit else None, Future(executor=self._node.executor))
        self._current = goal
        outcome, message = await goal.done
        result = self._result(goal, outcome, message)
        if outcome == Result.OUTCOME_CANCELLED:
            handle.canceled()
        elif outcome == Result.OUTCOME_TIME_LIMIT:
            handle.succeed()
        else:
            handle.abort()
        self._node.get_logger().info(
            f'"{assignment.instruction}" ended after {result.duration:.1f} s and {result.chunks} chunks: {message}'
        )
        return result

    def _result(self, goal: Goal, outcome: int, message: str) -> Any:
        p = goal.assignment.inference.percentiles()
        duration = (self._now() - goal.started) / NS
        return Result(
            outcome=int(outcome),
            message=message,
            chunks=goal.assignment.chunks,
            skipped=goal.assignment.skipped,
            duration=duration if duration >= 0 else math.nan,  # the clock was set back meanwhile
            inference_p50=p.p50,
            inference_p95=p.p95,
            inference_p99=p.p99,
        )
