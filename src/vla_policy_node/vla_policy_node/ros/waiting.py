"""Wait for other nodes from inside a coroutine callback, with a limit, while the node continues to spin.

The callback that awaits must be in a callback group of its own (ReentrantCallbackGroup), or the node's timers stop.
"""

from typing import Any

from rclpy.action import ActionClient
from rclpy.client import Client
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future

LOOK = 0.05  # [s] between two looks for a server
CANCEL = 2.0  # [s] for the answer of an action that is cancelled


class StepFailed(RuntimeError):
    """Another node did not do what it was asked; the message says which one and what."""


async def pause(node: Node, seconds: float) -> None:
    """Seconds of wall time."""
    over = Future(executor=node.executor)
    timer = node.create_timer(seconds, lambda: over.done() or over.set_result(None), clock=_STEADY)
    try:
        await over
    finally:
        node.destroy_timer(timer)


async def finished(node: Node, future: Future, seconds: float, what: str, unless: Future | None = None) -> Any:
    """The result of a future. Raises StepFailed naming `what` when it takes longer (wall time), or `unless` is done."""
    over = Future(executor=node.executor)

    def end(problem: str) -> None:
        if not over.done():
            over.set_result(problem)

    timer = node.create_timer(seconds, lambda: end(f'did not answer within {seconds:g} s'), clock=_STEADY)
    future.add_done_callback(lambda _: end(''))
    if unless is not None:
        unless.add_done_callback(lambda _: end('was stopped'))
    try:
        problem = await over
    finally:
        node.destroy_timer(timer)
    if problem:
        raise StepFailed(f'{what} {problem}')
    return future.result()


async def appeared(node: Node, ready: Any, seconds: float, what: str) -> None:
    """Until ready() is true. Raises StepFailed naming `what` when it takes longer (wall time)."""
    for _ in range(max(1, round(seconds / LOOK))):
        if ready():
            return
        await pause(node, LOOK)
    raise StepFailed(f'{what} did not come within {seconds:g} s: is it running?')


async def call(node: Node, client: Client, request: Any, seconds: float) -> Any:
    """The response of a service. Raises StepFailed.

    The client should be older than the call: a server may learn of a new one too late for its answer to arrive.
    """
    what = f'service {node.resolve_service_name(client.srv_name)}'
    await appeared(node, client.service_is_ready, seconds, what)
    future = client.call_async(request)
    try:
        return await finished(node, future, seconds, what)
    finally:
        client.remove_pending_request(future)


async def act(
    node: Node, client: ActionClient, name: str, goal: Any, seconds: float, unless: Future | None = None
) -> Any:
    """Status (action_msgs/GoalStatus) and result of the action `name`, as its client gives them. Raises StepFailed.

    A goal that takes longer than `seconds` is cancelled, and when `unless` is done before.
    """
    what = f'action {node.resolve_service_name(name)}'
    await appeared(node, client.server_is_ready, seconds, what)
    handle = await finished(node, client.send_goal_async(goal), seconds, what)
    if not handle.accepted:
        raise StepFailed(f'{what} refused the goal')
    try:
        return await finished(node, handle.get_result_async(), seconds, what, unless)
    except StepFailed as problem:
        try:  # received before the client goes
            await finished(node, handle.cancel_goal_async(), CANCEL, f'{what}, asked to cancel,')
        except StepFailed as deaf:
            raise StepFailed(f'{problem}; {deaf}') from None
        raise


_STEADY = Clock(clock_type=ClockType.STEADY_TIME)
