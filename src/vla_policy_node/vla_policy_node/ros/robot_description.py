"""The URDF of the robot: from the latched topic `robot_description`, or from a file."""

from pathlib import Path

from rclpy.node import Node
from rclpy.wait_for_message import wait_for_message
from std_msgs.msg import String

from vla_policy_node.ros import qos
from vla_policy_node.ros.parameters import declare


def declare_description(node: Node) -> tuple[str, float]:
    """File with the URDF, '' for the topic; and how long to wait for the topic [s]."""
    return (
        declare(node, 'robot_description_file', '', 'URDF file; empty: the topic robot_description'),
        declare(node, 'robot_description_timeout', 15.0, 'how long to wait for the topic [s]', low=0.1, high=300.0),
    )


def read_description(node: Node, *wanted_by: str) -> str:
    """The text, waiting for the topic. Called while the node is configured: nothing else is handled meanwhile.

    wanted_by: for what, as the user knows it. Raises ValueError when it does not come in time.
    """
    path, patience = declare_description(node)
    if path:
        try:
            return Path(path).read_text()
        except OSError as error:
            raise ValueError(f'robot_description_file: {error}') from None
    came, message = wait_for_message(
        String, node, 'robot_description', qos_profile=qos.LATCHED, time_to_wait=float(patience)
    )
    if not came or not message.data.strip():
        topic = node.resolve_topic_name('robot_description')
        remedy = 'start robot_state_publisher (or the simulator), or give robot_description_file'
        if publishers := node.get_publishers_info_by_topic(topic):
            who = ', '.join(sorted({p.node_name for p in publishers}))
            remedy = f'{who} publishes there: let it be latched (reliable, transient local), and not empty'
        need = 'needs' if len(wanted_by) == 1 else 'need'
        raise ValueError(
            f'{" and ".join(wanted_by)} {need} the robot description, and none came '
            f'on {topic} within {patience:g} s: {remedy}'
        )
    return message.data
