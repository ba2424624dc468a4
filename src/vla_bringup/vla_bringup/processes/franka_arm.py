"""An FR3 under franka_ros2: compatible controllers, grippers and tool frames, on a robot or fake hardware."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_bringup.processes.nodes import NodeSpec, policy_nodes, share
from vla_policy_node.adapters.table import ADAPTERS

AUTO = 'auto'
GRIPPERS = ('franka', 'position', 'none')
FLANGE = 'fr3_link8'  # the last link of an arm without a hand
HAND = ('fr3_hand', 'fr3_hand_tcp', 'fr3_leftfinger', 'fr3_rightfinger')  # links of Franka's hand


def chosen_controller(choice: str, fake: bool) -> str:
    """Return the controller of a choice, one of ADAPTERS or AUTO. Raises ValueError for an incompatible one.

    fake: ros2_control's mock hardware, whose joints follow position commands at once.
    """
    if choice == AUTO:
        return 'joint_trajectory' if fake else 'crisp'
    if why := ADAPTERS[choice].not_on_fake if fake else ADAPTERS[choice].not_on_robot:
        raise ValueError(why)
    return choice


def controllers_file(given: str, fake: bool) -> str:
    """Return the parameter file of controller_manager and controllers: the given one, else that of this package.

    Raises ValueError for a missing file, which launch_ros would only warn of.
    """
    path = Path(given) if given else share('config', 'controllers', 'fr3_fake.yaml' if fake else 'fr3.yaml')
    if not path.is_file():
        raise ValueError(f'controllers_yaml {path} does not exist: give a file, or leave it out')
    return str(path.absolute())


def franka_nodes(robot: str, *, controller: str, gripper: str, fake: bool, **policy: Any) -> list[NodeSpec]:
    """Return executor and policy for an FR3 under franka_ros2. policy: keyword arguments of policy_nodes.

    controller: of ADAPTERS, or AUTO. gripper: of GRIPPERS. fake: mock hardware, which has no FrankaRobotState and a
    hand without actions. Raises ValueError for an incompatible combination.
    """
    controller = chosen_controller(controller, fake)
    parameters: dict[str, Any] = {
        'controller': controller,
        'topics.joint_command': ADAPTERS[controller].topic,
        'controller_node': ADAPTERS[controller].controller,
        'gripper': 'none' if gripper == 'franka' and fake else gripper,
    }
    if gripper == 'franka':
        parameters['topics.gripper_command'] = 'franka_gripper'
    if fake:
        parameters['topics.robot_state'] = ''
    specs = policy_nodes(robot, executor_arguments=parameters, **policy)
    if gripper == 'none':  # overrides the profile
        specs = [replace(s, parameters={**s.parameters, 'robot.gripper_joint_names': []}) for s in specs]
    return specs if gripper == 'franka' else [_without_hand(spec, gripper) for spec in specs]


def _without_hand(spec: NodeSpec, gripper: str) -> NodeSpec:
    """Return the executor with a tool frame that exists without Franka's hand. Raises ValueError without one."""
    frame = spec.parameters.get('robot.tool_frame')
    if frame not in HAND:
        return spec
    if gripper != 'none' or 'robot.tool_offset' in spec.parameters:
        raise ValueError(
            f'gripper {gripper}: the robot description of franka_bringup has no {frame} without the hand. Set '
            f'robot.tool_frame to {FLANGE}, and robot.tool_offset to the pose of the tool tip in that frame (x, y, '
            'z [m], roll, pitch, yaw [rad]), in the robot profile or a params_file: tool speed and workspace are '
            'limited at that point'
        )
    return replace(spec, parameters={**spec.parameters, 'robot.tool_frame': FLANGE})
