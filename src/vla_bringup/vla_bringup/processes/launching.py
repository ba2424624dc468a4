"""Makes launch actions of a node list. Needs launch_ros, which the ROS wheels lack; the supervisor needs none."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch import LaunchContext  # type: ignore[attr-defined]  # mypy takes our launch/ folder for it
from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.events import matches_action
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.ros_adapters import get_ros_adapter, get_ros_node
from lifecycle_msgs.msg import Transition

from vla_bringup.processes.nodes import NodeSpec
from vla_bringup.processes.overrides import ARGUMENTS, MODEL
from vla_policy_node.adapters.command_topic import is_controller
from vla_policy_node.ros.run import REST, SHUTDOWN

RETRY = 1.0  # [s] between two attempts to activate a node
LOOK, LATER = 0.3, 0.7  # [s] between two checks of a node's conditions, and from their fulfilment to the activation


def parameter_arguments(*names: str, prefix: str = '', about: str = '') -> list[DeclareLaunchArgument]:
    """Return the launch arguments that set parameters: those of these names, or all of overrides.ARGUMENTS."""
    return [
        DeclareLaunchArgument(prefix + name, default_value='', description=about + ARGUMENTS[name])
        for name in names or ARGUMENTS
    ]


def model_arguments(*, prefix: str = '', about: str = '', default: str = '') -> list[DeclareLaunchArgument]:
    """Return the launch arguments for the model and its device."""
    defaults = {'model': default}
    return [
        DeclareLaunchArgument(prefix + name, default_value=defaults.get(name, ''), description=about + text)
        for name, text in MODEL.items()
    ]


def launch_actions(
    specs: list[NodeSpec], *, autostart: bool = True, when: Mapping[str, list[Action]] | None = None
) -> list[Action]:
    """Return the actions that start these nodes and, with autostart, configure and activate the lifecycle nodes.

    When an essential node ends, all nodes are stopped, as a part of a robot stack must not run alone. when: lifecycle
    state -> actions when a node reaches it.
    """
    folder = Path(tempfile.mkdtemp(prefix='vla_parameters_'))  # for the parameter files
    nodes = [action for spec in specs for action in _node(spec, folder, autostart, when or {})]
    return [OpaqueFunction(function=_shut_down_once), *nodes]


def _node(spec: NodeSpec, folder: Path, autostart: bool, when: Mapping[str, list[Action]]) -> list[Action]:
    kind = LifecycleNode if spec.lifecycle else Node
    node = kind(
        package=spec.package,
        executable=spec.executable,
        name=spec.name,
        namespace=spec.namespace,
        parameters=[str(spec.write_parameters(folder))] if spec.parameters else [],
        remappings=list(spec.remappings),
        output='screen',
        on_exit=[Shutdown(reason=f'{spec.full_name} ended')] if spec.essential else None,
        sigterm_timeout=str(REST + SHUTDOWN),  # [s] after SIGINT: longest time of an orderly end
    )
    if not (spec.lifecycle and autostart):
        return [node]

    def change(transition: int) -> EmitEvent:
        return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))

    # rclpy's transition events have no label: the two states identify the transition.
    configured = OnStateTransition(
        target_lifecycle_node=node,
        start_state='configuring',
        goal_state='inactive',
        entities=[OpaqueFunction(function=_when_there, args=[spec, change(Transition.TRANSITION_ACTIVATE)])],
    )
    # A node that refuses (without a joint state yet, for example) returns to inactive and is activated again.
    refused = OnStateTransition(
        target_lifecycle_node=node,
        start_state='activating',
        goal_state='inactive',
        entities=[TimerAction(period=RETRY, actions=[change(Transition.TRANSITION_ACTIVATE)])],
    )
    further = [OnStateTransition(target_lifecycle_node=node, goal_state=s, entities=does) for s, does in when.items()]
    return [
        *(RegisterEventHandler(handler) for handler in (configured, refused, *further)),
        node,
        change(Transition.TRANSITION_CONFIGURE),
    ]


def _when_there(context: LaunchContext, spec: NodeSpec, activate: Action, reported: bool = False) -> list[Action]:
    """Activate once the node's conditions are met, as an earlier attempt would leave an error in the log."""
    node = get_ros_node(context)
    missing = [f'a {kind} of {topic}' for kind, topic in spec.waits_for if not _there(node, spec, kind, topic)]
    if not missing:  # discovery of the node may be later
        return [TimerAction(period=LATER, actions=[activate])] if spec.waits_for else [activate]
    again = OpaqueFunction(function=_when_there, args=[spec, activate, True])
    wait = TimerAction(period=LOOK, actions=[again])
    return [wait] if reported else [LogInfo(msg=f'{spec.full_name} waits for {" and ".join(missing)}'), wait]


def _there(node: Any, spec: NodeSpec, kind: str, topic: str) -> bool:
    # The executor's own publishers do not count.
    name = topic if topic.startswith('/') else f'{spec.namespace}/{topic}'
    if kind == 'writer':
        return node.count_publishers(name) > 0
    return any(is_controller(e) for e in node.get_subscriptions_info_by_topic(name))


def _shut_down_once(context: LaunchContext) -> None:
    """Make later Shutdown events harmless: the ROS adapter of launch raises an error on a second one.

    Each essential node that ends emits a Shutdown, also during a Ctrl-C. The error would give a clean end exit code 1.
    """
    adapter = get_ros_adapter(context)
    shut_down = adapter.shutdown

    def once() -> None:
        adapter.shutdown = lambda: None
        shut_down()

    adapter.shutdown = once
