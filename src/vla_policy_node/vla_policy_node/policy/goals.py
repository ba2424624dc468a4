"""The ExecuteInstruction action of the policy node. Everything here runs in the node's one spin thread."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node
from rclpy.task import Future

from vla_core.observe.streams import NS
from vla_core.stats import Window
from vla_model.policy import PLAN
from vla_msgs.action import ExecuteInstruction
from vla_policy_node.policy.instructions import Instructions
from vla_policy_node.policy.session import SUPERSEDE, Answer, Session
from vla_policy_node.policy.steering import SteeringTraces
from vla_policy_node.ros.chunk_msg import to_ns

Result, Feedback = ExecuteInstruction.Result, ExecuteInstruction.Feedback
MOST = 8  # goals of one run: a client that only ever sends new ones must not fill the memory


@dataclass
class Tally:
    """What came about while a goal ran."""

    changes: int = 0  # of the instruction
    chunks: int = 0  # published
    skipped: int = 0  # complete sets passed over
    inference: Window = field(default_factory=lambda: Window(1000))  # [s]
    latency: Window = field(default_factory=lambda: Window(1000))  # [s] t_ref -> published


@dataclass(eq=False)
class Goal:
    handle: ServerGoalHandle
    started: int  # [ns] on the node's clock
    limit: int  # [ns]; 0: none
    instruction: str  # in force: its own, or one that came later
    done: Future  # of (outcome, message)
    tally: Tally = field(default_factory=Tally)
    cancelled: bool = False  # by its own client
    set_back: bool = False  # the node's clock, while the goal ran
    began: float = field(default_factory=time.monotonic)  # [s], for the log: the node's clock may be set back

    def over(self, now: int) -> bool:
        """Whether its time limit is reached at time now [ns]."""
        return self.limit > 0 and now >= self.started + self.limit


class Goals:
    """The goals of one *run*: motion without end between them. The newest goal leads, those before go along.

    Its own time limit ends a goal. With the goal that leads, or when any is cancelled, all end and the arm stops.

    The execute coroutines await a Future, so that the single spin thread stays free to receive a cancel request.
    """

    def __init__(self, node: Node, session: Session, instructions: Instructions, traces: SteeringTraces) -> None:
        self._node, self._session, self._instructions, self._traces = node, session, instructions, traces
        self._run: tuple[Goal, ...] = ()  # replaced, never changed: the worker's thread reads it
        self._waiting = 0  # coroutines that have not returned
        self._server = ActionServer(
            node,
            ExecuteInstruction,
            '~/execute_instruction',
            self._execute,
            goal_callback=self._on_goal,
            cancel_callback=self._on_cancel,
        )
        session.changed.append(self._changed)
        session.delivered.append(self._delivered)

    @property
    def following(self) -> bool:
        """Whether a goal is in force."""
        return bool(self._run)

    @property
    def busy(self) -> bool:
        """Whether a result is still to be sent."""
        return self._waiting > 0

    def end(self, outcome: int, message: str) -> None:
        """End all goals. What the arm does is the caller's business."""
        for goal in self._run:
            self._end(goal, outcome, message)

    def clock_set_back(self) -> None:
        """End all goals: on the clock of now, the times at which they started mean nothing."""
        for goal in self._run:
            goal.set_back = True
        self.end(Result.OUTCOME_FAILED, 'the clock went back: send the goal again')

    def _changed(self, instruction: str) -> None:
        if instruction and self._session.change == SUPERSEDE:
            self.end(Result.OUTCOME_SUPERSEDED, f'superseded by "{instruction}"')
        for goal in self._run if instruction else ():
            goal.instruction = instruction
            goal.tally.changes += 1

    def _delivered(self, answer: Answer, sequence: int, latency: float) -> None:
        """In the worker's thread."""
        for goal in self._run:
            goal.tally.chunks += 1
            goal.tally.skipped += answer.skipped
            goal.tally.inference.add(answer.inference_time)
            goal.tally.latency.add(latency)

    def tick(self, feedback: Callable[[], Any] | None) -> None:
        """Enforce the time limits; send feedback where it is given. Set the outputs that goals ask for."""
        now = self._now()
        if self._run and self._run[-1].over(now):
            message = f'the time limit of {self._run[-1].limit / NS:g} s was reached'
            self._session.halt()
            self.end(Result.OUTCOME_TIME_LIMIT, message)
        for goal in self._run:
            if goal.over(now):
                message = f'the time limit of {goal.limit / NS:g} s was reached; the arm continues for a newer goal'
                self._end(goal, Result.OUTCOME_TIME_LIMIT, message)
        self._session.requested = frozenset({PLAN} if any(goal.handle.request.plan for goal in self._run) else ())
        live = [goal for goal in self._run if goal.handle.is_active]
        if feedback is not None and live:
            msg = feedback()
            for goal in live:
                goal.handle.publish_feedback(msg)

    def destroy(self) -> None:
        self._server.destroy()

    def _now(self) -> int:
        return self._node.get_clock().now().nanoseconds

    def _end(self, goal: Goal, outcome: int, message: str) -> None:
        self._run = tuple(g for g in self._run if g is not goal)
        goal.done.set_result((outcome, message))

    def _on_goal(self, request: Any) -> GoalResponse:
        reason = self._instructions.refusal(request.instruction) or self._traces.refusal(request.trace)
        if not reason and to_ns(request.time_limit) < 0:
            reason = 'the time limit is below zero: give a duration, or zero for none'
        if reason:
            self._node.get_logger().warning(f'goal refused: {reason}')
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _on_cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        found = next((goal for goal in self._run if goal.handle is handle), None)
        if found is not None:  # whoever asks for it, the arm stops
            found.cancelled = True
            self._session.halt()
            for goal in self._run:
                message = 'cancelled by the client' + ' of another goal of the same run' * (goal is not found)
                self._end(goal, Result.OUTCOME_CANCELLED, message)
        return CancelResponse.ACCEPT

    async def _execute(self, handle: ServerGoalHandle) -> Any:
        self._waiting += 1
        try:
            return await self._follow(handle)
        finally:
            self._waiting -= 1

    async def _follow(self, handle: ServerGoalHandle) -> Any:
        if handle.is_cancel_requested:
            handle.canceled()
            return Result(outcome=Result.OUTCOME_CANCELLED, message='cancelled before it began')
        # The node may have been deactivated since the goal came.
        trace = handle.request.trace
        reason = self._instructions.refusal(handle.request.instruction) or self._traces.refusal(trace)
        if reason:
            handle.abort()
            return Result(outcome=Result.OUTCOME_DEACTIVATED, message=reason)
        limit = to_ns(handle.request.time_limit)
        with self._session.lock:  # no chunk comes before there is a goal to count it
            instruction = self._instructions.take(handle.request.instruction)
            if len(trace.u):
                self._traces.take(trace)
            goal = Goal(handle, self._now(), limit, instruction, Future(executor=self._node.executor))
            if len(self._run) >= MOST:
                message = f'{MOST} newer goals came: publish ~/instruction instead'
                self._end(self._run[0], Result.OUTCOME_SUPERSEDED, message)
            self._run = (*self._run, goal)
        outcome, message = await goal.done
        result = self._result(goal, outcome, message)
        if goal.cancelled:
            handle.canceled()
        elif outcome == Result.OUTCOME_TIME_LIMIT:
            handle.succeed()
        else:
            handle.abort()
        self._node.get_logger().info(
            f'"{handle.request.instruction}" ended after {time.monotonic() - goal.began:.1f} s of wall time and '
            f'{result.chunks} chunks: {message}'
        )
        return result

    def _result(self, goal: Goal, outcome: int, message: str) -> Any:
        tally, duration = goal.tally, (self._now() - goal.started) / NS
        inference, latency = tally.inference.percentiles(), tally.latency.percentiles()
        return Result(
            outcome=int(outcome),
            message=message,
            instruction=goal.instruction,
            changes=tally.changes,
            chunks=tally.chunks,
            skipped=tally.skipped,
            duration=math.nan if goal.set_back or duration < 0 else duration,
            inference_p50=inference.p50,
            inference_p95=inference.p95,
            inference_p99=inference.p99,
            latency_p50=latency.p50,
            latency_p95=latency.p95,
            latency_p99=latency.p99,
        )
