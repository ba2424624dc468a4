"""Node list to launch actions. Needs launch_ros, which only a real ROS installation brings; the supervisor does not."""

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
LOOK, LATER = 0.3, 0.7  # [s] between two looks at what a node waits for, and from when it is there


def parameter_arguments(*names: str, prefix: str = '', about: str = '') -> list[DeclareLaunchArgument]:
    """The launch arguments that set parameters, all of overrides.ARGUMENTS or those of these names."""
    return [
        DeclareLaunchArgument(prefix + name, default_value='', description=about + ARGUMENTS[name])
        for name in names or ARGUMENTS
    ]


def model_arguments(*, prefix: str = '', about: str = '', default: str = '') -> list[DeclareLaunchArgument]:
    """The launch arguments that choose a model and where it runs."""
    defaults = {'model': default}
    return [
        DeclareLaunchArgument(prefix + name, default_value=defaults.get(name, ''), description=about + text)
        for name, text in MODEL.items()
    ]


def launch_actions(
    specs: list[NodeSpec], *, autostart: bool = True, when: Mapping[str, list[Action]] | None = None
) -> list[Action]:
    """What starts these nodes and, with autostart, configures and activates those with a lifecycle.

    When one of the essential nodes ends, all are stopped: half a robot stack is worse than none. when: a lifecycle
    state -> what to do when one of the nodes comes to it.
    """
    folder = Path(tempfile.mkdtemp(prefix='vla_parameters_'))  # the nodes read their files there
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
        sigterm_timeout=str(REST + SHUTDOWN),  # [s] after SIGINT: what a node takes at most to end by itself
    )
    if not (spec.lifecycle and autostart):
        return [node]

    def change(transition: int) -> EmitEvent:
        return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))

    # rclpy's transition events carry no label: the states tell which one it was.
    configured = OnStateTransition(
        target_lifecycle_node=node,
        start_state='configuring',
        goal_state='inactive',
        entities=[OpaqueFunction(function=_when_there, args=[spec, change(Transition.TRANSITION_ACTIVATE)])],
    )
    # A node that cannot be activated yet (no joint state has come, say) is inactive again: ask until it can.
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


def _when_there(context: LaunchContext, spec: NodeSpec, activate: Action, told: bool = False) -> list[Action]:
    """Activate when what the node waits for is there: a first try without it would leave an error in the log."""
    node = get_ros_node(context)
    missing = [f'a {kind} of {topic}' for kind, topic in spec.waits_for if not _there(node, spec, kind, topic)]
    if not missing:  # the node itself may hear of it a little later than we
        return [TimerAction(period=LATER, actions=[activate])] if spec.waits_for else [activate]
    again = OpaqueFunction(function=_when_there, args=[spec, activate, True])
    wait = TimerAction(period=LOOK, actions=[again])
    return [wait] if told else [LogInfo(msg=f'{spec.full_name} waits for {" and ".join(missing)}'), wait]


def _there(node: Any, spec: NodeSpec, kind: str, topic: str) -> bool:
    # From the executor's place: its own publisher is no writer of what it waits for.
    name = topic if topic.startswith('/') else f'{spec.namespace}/{topic}'
    if kind == 'writer':
        return node.count_publishers(name) > 0
    return any(is_controller(e) for e in node.get_subscriptions_info_by_topic(name))


def _shut_down_once(context: LaunchContext) -> None:
    """Let further Shutdowns do nothing in the ROS adapter of this launch, which raises an error then.

    Each node that stops the others when it ends, franka_bringup's controller manager for one, asks for one more while
    all are stopped already: a clean Ctrl-C would have exit code 1.
    """
    adapter = get_ros_adapter(context)
    shut_down = adapter.shutdown

    def once() -> None:
        adapter.shutdown = lambda: None
        shut_down()

    adapter.shutdown = once
