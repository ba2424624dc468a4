"""Node list to launch actions. Needs launch_ros, which only a real ROS installation brings; the supervisor does not."""

from launch import LaunchContext  # type: ignore[attr-defined]  # mypy takes our launch/ folder for it
from launch.action import Action
from launch.actions import EmitEvent, OpaqueFunction, RegisterEventHandler, Shutdown, TimerAction
from launch.events import matches_action
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from vla_bringup.nodes import NodeSpec

RETRY = 1.0  # [s] between two attempts to activate a node


def launch_actions(specs: list[NodeSpec], *, autostart: bool = True) -> list[Action]:
    """What starts these nodes and, with autostart, configures and activates those with a lifecycle.

    When one of the essential nodes ends, all are stopped: half a robot stack is worse than none.
    """
    return [action for spec in specs for action in _node(spec, autostart)]


def _node(spec: NodeSpec, autostart: bool) -> list[Action]:
    kind = LifecycleNode if spec.lifecycle else Node
    node = kind(
        package=spec.package,
        executable=spec.executable,
        name=spec.name,
        namespace=spec.namespace,
        parameters=[*spec.parameter_files, spec.parameters],
        remappings=list(spec.remappings),
        output='screen',
        on_exit=[OpaqueFunction(function=_shut_down, args=[spec.full_name])] if spec.essential else None,
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
        entities=[change(Transition.TRANSITION_ACTIVATE)],
    )
    # A node that cannot be activated yet (no joint state has come, say) is inactive again: ask until it can.
    refused = OnStateTransition(
        target_lifecycle_node=node,
        start_state='activating',
        goal_state='inactive',
        entities=[TimerAction(period=RETRY, actions=[change(Transition.TRANSITION_ACTIVATE)])],
    )
    return [
        RegisterEventHandler(configured),
        RegisterEventHandler(refused),
        node,
        change(Transition.TRANSITION_CONFIGURE),
    ]


def _shut_down(context: LaunchContext, name: str) -> list[Action]:
    # A second Shutdown, when everything is being stopped already, would turn a clean Ctrl-C into exit code 1.
    return [] if context.is_shutdown else [Shutdown(reason=f'{name} ended')]
