"""A Franka Research 3 with executor and policy: `ros2 launch vla_bringup franka.launch.py --show-args`.

franka_bringup's own franka.launch.py brings up the robot with our controllers (config/controllers); one of them is
spawned, and the executor has the adapter for it. Start the cameras yourself: the robot profile names their topics.
"""

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node

from vla_bringup.processes.franka_arm import (
    AUTO,
    GRIPPERS,
    chosen_controller,
    controllers_file,
    franka_nodes,
)
from vla_bringup.processes.launching import launch_actions, model_arguments, parameter_arguments
from vla_bringup.processes.nodes import recorder_node
from vla_bringup.processes.overrides import of_arguments
from vla_core.profile import profile_names
from vla_policy_node.adapters.table import ADAPTERS

YES_NO = ['true', 'false']
ARGUMENTS = [
    DeclareLaunchArgument(
        'robot_ip', default_value='', description='IP address of the robot; empty with fake hardware'
    ),
    DeclareLaunchArgument(
        'controller',
        default_value=AUTO,
        choices=[AUTO, *ADAPTERS],
        description='what moves the arm by our set-points: '
        + '; '.join(f'{name}, {adapter.about}' for name, adapter in ADAPTERS.items())
        + '; auto: crisp on a robot, joint_trajectory on fake hardware',
    ),
    DeclareLaunchArgument(
        'gripper',
        default_value='franka',
        choices=list(GRIPPERS),
        description="gripper. franka: Franka's hand, which stands still on fake hardware; position: your own, see the "
        "profile's topics.gripper_command and robot.tool_offset; none: the tool is the flange",
    ),
    DeclareLaunchArgument(
        'robot',
        default_value='fr3',
        description=f'robot profile: the path of a file, or one of {", ".join(profile_names())}',
    ),
    DeclareLaunchArgument(
        'namespace', default_value='', description='namespace of all nodes, e.g. /cell/arm; empty: none'
    ),
    DeclareLaunchArgument(
        'use_fake_hardware',
        default_value='false',
        choices=YES_NO,
        description='mock hardware of ros2_control, whose joints follow positions at once: tests wiring, not motion',
    ),
    DeclareLaunchArgument(
        'controllers_yaml',
        default_value='',
        description='parameter file of controller_manager and controllers, with the gains; empty: fr3.yaml of this '
        'package, fr3_fake.yaml with fake hardware',
    ),
    *model_arguments(),
    DeclareLaunchArgument(
        'drive',
        default_value='false',
        choices=YES_NO,
        description='true: the policy moves the arm; false: shadow, chunks are published and never executed',
    ),
    DeclareLaunchArgument('record', default_value='', description='folder of a rosbag2 to write; empty: none'),
    DeclareLaunchArgument(
        'autostart', default_value='true', choices=YES_NO, description='configure and activate executor and policy'
    ),
    *parameter_arguments(),
]


def nodes(context: LaunchContext) -> list:
    value = context.launch_configurations
    fake, namespace = value['use_fake_hardware'] == 'true', value['namespace']
    if not fake and not value['robot_ip']:
        raise ValueError('franka.launch.py needs robot_ip:=ADDRESS, or use_fake_hardware:=true')
    controller = chosen_controller(value['controller'], fake)
    controllers = controllers_file(value['controllers_yaml'], fake)
    parameters = of_arguments(value)
    specs = franka_nodes(
        value['robot'],
        namespace=namespace,
        controller=controller,
        gripper=value['gripper'],
        fake=fake,
        model=value['model'],
        device=value['device'],
        drive=value['drive'] == 'true',
        **parameters,
    )
    if value['record']:
        file = parameters['params_file']
        path, executor = value['record'], specs[0]
        specs.append(recorder_node(value['robot'], path, namespace=namespace, params_file=file, executor=executor))
    try:
        robot = f'{get_package_share_directory("franka_bringup")}/launch/franka.launch.py'
    except PackageNotFoundError:
        raise ValueError(
            'franka_bringup is not installed: build franka_ros2 and source its workspace before this one'
        ) from None
    bringup = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(robot),
        launch_arguments={
            'robot_type': 'fr3',
            'arm_prefix': '',
            'namespace': namespace,
            'robot_ip': value['robot_ip'],
            'load_gripper': str(value['gripper'] == 'franka').lower(),
            'use_fake_hardware': value['use_fake_hardware'],
            'fake_sensor_commands': 'false',
            'controllers_yaml': controllers,
        }.items(),
    )
    spawner = Node(
        package='controller_manager',
        executable='spawner',
        namespace=namespace,
        arguments=[ADAPTERS[controller].controller, '--controller-manager-timeout', '60'],
        output='screen',
    )
    return [bringup, spawner, *launch_actions(specs, autostart=value['autostart'] == 'true')]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=nodes)])
