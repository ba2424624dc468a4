"""An FR3 under franka_ros2: which controllers, grippers and tool frames go together, on a robot or fake hardware."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_bringup.processes.nodes import NodeSpec, policy_nodes, share
from vla_policy_node.adapters.table import ADAPTERS

AUTO = 'auto'
GRIPPERS = ('franka', 'position', 'none')
FLANGE = 'fr3_link8'  # the last link of an arm without a hand
HAND = ('fr3_hand', 'fr3_hand_tcp', 'fr3_leftfinger', 'fr3_rightfinger')  # links that come with Franka's hand


def chosen_controller(choice: str, fake: bool) -> str:
    """The controller of a choice, one of ADAPTERS or AUTO. Raises ValueError for one that cannot work there.

    fake: ros2_control's mock hardware, whose joints follow position commands at once.
    """
    if choice == AUTO:
        return 'joint_trajectory' if fake else 'crisp'
    if why := ADAPTERS[choice].not_on_fake if fake else ADAPTERS[choice].not_on_robot:
        raise ValueError(why)
    return choice


def controllers_file(given: str, fake: bool) -> str:
    """The parameter file of controller_manager and controllers: the given one, else the one that is shipped.

    Raises ValueError for one that is not there, which launch_ros would only warn of.
    """
    path = Path(given) if given else share('config', 'controllers', 'fr3_fake.yaml' if fake else 'fr3.yaml')
    if not path.is_file():
        raise ValueError(f'controllers_yaml {path} is not there: give a file, or leave it out')
    return str(path.absolute())


def franka_nodes(robot: str, *, controller: str, gripper: str, fake: bool, **policy: Any) -> list[NodeSpec]:
    """Executor and policy for an FR3 under franka_ros2. policy: as of policy_nodes.

    controller: of ADAPTERS, or AUTO. gripper: of GRIPPERS. fake: mock hardware, which has no FrankaRobotState, and
    whose hand has finger positions and no actions. Raises ValueError for what cannot work.
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
    if gripper == 'none':  # whatever the profile has
        specs = [replace(s, parameters={**s.parameters, 'robot.gripper_joint_names': []}) for s in specs]
    return specs if gripper == 'franka' else [_without_hand(spec, gripper) for spec in specs]


def _without_hand(spec: NodeSpec, gripper: str) -> NodeSpec:
    """With a tool frame that there is without Franka's hand, which the robot description has only with it."""
    frame = spec.parameters.get('robot.tool_frame')
    if frame not in HAND:
        return spec
    if gripper != 'none' or 'robot.tool_offset' in spec.parameters:
        raise ValueError(
            f'gripper {gripper}: the robot description of franka_bringup has no {frame} without the hand. Set '
            f'robot.tool_frame to {FLANGE}, and robot.tool_offset to where the tip of what you mounted is in it (x, y, '
            'z [m], roll, pitch, yaw [rad]), in the robot profile or a params_file: the tool keeps its largest speed '
            'and the workspace there'
        )
    return replace(spec, parameters={**spec.parameters, 'robot.tool_frame': FLANGE})
