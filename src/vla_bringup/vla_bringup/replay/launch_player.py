"""Launch actions around `ros2 bag play`: latched messages before it, and its resumption."""

from typing import Any

from launch import LaunchContext  # type: ignore[attr-defined]  # mypy takes our launch/ folder for it
from launch.action import Action
from launch.actions import LogInfo, OpaqueFunction, Shutdown, TimerAction
from launch_ros.ros_adapters import get_ros_node

from vla_bringup.bags.message_types import message_class
from vla_bringup.processes.launching import LATER, LOOK
from vla_bringup.replay.player import PLAYER, Playback
from vla_policy_node.ros import qos
from vla_policy_node.ros.optional import message_type


def give_latched(context: LaunchContext, plan: Playback) -> list[Action]:
    """Publish the latched messages before the player starts, and keep their publishers."""
    node, kept = get_ros_node(context), []
    for latched in plan.before:
        publisher = node.create_publisher(message_class(latched.kind), latched.topic, qos.LATCHED_BY_MANY)
        for data in latched.messages:
            publisher.publish(data)
        kept.append(publisher)
    context.extend_globals({'vla_latched': kept})  # kept until the launch ends
    return []


def failed(context: LaunchContext) -> None:
    """Raise RuntimeError because the policy could not be configured: the launch ends with exit code 1."""
    if not context.is_shutdown:
        raise RuntimeError('the policy could not be configured: its log has the cause')


def over(event: Any, context: LaunchContext) -> list[Action]:
    """Return the end of the launch after that of the player. Raises RuntimeError (exit code 1) if the player failed."""
    if context.is_shutdown:
        return []
    if event.returncode:
        raise RuntimeError(f'ros2 bag play ended with exit code {event.returncode}: its log has the cause')
    return [Shutdown(reason='the bag has ended')]


def resume(context: LaunchContext, plan: Playback) -> list[Action]:
    """Resume the player once its topics exist. Called when the policy is active, as it subscribes at activation."""
    try:
        kind = message_type('rosbag2_interfaces', 'srv', 'Resume', f'{PLAYER}/resume')
    except ValueError as error:
        return [Shutdown(reason=str(error))]
    return _when_ready(context, plan, get_ros_node(context).create_client(kind, f'{PLAYER}/resume'), kind)


def _when_ready(context: LaunchContext, plan: Playback, client: Any, kind: Any) -> list[Action]:
    node = get_ros_node(context)
    missing = [name for name in plan.inputs if node.count_publishers(name) == 0]
    if missing or not client.service_is_ready():
        again = OpaqueFunction(function=_when_ready, args=[plan, client, kind])
        return [TimerAction(period=LOOK, actions=[again])]

    def call(_: LaunchContext) -> None:
        client.call_async(kind.Request())

    # The policy may discover the player's topics later than the launch.
    return [
        TimerAction(
            period=LATER, actions=[LogInfo(msg='the policy is active: the bag plays'), OpaqueFunction(function=call)]
        )
    ]
