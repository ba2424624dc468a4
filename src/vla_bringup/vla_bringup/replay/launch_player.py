"""Launch actions around `ros2 bag play`: what is latched before it, and when it is resumed."""

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
    """Publishes what was latched before the player starts, and keeps it so."""
    node, kept = get_ros_node(context), []
    for latched in plan.before:
        publisher = node.create_publisher(message_class(latched.kind), latched.topic, qos.LATCHED_BY_MANY)
        for data in latched.messages:
            publisher.publish(data)
        kept.append(publisher)
    context.extend_globals({'vla_latched': kept})  # as long as the launch
    return []


def failed(context: LaunchContext) -> None:
    """When the policy could not be configured. Raises RuntimeError, which ends the launch with exit code 1."""
    if not context.is_shutdown:
        raise RuntimeError('the policy could not be configured: its own lines have the cause')


def over(event: Any, context: LaunchContext) -> list[Action]:
    """When the player has ended. Raises RuntimeError, which ends the launch with exit code 1, when that was a fault."""
    if context.is_shutdown:
        return []
    if event.returncode:
        raise RuntimeError(f'ros2 bag play ended with exit code {event.returncode}: its own lines have the cause')
    return [Shutdown(reason='the bag is over')]


def resume(context: LaunchContext, plan: Playback) -> list[Action]:
    """Lets the player go on, once it is there with its topics. Called when the policy is active: it subscribes then."""
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

    # The policy may hear of the player's topics a little later than we.
    return [
        TimerAction(
            period=LATER, actions=[LogInfo(msg='the policy is active: the bag plays'), OpaqueFunction(function=call)]
        )
    ]
